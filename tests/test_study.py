"""Studies: runs are shared and done once, arms differ in what they declare, intervals cover, and tables say what is not significant."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perception_r1 import commands_study, recipes
from perception_r1.data.samples import read_samples
from perception_r1.evaluation.intervals import between_limits
from perception_r1.evaluation.metrics import ALWAYS
from perception_r1.records import BadData
from perception_r1.study import run as running
from perception_r1.study.grid import Run, Step, Study, read_domains, read_study, runs_of, within
from perception_r1.study.intervals import mean_figure, metric_figure
from perception_r1.study.plot import write_plot
from perception_r1.study.results import gather, paper_figure
from perception_r1.study.run import conduct, folder_of, result_of
from perception_r1.study.table import as_json, markdown
from perception_r1.tasks import make_task
from perception_r1.tasks.detection import THRESHOLDS

STUDIES = recipes.names("studies")


# --- the grid --------------------------------------------------------------------------------------------------------
def test_the_studies_that_are_asked_for_are_there() -> None:
    asked = {"matching", "thinking", "sft-vs-rl", "reward-terms", "rollouts", "curriculum", "kl", "advantage", "iou-shape"}
    assert asked <= set(STUDIES)


@pytest.mark.parametrize("domains", ["drawn", "paper"])
def test_the_runs_of_every_study_have_settings_that_trl_takes(domains: str, tmp_path: Path) -> None:
    loading = pytest.importorskip("perception_r1.training.recipe")
    trl = pytest.importorskip("trl")
    yaml = pytest.importorskip("yaml")
    steps: dict[str, Step] = {}
    for name in STUDIES:  # every arm in one domain; the study of SFT and RL in all of them
        known = read_domains(domains)
        try:
            study = within(read_study(name), known)
        except BadData:  # the dial is that of drawn scenes, and the paper names no validation samples
            assert (name, domains) in (("perplexity", "paper"), ("learning-rate", "paper"))
            continue
        study = replace(study, seeds=1, domains=study.domains if name == "sft-vs-rl" else study.domains[:1])
        steps |= {json.dumps(step.settings, sort_keys=True): step for run in runs_of(study, known) for step in run.steps}
    assert len(steps) > 20
    for step in steps.values():
        (tmp_path / "step.yaml").write_text(yaml.safe_dump(dict(step.settings)))
        config = {"grpo": trl.GRPOConfig, "sft": trl.SFTConfig}[step.command]
        always = ["--model", "tiny", "--use_cpu", "true", "--bf16", "false", "--output_dir", str(tmp_path / "run")]
        ours, args, _ = loading.load_recipe(str(tmp_path / "step.yaml"), always, config)
        assert (ours.task, args.seed, ours.eval_data) == (step.settings["task"], 0, None)


def test_equal_settings_are_one_run_whatever_they_are_called() -> None:
    domains = read_domains("drawn")
    keys = {name: {run.key for run in runs_of(read_study(name), domains) if run.domain == "detection"} for name in ("matching", "reward-terms")}
    assert len(keys["matching"] & keys["reward-terms"]) == 4  # the base, and every term under hungarian matching with three seeds
    runs = runs_of(read_study("matching"), domains)
    assert len({run.key for run in runs}) == len(runs)


def test_every_setting_changes_the_key() -> None:
    step = Step(command="grpo", settings={"beta": 0.0})
    one = Run(domain="a", arm="b", seed=0, model="tiny", steps=(step,), measurement={"eval_data": "c"})
    others = [
        replace(one, model="other"),
        replace(one, steps=()),
        replace(one, steps=(Step(command="sft", settings={"beta": 0.0}),)),
        replace(one, steps=(Step(command="grpo", settings={"beta": 0.1}),)),
        replace(one, measurement={"eval_data": "d"}),
    ]
    assert len({run.key for run in (one, *others)}) == 1 + len(others)
    assert replace(one, domain="x", arm="y").key == one.key


def test_more_rollouts_of_a_prompt_leave_the_prompts_of_a_step() -> None:
    for domains in ("drawn", "paper"):
        steps = [run.steps[0].settings for run in runs_of(read_study("rollouts"), read_domains(domains)) if run.steps]
        assert {step["num_generations"] for step in steps} == {2, 4, 8, 16, 32}
        assert len({step["per_device_train_batch_size"] / step["num_generations"] for step in steps}) == 1


def test_settings_are_chosen_on_other_samples_than_the_studies_measure_on() -> None:
    known, study = read_domains("drawn"), read_study("learning-rate")
    chosen = {run.measurement["eval_data"] for run in runs_of(study, known)}
    measured = {run.measurement["eval_data"] for name in STUDIES if name != "learning-rate" for run in runs_of(read_study(name), known)}
    assert len(chosen) == 8
    assert not chosen & measured
    del known["ocr"]["validation_data"]
    with pytest.raises(BadData, match="learning-rate measures on the validation_data of ocr, which has none: add it"):
        within(study, known)


def test_a_study_of_several_trainings_gives_each_its_own_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = next(run for run in runs_of(read_study("sft-vs-rl"), read_domains("drawn")) if (run.domain, run.arm, run.seed) == ("ocr", "SFT+RL", 1))
    assert [(step.command, step.part) for step in run.steps] == [("sft", "1/2"), ("grpo", "2/2")]
    settings = dict(run.steps[0].settings) | {"data": "scenes:ocr?n=9&seed=3"}
    parts = [
        {sample.id for sample in read_samples(running._part_of(settings, part, tmp_path / f"{part[0]}.jsonl"))}
        for part in (run.steps[0].part, run.steps[1].part)
    ]
    assert [len(part) for part in parts] == [5, 4]
    assert not parts[0] & parts[1]
    weighted = settings | {"data": f"{tmp_path / '1.jsonl'}:2,{tmp_path / '2.jsonl'}:1"}
    with pytest.raises(BadData, match="found weights, which an arm with part 1/2 cannot keep"):
        running._part_of(weighted, "1/2", tmp_path / "3.jsonl")


@pytest.mark.parametrize("domains", ["drawn", "paper"])
def test_groups_are_whole_in_every_stage_and_a_step_has_as_many_rollouts(domains: str) -> None:
    rollouts: dict[str, set[int]] = {}
    for run in runs_of(read_study("curriculum"), read_domains(domains)):
        for step in run.steps:
            size, rounds = step.settings["per_device_train_batch_size"], step.settings["gradient_accumulation_steps"]
            rollouts.setdefault(run.domain, set()).add(size * rounds)
            assert not [stage for stage in step.settings.get("stages", "").split(",") if stage and size % int(stage)]
    assert all(len(found) == 1 for found in rollouts.values())


def test_a_study_runs_in_those_of_its_domains_that_the_file_has(counted: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from perception_r1.cli import main

    (tmp_path / "own.yaml").write_text(TINY.format(model="tiny"))
    with pytest.raises(SystemExit, match="0"):
        main(["study", "sft-vs-rl", "--data", str(tmp_path / "own.yaml"), "--seeds", "1", "-o", str(tmp_path)])
    assert {run.domain for run in counted} == {"ocr"}
    assert "own.yaml has no grounding, counting, detection: the study runs without" in capsys.readouterr().err


def test_only_a_policy_that_knows_no_tags_is_taught_them_before_rl() -> None:
    for domains, commands in (("drawn", ["sft", "grpo"]), ("paper", ["grpo"])):
        for run in runs_of(read_study("thinking"), read_domains(domains)):
            assert [step.command for step in run.steps] == commands
            assert {bool(step.settings.get("thinking")) for step in run.steps} == {run.arm == "with"} == {run.measurement["thinking"]}
    taught = {step.settings["data"] for run in runs_of(read_study("thinking"), read_domains("drawn")) for step in run.steps if step.command == "sft"}
    assert len(taught) == 4
    assert not taught & {domain["data"] for domain in read_domains("drawn").values()}


def test_every_arm_is_measured_under_the_image_limits_of_the_recipe_a_base_too() -> None:
    runs = runs_of(read_study("matching"), read_domains("paper"))
    assert {run.measurement["max_pixels"] for run in runs} == {1_000_000}
    assert "base" in {run.arm for run in runs}


def test_seeds_come_whole_and_a_base_is_measured_once() -> None:
    runs = runs_of(read_study("matching"), read_domains("drawn"))
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert sum(run.arm == "base" and run.domain == "counting" for run in runs) == 1
    assert all(step.settings["seed"] == run.seed for run in runs for step in run.steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "none"}, "the reference 'none' is no arm: expected one of a, b"),
        ({"arms": {"a": [{"dpo": {}}], "b": []}}, "arm 'a': expected a list of trainings, each sft or grpo"),
        ({"plots": ["pie"]}, "plot 'pie' is not known: expected some of arms, curves, gain"),
        ({"paper": {"counting": {"c": ["x"]}}}, "paper: 'c' is no arm"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(change: dict[str, Any], message: str) -> None:
    good = {"name": "x", "question": "?", "finding": "", "reference": "a", "arms": {"a": [], "b": []}, "domains": ["counting"], "paper": {}}
    Study(**good)
    with pytest.raises(BadData, match=message):
        Study(**(good | change))


def test_unknown_names_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="study 'mtching' is not known: expected a YAML file or one of .*matching"):
        read_study("mtching")
    (tmp_path / "bad.yaml").write_text("question: why\n")
    with pytest.raises(BadData, match="expected question, finding, reference, arms and domains"):
        read_study(str(tmp_path / "bad.yaml"))
    (tmp_path / "juggling.yaml").write_text("juggling: {model: tiny}\n")
    with pytest.raises(BadData, match="found 'juggling', expected the name of a task"):
        read_domains(str(tmp_path / "juggling.yaml"))
    (tmp_path / "few.yaml").write_text("counting: {model: tiny, data: x}\n")
    with pytest.raises(BadData, match="counting has no eval_data"):
        read_domains(str(tmp_path / "few.yaml"))
    with pytest.raises(BadData, match="needs one of the domains counting, detection, found only ocr"):
        within(read_study("matching"), {"ocr": {}})


DOCUMENT = (Path(__file__).parents[1] / "docs" / "studies.md").read_text(encoding="utf-8")


def test_the_document_lists_every_study_with_its_question() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \|", DOCUMENT, re.MULTILINE))
    assert sorted(rows) == STUDIES
    for name, question in rows.items():
        assert read_study(name).question == question


def test_the_documents_examples_can_be_read(tmp_path: Path) -> None:
    for name, text in zip(("own.yaml", "larger.yaml"), re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL), strict=True):
        (tmp_path / name).write_text(text)
    runs = runs_of(read_study(str(tmp_path / "larger.yaml")), read_domains(str(tmp_path / "own.yaml")))
    assert [run.steps[0].settings["learning_rate"] for run in runs if run.steps and not run.seed] == [1e-6, 1e-5]


# --- intervals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover_the_true_mean_as_often_as_they_say(seeds: int) -> None:
    """Simulated studies: an effect of the seed, of the scene, and of both; with one seed only the scenes vary."""
    random = np.random.default_rng(0)
    hits, trials = 0, 300
    for _ in range(trials):
        seed_K1, scene_S = random.normal(0, 0.05 * (seeds > 1), (seeds, 1)), random.normal(0, 0.3, 80)
        low, high = mean_figure(0.5 + seed_K1 + scene_S + random.normal(0, 0.2, (seeds, 80)), (-5, 5)).interval()
        hits += low <= 0.5 <= high
    assert 0.92 <= hits / trials <= (1.0 if seeds > 1 else 0.98)


def test_what_all_arms_and_seeds_share_cancels_in_a_difference() -> None:
    random = np.random.default_rng(1)
    scene_S = random.normal(0, 1, 100)
    before, after = (mean_figure([scene_S + gain] * 2, (-5, 5)) for gain in (0.0, 0.1))
    change = after.minus(before)
    assert change.drawn_KR == pytest.approx(0.1)
    assert change.interval() == pytest.approx(tuple(between_limits(0.1, 100, (-10, 10))))
    low, high = after.interval()
    assert high - low > 0.3
    assert after.minus(mean_figure([scene_S], (-5, 5))).value == pytest.approx(0.1)  # one base stands for every seed


def test_a_metric_of_resampled_scenes_is_the_tasks_own() -> None:
    """F1 is no mean over scenes: two scenes of 1 and 9 objects, of which 1 and 0 are found."""
    stats = {"predicted": [1.0, 9.0], "true": [1.0, 9.0], **{name: [0.0, 0.0] for name in ALWAYS}}
    stats |= {f"hits@{threshold}": [1.0, 0.0] for threshold in THRESHOLDS}
    figure = metric_figure(make_task("detection"), [stats], "f1@0.5")
    assert figure.value == pytest.approx(0.1)
    assert set(np.round(np.unique(figure.drawn_KR), 9)) == {0.0, 0.1, 1.0}


# --- results and tables ----------------------------------------------------------------------------------------------
def result(scores: list[float], *, steps: int = 1) -> dict[str, Any]:
    """What a counting run gave on as many scenes as there are scores."""
    stats = dict.fromkeys(("distance_score", "count_acc", "count_within1", "count_mae", "squared", *ALWAYS), scores)
    return {
        "task": "counting",
        "main_metric": "distance_score",
        "model": "tiny",
        "data": {"samples": len(scores), "sha256": "0", "path": "scenes"},
        "versions": {"python": "3.12.1", "torch": "2.14.1", "numpy": "2.4.6"},
        "steps": [{"command": "grpo", "settings": {"num_iterations": 2}}] * steps,
        "curve": [{"step": k + 1, "reward": 1 + k / 10, "seconds": 2.0 * k} for k in range(steps * 8)],
        "metrics": {"count_acc": {"value": scores[0]}},
        "statistics": stats,
        "sampled": [1 + score for score in scores],
        "bounds": [0, 2],
        "log10_perplexity": 2.0,
        "cpu_minutes": 1.5,
    }


@pytest.fixture
def done(tmp_path: Path) -> tuple[Study, list[Run]]:
    """The study of matching on counting with two seeds: greedy as good as hungarian, sequential worse, best pending."""
    study = replace(read_study("matching"), domains=["counting"], seeds=2)
    runs = runs_of(study, read_domains("drawn"))
    random = np.random.default_rng(0)
    scene_S = random.uniform(0.5, 0.9, 60)
    better = {"hungarian": 0.0, "greedy": 0.0, "sequential": -0.2, "base": -0.4}
    for run in runs:
        if run.arm in better:
            folder = folder_of(run, tmp_path)
            folder.mkdir(parents=True)
            scores = (scene_S + better[run.arm] + random.normal(0, 0.01, 60)).tolist()
            (folder / "result.json").write_text(json.dumps(result(scores, steps=len(run.steps))))
    return study, runs


def cells(text: str, arm: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(f"| {arm} |")).strip("| ").split(" | ")


def test_a_table_says_what_is_not_significant_and_what_is_pending(done: tuple[Study, list[Run]], tmp_path: Path) -> None:
    study, runs = done
    text = markdown(study, gather(study, runs, tmp_path, {"counting": ["count_acc"]}), "perception-r1 study matching --seeds 2")
    assert "*n.s.*" in cells(text, "greedy")[3]
    assert "*n.s.*" not in cells(text, "sequential")[3]
    assert cells(text, "sequential")[3].startswith("-0.2")
    assert cells(text, "best")[1:4] == ["pending", "–", "–"]
    assert "Pending: counting best (0 of 2 seeds). `perception-r1 study matching --seeds 2` runs what is missing." in text
    assert cells(text, "base")[1] == "1"
    assert (cells(text, "greedy")[-2], cells(text, "base")[-2]) == ("9", "–")  # 8 logs of a reward, and a second step on the last rollouts
    assert "\n7 runs, 10 CPU minutes in all, those that other studies share included; python 3.12.1, torch 2.14.1.\n" in text
    assert "perceptual perplexity 100.0 (log10 2.00)" in text


def test_one_seed_says_nothing_about_significance(done: tuple[Study, list[Run]], tmp_path: Path) -> None:
    study, runs = done
    text = markdown(study, gather(study, [run for run in runs if not run.seed], tmp_path, {}), "")
    assert cells(text, "sequential")[3].endswith("*one seed*")
    assert cells(text, "base")[3].endswith("*one seed*")


def test_the_papers_figures_stand_beside_ours(done: tuple[Study, list[Run]], tmp_path: Path) -> None:
    study, runs = done
    text = markdown(study, gather(study, runs, tmp_path, {}), "")
    assert [cells(text, arm)[-3] for arm in ("hungarian", "greedy", "sequential", "base")] == ["78.1", "–", "77.1", "60.2"]
    with pytest.raises(BadData, match="found nothing at"):
        paper_figure(["ablations", "Perception-R1", "Chess"])


def test_runs_that_were_measured_on_different_samples_are_not_compared(done: tuple[Study, list[Run]], tmp_path: Path) -> None:
    study, runs = done
    path = folder_of(runs[0], tmp_path) / "result.json"
    changed = json.loads(path.read_text())
    changed["data"]["sha256"] = "1"
    path.write_text(json.dumps(changed))
    with pytest.raises(BadData, match="matching, counting: its runs were measured on different samples, because scenes changed"):
        gather(study, runs, tmp_path, {})


def test_a_metric_that_is_not_there_is_named(done: tuple[Study, list[Run]], tmp_path: Path) -> None:
    with pytest.raises(BadData, match="also: metric 'mAP' is not measured there: expected some of count_acc"):
        gather(*done, tmp_path, {"counting": ["mAP"]})


@pytest.mark.parametrize("name", STUDIES)
def test_every_place_that_a_study_names_in_the_papers_tables_is_there(name: str) -> None:
    for told in read_study(name).paper.values():
        for arm, place in told.items():
            if arm != "title":
                assert paper_figure(place) is None or 0 < paper_figure(place) < 100  # type: ignore[operator]


def test_the_json_has_the_figures_of_the_table(done: tuple[Study, list[Run]], tmp_path: Path) -> None:
    study, runs = done
    found = json.loads(json.dumps(as_json(study, gather(study, runs, tmp_path, {}))))
    rows = {row["arm"]: row for row in found["domains"][0]["rows"]}
    assert rows["sequential"]["change"]["value"] == pytest.approx(rows["sequential"]["main"]["value"] - rows["hungarian"]["main"]["value"])
    assert rows["best"]["main"] is None
    assert len(rows["greedy"]["main"]["by_seed"]) == 2


def test_a_plot_is_svg_with_every_arm_that_ran_and_hollow_where_nothing_is_sure(done: tuple[Study, list[Run]], tmp_path: Path) -> None:
    study, runs = done
    sections = gather(study, runs, tmp_path, {})
    write_plot(replace(study, plots=["arms", "curves", "gain"]), sections, tmp_path / "plot.svg")
    drawn = ElementTree.parse(tmp_path / "plot.svg").getroot()
    told = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"hungarian", "greedy", "sequential", "base"} <= set(told)
    assert "best" not in told
    filled = [element.get("fill") for element in drawn.iter("{http://www.w3.org/2000/svg}circle")][:4]
    assert [colour == "#fff" for colour in filled] == [False, True, False, False]  # in the order of the arms; best is pending
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))) == 6  # three arms, by steps and by seconds
    write_plot(replace(study, reference="best"), gather(replace(study, reference="best"), runs, tmp_path, {}), tmp_path / "pending.svg")
    circles = ElementTree.parse(tmp_path / "pending.svg").getroot().iter("{http://www.w3.org/2000/svg}circle")
    assert {element.get("fill") for element in circles} == {"#fff"}  # nothing is known to differ from an arm that has not run
    write_plot(study, [], tmp_path / "none.svg")
    assert "no run has ended yet" in (tmp_path / "none.svg").read_text()


# --- running ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Runs that do nothing but be counted."""
    seen: list[Run] = []

    def execute(run: Run, root: Path) -> dict[str, Any]:
        seen.append(run)
        return result([0.5, 0.6])

    monkeypatch.setattr(running, "execute", execute)
    return seen


def some_runs() -> list[Run]:
    return [run for run in runs_of(replace(read_study("matching"), seeds=1), read_domains("drawn")) if run.domain == "counting"]


def test_a_run_is_done_once_and_the_next_call_goes_on(counted: list[Run], tmp_path: Path) -> None:
    runs = some_runs()
    assert conduct(runs, tmp_path, most=2) == (2, [])
    assert conduct(runs, tmp_path) == (len(runs) - 2, [])
    assert conduct(runs, tmp_path) == (0, [])
    assert counted == runs
    assert all(result_of(run, tmp_path) for run in runs)


def test_a_run_that_fails_costs_no_other_and_is_tried_again(tmp_path: Path, counted: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    runs, whole = some_runs(), running.execute
    monkeypatch.setattr(running, "execute", lambda run, root: 1 / 0 if run.arm == "greedy" else whole(run, root))
    begun, failed = conduct(runs, tmp_path)
    folder = folder_of(next(run for run in runs if run.arm == "greedy"), tmp_path)
    assert begun == len(runs)
    assert failed == [f"counting, greedy, seed 0: division by zero ({folder / 'error.txt'})"]
    assert "ZeroDivisionError" in (folder / "error.txt").read_text()
    assert len(counted) == len(runs) - 1
    monkeypatch.setattr(running, "execute", whole)
    assert conduct(runs, tmp_path) == (1, [])
    assert not (folder / "error.txt").exists()


def test_data_that_is_not_there_is_found_before_anything_is_trained(counted: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from perception_r1.cli import main

    with pytest.raises(SystemExit, match="1"):
        main(["study", "kl", "--data", "paper", "-o", str(tmp_path)])
    assert "data/pixmo_train.jsonl: found no such file" in capsys.readouterr().err
    assert not counted


def test_a_study_refuses_to_be_one_training_of_several_processes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from perception_r1.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        main(["study", "matching"])
    assert "start one command a GPU" in capsys.readouterr().err


def test_no_run_begins_after_the_budget(counted: list[Run], tmp_path: Path) -> None:
    assert conduct(some_runs(), tmp_path, budget=0) == (0, [])
    assert conduct(some_runs(), tmp_path, most=0) == (0, [])
    assert not counted


def test_a_run_that_another_process_is_doing_is_left_to_it(counted: list[Run], tmp_path: Path) -> None:
    runs = some_runs()
    folder_of(runs[0], tmp_path).mkdir(parents=True)
    script = "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, str(folder_of(runs[0], tmp_path) / ".claim")], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        conduct(runs, tmp_path)
        other.kill()
    assert counted == runs[1:]
    assert conduct(runs, tmp_path) == (1, [])  # a process that died has let it go


TINY = """
ocr:
  model: {model}
  data: scenes:ocr?n=8&seed=3
  eval_data: scenes:ocr?n=6&seed=3&split=test
  measurement: {{max_new_tokens: 4}}
  grpo: {{recipe: tiny-grpo, per_device_train_batch_size: 8, num_generations: 4, max_completion_length: 4, max_steps: 2, learning_rate: 1.0e-3}}
  sft: {{recipe: tiny-sft, per_device_train_batch_size: 4}}
"""


def test_a_study_trains_measures_and_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole small study through the command: killed after its trainings, it measures without training again."""
    small = pytest.importorskip("tests.small_runs")
    from perception_r1.cli import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small.save_policy(tmp_path / "policy")
    (tmp_path / "domains.yaml").write_text(TINY.format(model=tmp_path / "policy"))
    study = {"question": "?", "finding": "none", "domains": ["ocr"], "reference": "RL", "plots": ["arms", "curves"], "seeds": 1}
    study |= {"arms": {"base": [], "RL": [{"grpo": {}}], "both": [{"sft": {"thinking": True}}, {"grpo": {"thinking": True}}]}}
    (tmp_path / "small.yaml").write_text(json.dumps(study))
    output = tmp_path / "out"
    command = ["study", str(tmp_path / "small.yaml"), "--data", str(tmp_path / "domains.yaml"), "-o", str(output)]
    whole, trained = running._measure, []
    monkeypatch.setattr(running, "_measure", lambda run, *given: whole(run, *given) if run.arm == "base" else pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        main(command)
    monkeypatch.setattr(running, "_measure", whole)
    train = running._train
    monkeypatch.setattr(running, "_train", lambda step, *given: (trained.append(step.command), train(step, *given)))
    with pytest.raises(SystemExit, match="0"):
        main(command)
    assert trained == ["sft", "grpo"]  # of the second arm; RL alone had been trained before
    found = json.loads((output / "small-domains" / "table.json").read_text())
    assert [row["seeds"] for row in found["domains"][0]["rows"]] == [[0], [0], [0]]
    runs = runs_of(read_study(str(tmp_path / "small.yaml")), read_domains(str(tmp_path / "domains.yaml")))
    results = {run.arm: result_of(run, output) for run in runs}
    assert [row["step"] for row in results["RL"]["curve"]] == [1, 2]  # type: ignore[index]
    assert not list(output.rglob("checkpoint-*"))
    assert results["base"]["curve"] == []  # type: ignore[index]
    assert len(results["both"]["sampled"]) == 6  # type: ignore[index]
    ElementTree.parse(output / "small-domains" / "plot.svg")


def test_the_command_refuses_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    from perception_r1.cli import main

    with pytest.raises(SystemExit, match="2"):
        main(["study", "matchng"])
    assert "study 'matchng' is not known" in capsys.readouterr().err


def test_the_help_names_every_study() -> None:
    assert sorted(commands_study.STUDIES) == sorted(STUDIES)
