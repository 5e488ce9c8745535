"""The probe: perplexity is exact arithmetic's, and what it says of a policy is what its answers really earn."""

import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perception_r1.cli import main
from perception_r1.data.mixture import Mixture, Part
from perception_r1.data.samples import read_samples, write_samples
from perception_r1.dialects import dialect_named, frame_of
from perception_r1.evaluation.probe import Group, ProbeSettings, headroom, log10_mean_factorial, perplexities, probe, sampled_groups, scientific
from perception_r1.records import BadData, Sample, Score, Truth
from perception_r1.tasks import make_task


def exact(counts: Sequence[int]) -> Fraction:
    """The mean of n! in whole numbers."""
    return Fraction(sum(math.factorial(n) for n in counts), len(counts))


def log10(number: Fraction) -> float:
    return math.log10(number.numerator) - math.log10(number.denominator)  # of whole numbers of any size


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return int(left.value.code or 0)


# --- perplexity ------------------------------------------------------------------------------------------------------
@given(counts=st.lists(st.integers(0, 400), min_size=1, max_size=30))
def test_the_log_sum_is_exact_arithmetic_at_any_size(counts: list[int]) -> None:
    assert log10_mean_factorial(Counter(counts)) == pytest.approx(log10(exact(counts)), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("task", ["detection", "counting"])
def test_on_coco_it_is_the_mean_factorial_of_the_official_annotations(task: str, data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    root = data_folder("coco_val206")
    content = json.loads((root / "instances.json").read_text())
    notes = content["annotations"]
    if task == "detection":
        per_image = Counter(note["image_id"] for note in notes if not note["iscrowd"])
        counts = [per_image[image["id"]] for image in content["images"]]
    else:
        crowded = {(note["image_id"], note["category_id"]) for note in notes if note["iscrowd"]}
        pairs = Counter((note["image_id"], note["category_id"]) for note in notes)
        counts = [count for pair, count in pairs.items() if pair not in crowded]
    (found,) = probe(f"coco:{root}?task={task}")["perplexity"]
    assert (found["task"], found["samples"], found["objects"], found["most"]) == (task, len(counts), sum(counts), max(counts))
    assert found["log10"] == pytest.approx(log10(exact(counts)), rel=1e-12)
    assert found["mean"] == pytest.approx(float(exact(counts)), rel=1e-9)
    largest = Fraction(counts.count(max(counts)) * math.factorial(max(counts)), sum(map(math.factorial, counts)))
    assert found["largest_share"] == pytest.approx(float(largest), rel=1e-9)


def boxes(count: int) -> Truth:
    return Truth(boxes=np.array([[k, 0, k + 1, 1] for k in range(count)]), labels=("dog",) * count)


def sample(name: str, truth: Truth, task: str = "counting", **fields: Any) -> Sample:
    return Sample(id=name, task=task, image="a.png", width=300, height=40, query="dog", truth=truth, **fields)


def test_a_question_with_one_answer_has_one_matching_as_the_paper_says_of_grounding_and_ocr() -> None:
    samples = [sample("a", boxes(1), "grounding"), sample("b", boxes(0), "grounding"), sample("c", Truth(text="a page of words"), "ocr")]
    found = perplexities(Mixture((Part(name="x", samples=samples, weight=1),)))
    assert [(entry.task, entry.mean) for entry in found] == [("grounding", pytest.approx(1)), ("ocr", pytest.approx(1))]


def test_each_source_has_its_own_and_points_count_as_boxes_do_and_crowds_do_not() -> None:
    crowd = sample("c", boxes(3), "detection", crowd=(False, True, False))
    points = sample("p", Truth(points=np.ones((4, 2)), labels=("dog",) * 4), source="pixmo")
    parts = Part(name="x", samples=[crowd, points], weight=1), Part(name="y", samples=[sample("q", boxes(5))], weight=1)
    found = {(entry.data, entry.source, entry.task): (entry.mean, entry.objects) for entry in perplexities(Mixture(parts))}
    assert found == {
        ("x", None, "detection"): (pytest.approx(2), 2),
        ("x", "pixmo", "counting"): (pytest.approx(24), 4),
        ("y", None, "counting"): (pytest.approx(120), 5),
    }


def test_a_mean_beyond_float64_has_its_log_alone_and_is_still_written() -> None:
    (found,) = perplexities(Mixture((Part(name="x", samples=[sample("a", boxes(200))], weight=1),)))
    assert found.mean is None
    assert scientific(found.log10) == "7.89e+374"  # 200! = 7886578…, 375 digits
    assert scientific(math.log10(9.999e20)) == "1.00e+21"


def test_without_a_model_it_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    write_samples([sample("a", boxes(4)), sample("b", boxes(2))], tmp_path / "s.jsonl")
    assert command("probe", "--data", tmp_path / "s.jsonl", "-o", tmp_path / "probe.json") == 0
    assert json.loads((tmp_path / "probe.json").read_text())["perplexity"][0]["mean"] == pytest.approx(13)
    assert "counting: 13.0 matchings on average; 92% of the mean" in capsys.readouterr().out


# --- the room for RL -------------------------------------------------------------------------------------------------
class Scripted:
    """A model that answers with given numbers of the true boxes, and remembers how it was asked."""

    def __init__(self, script: dict[str, list[int]]) -> None:
        self.script, self.asked = script, []
        self.dialect, self.settings, self.name = dialect_named("qwen2-vl"), {}, "scripted"

    def generate(self, prompts: Sequence[str], images: Sequence[Image.Image], *, samples: int, **how: Any) -> list[Any]:
        self.asked.append((len(prompts) * samples, how))
        replies = []
        for image in images:
            colour = image.getpixel((0, 0))
            assert isinstance(colour, tuple)
            for k in self.script[str(int(colour[0]))][:samples]:
                frame = frame_of(300, 40, self.dialect)
                text = make_task("counting").write(sample("", boxes(k)), frame) if k >= 0 else "no box"
                replies.append(SimpleNamespace(completion=text, frame=frame, finish="length" if k < 0 else "stop"))
        return replies


@pytest.fixture
def four(tmp_path: Path) -> list[Sample]:
    """Samples 0 to 3, each with two objects and an image of its own colour."""
    samples = []
    for k in range(4):
        Image.new("RGB", (300, 40), (k, 0, 0)).save(tmp_path / f"{k}.png")
        samples.append(Sample(id=str(k), task="counting", image=f"{k}.png", width=300, height=40, query="dog", truth=boxes(2), root=tmp_path))
    return samples


SCRIPT = {"0": [2, 2, 2, 2], "1": [2, 1, 2, -1], "2": [-1, -1, -1, -1], "3": [4, 2, 1, 1]}


def test_groups_earn_what_each_answer_earns_alone(four: list[Sample]) -> None:
    groups = list(sampled_groups(Scripted(SCRIPT), four, ProbeSettings(num_generations=4, batch_size=8)))
    # distance = matched / most: 2 of 2 right is 1, one of two 1/2, two of four 1/2; unreadable earns nothing, format either
    expected = {"0": [2, 2, 2, 2], "1": [2, 1.5, 2, 0], "2": [0, 0, 0, 0], "3": [1.5, 2, 1.5, 1.5]}
    assert {group.sample.id: [score.total for score in group.scores] for group in groups} == expected
    assert [group.cut for group in groups] == [0, 1, 4, 0]


def test_a_difficulty_is_mean_best_and_spread_of_the_total_and_of_each_term(four: list[Sample]) -> None:
    first, second, *_ = sampled_groups(Scripted(SCRIPT), four, ProbeSettings(num_generations=4))
    flat = {"mean": 1, "best": 1, "spread": 0}
    assert first.difficulty() == {"id": "0", "mean": 2, "best": 2, "spread": 0, "terms": {"format": flat, "distance": flat}}
    terms = {"format": {"mean": 0.75, "best": 1, "spread": 1}, "distance": {"mean": 0.625, "best": 1, "spread": 1}}
    assert second.difficulty() == {"id": "1", "mean": 1.375, "best": 2, "spread": 2, "terms": terms}


def test_the_room_is_what_the_groups_say(four: list[Sample]) -> None:
    settings = ProbeSettings(num_generations=4, groups_per_step=2)
    found = headroom(list(sampled_groups(Scripted(SCRIPT), four, settings)), settings)
    assert (found["samples"], found["least"], found["greatest"]) == (4, 0, 2)
    assert (found["mean"], found["best"]) == ((2 + 1.375 + 0 + 1.625) / 4, (2 + 2 + 0 + 2) / 4)
    assert (found["constant"], found["malformed"], found["cut"]) == (0.5, 5 / 16, 5 / 16)
    assert (found["terms"]["format"]["constant"], found["terms"]["distance"]["constant"]) == (0.75, 0.5)
    varies = [False, True, False, True]
    steps = [any(step) for step in itertools.product(varies, repeat=2)]
    assert found["useful_steps"] == sum(steps) / len(steps)


@pytest.mark.parametrize("batch_size, calls", [(1, [4, 4, 4, 4]), (8, [8, 8]), (11, [8, 8]), (100, [16])])
def test_a_batch_holds_whole_groups_and_the_seed_moves_with_them(batch_size: int, calls: list[int], four: list[Sample]) -> None:
    model = Scripted(SCRIPT)
    settings = ProbeSettings(num_generations=4, batch_size=batch_size, seed=7, temperature=0.7, max_new_tokens=9)
    groups = list(sampled_groups(model, four, settings))
    assert [group.sample.id for group in groups] == ["0", "1", "2", "3"]
    assert [count for count, _ in model.asked] == calls
    assert len({how["seed"] for _, how in model.asked}) == len(calls)
    assert {(how["temperature"], how["max_new_tokens"]) for _, how in model.asked} == {(0.7, 9)}


def test_weights_and_matching_are_those_of_the_reward(four: list[Sample]) -> None:
    settings = ProbeSettings(num_generations=4, weights={"format": 0, "distance": 3, "iou": 2})
    groups = list(sampled_groups(Scripted(SCRIPT), four, settings))
    assert [score.total for score in groups[1].scores] == [3, 1.5, 3, 0]
    found = headroom(groups, settings)
    assert (set(found["terms"]), found["greatest"]) == ({"distance"}, 3)


def group(*totals: float, problem: str | None = None, cut: int = 0) -> Group:
    """Answers whose format is right and whose distance makes up the rest."""
    scores = [Score(terms={"format": min(total, 1.0), "distance": max(total - 1, 0.0)}, problem=problem) for total in totals]
    return Group(sample("a", boxes(1)), scores, cut)


VERDICTS = {
    "solved": ([group(2, 2), group(2, 1.9)], "has nearly solved"),
    "unreadable": ([group(0, 0, problem="x")] * 5, "check the dialect"),
    "hopeless": ([group(0.1, 0.1)] * 5, "hardly ever earns anything"),
    "alike": ([group(1.2, 1.2)] * 9 + [group(1.2, 1.3)], "hardly differ: raise the temperature"),
    "flat": ([group(1.2, 1.21)] * 5, "expect little from RL"),
    "room": ([group(1.0, 1.8)] * 5, "RL has room: 0.40 can be gained"),
    "cut off": ([group(1.0, 1.8, cut=1)] * 5, "50% of answers are cut off"),
    "constant term": ([group(1.0, 1.8)] * 5, "Hardly ever varying within a group: format."),
}


@pytest.mark.parametrize("groups, words", VERDICTS.values(), ids=VERDICTS)
def test_the_verdict_says_it_in_plain_words(groups: list[Group], words: str) -> None:
    verdict = headroom(groups, ProbeSettings(num_generations=2))["verdict"]
    assert words in verdict
    assert "\n" not in verdict


BAD = {
    "one answer": ({"num_generations": 1}, "num_generations is 1: expected at least 2"),
    "greedy": ({"temperature": 0.0}, "temperature is 0.0: expected a finite number above 0"),
    "no groups": ({"groups_per_step": 0}, "groups_per_step is 0"),
    "no term": ({"weights": {"giou": 1}}, "no task has the term 'giou'"),
    "no matching": ({"matching": "x"}, "matching 'x' is not known"),
}


@pytest.mark.parametrize("settings, words", BAD.values(), ids=BAD)
def test_a_setting_that_cannot_be_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadData) as caught:
        ProbeSettings(**settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "words, message", [(["--num_generations", 1], "num_generations is 1"), (["--save-difficulty", "d.jsonl"], "--save-difficulty needs --model")]
)
def test_wrong_usage_is_one_line_and_nothing_is_written(
    words: list[Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("probe", "--data", "none.jsonl", *words) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_a_missing_image_is_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    write_samples([sample("a", boxes(1))], tmp_path / "s.jsonl")
    with pytest.raises(BadData, match=r"a\.png: found no such file"):
        probe(str(tmp_path / "s.jsonl"), model="no/model")


def test_the_bundled_policy_is_probed_from_the_command_line_and_its_seed_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    assert command("data", "scenes", "counting", "-n", 5, "-o", "s.jsonl") == 0
    words = ["probe", "--data", "s.jsonl", "--model", "tiny", "--device", "cpu", "--num_generations", 3, "--max-new-tokens", 48, "--limit", 3]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert command(*words, "--seed", seed, "--save-difficulty", f"{name}.jsonl", "-o", f"{name}.json") == 0
    lines = {name: Path(f"{name}.jsonl").read_text().splitlines() for name in "abc"}
    assert lines["a"] == lines["b"] != lines["c"]
    rows = [json.loads(line) for line in lines["a"]]
    assert len(rows) == 3
    assert {row["id"] for row in rows} < {sample.id for sample in read_samples("s.jsonl")}
    found = json.loads(Path("a.json").read_text())
    assert found["headroom"]["counting"]["mean"] == pytest.approx(sum(row["mean"] for row in rows) / 3)
    assert (found["settings"]["num_generations"], found["perplexity"][0]["samples"]) == (3, 5)
    assert all(row["mean"] <= row["best"] <= 2 and row["spread"] >= row["best"] - row["mean"] for row in rows)


def test_answers_that_share_their_prefill_are_the_answers_that_do_not(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from perception_r1.data.samples import open_image
    from perception_r1.data.scenes import scene_samples
    from perception_r1.evaluation.backends import TransformersBackend
    from perception_r1.training.rollouts import shared_prefill

    samples = scene_samples("counting", folder=tmp_path, n=3, seed=2, max_count=2)
    prompts, images = [make_task("counting").prompt(sample) for sample in samples], [open_image(sample) for sample in samples]
    found, prompts_at_once = [], []
    for sharing in (shared_prefill, None):
        backend, rows = TransformersBackend("tiny", device="cpu", sharing=sharing), []
        backend.model.register_forward_pre_hook(lambda _, __, given, rows=rows: rows.append(given["input_ids"].shape), with_kwargs=True)
        found.append(backend.generate(prompts, images, samples=4, temperature=1.0, seed=5, max_new_tokens=24, batch_size=12))
        prompts_at_once.append(next(count for count, tokens in rows if tokens > 1))
    assert found[0] == found[1]
    assert len({reply.completion for reply in found[0][:4]}) > 1
    assert prompts_at_once == [3, 12]
