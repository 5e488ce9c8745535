"""One way from settings to rewards: what training, score, probe, show, the demo and other
trainers make of the same settings.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.test_cli import Ran

from perception_r1.cli import main
from perception_r1.data.mixture import load_data
from perception_r1.dialects import dialect_named, frame_of
from perception_r1.engines import Rewards
from perception_r1.evaluation.asking import Reply
from perception_r1.evaluation.probe import ProbeSettings, probe, sampled_groups
from perception_r1.evaluation.score import ScoreSettings
from perception_r1.records import BadData
from perception_r1.rewards import RewardSettings

SIDES: dict[str, Any] = {"image": "a.png", "width": 100, "height": 80, "query": "dog"}
ROWS: dict[str, dict[str, Any]] = {
    "grounding": SIDES | {"truth": {"boxes": [[10, 10, 50, 50]]}},
    "counting": SIDES | {"truth": {"boxes": [[10, 10, 50, 50], [60, 60, 80, 80]]}},
    "detection": SIDES | {"query": "", "truth": {"boxes": [[10, 10, 50, 50]], "labels": ["dog"]}},
    "ocr": SIDES | {"query": "", "truth": {"text": "a page"}},
}
NEAR = "dog: [10, 10, 50, 42]"
"""An answer whose IoU with the true box is 0.8."""


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ran(int(left.value.code or 0), out, err)

    return run


def data(*tasks: str, **fields: Any) -> Path:
    path = Path("data.jsonl")
    rows = [
        ROWS[task] | {"id": f"{task}-{k}", "task": task} | fields for k, task in enumerate(tasks)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (100, 80)).save("a.png")
    return path


# --- what belongs to some tasks only --------------------------------------------------------------
def test_a_weight_is_for_the_tasks_that_have_its_term() -> None:
    tasks = RewardSettings(weights={"iou": 2, "distance": 0.5, "format": 0}).tasks_named(
        ["grounding", "counting"]
    )
    assert (tasks["grounding"].weights, tasks["counting"].weights) == (
        {"iou": 2, "format": 0},
        {"distance": 0.5, "format": 0},
    )


UNUSED = {
    "a term of no task there": (
        {"weights": {"iou": 2}},
        ["counting"],
        "weights: counting has no term iou: expected format, distance",
    ),
    "of two": (
        {"weights": {"edit": 2}},
        ["counting", "grounding"],
        "counting and grounding have no term edit: expected format, distance, iou",
    ),
    "a shape": (
        {"iou_shape": "giou"},
        ["counting", "ocr"],
        "iou_shape 'giou' is for grounding, found it for samples of counting and ocr",
    ),
}


@pytest.mark.parametrize("case", UNUSED)
def test_a_setting_that_no_task_of_the_data_has_is_refused_by_every_command(
    case: str, run: Callable[..., Ran]
) -> None:
    settings, tasks, message = UNUSED[case]
    with pytest.raises(BadData, match=message) as error:
        RewardSettings(**settings).tasks_named(tasks)
    assert "\n" not in str(error.value)
    with pytest.raises(BadData, match=message):
        probe(str(data(*tasks)), settings=ProbeSettings(**settings))
    name, value = next(iter(settings.items()))
    said = (
        value
        if isinstance(value, str)
        else ",".join(f"{term}={weight}" for term, weight in value.items())
    )
    words = [f"--{name.replace('_', '-')}", said]
    data(*tasks, completion="none")
    for command in (
        ["score", "data.jsonl"],
        ["show", "data.jsonl", "-o", "x.html"],
        ["probe", "--data", "data.jsonl"],
    ):
        ran = run(*command, *words)
        assert ran.code == 1
        assert message in ran.err
        assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("case", UNUSED)
def test_training_refuses_it_before_a_model_is_loaded(case: str, run: Callable[..., Ran]) -> None:
    dataset = pytest.importorskip("perception_r1.training.dataset")
    settings, tasks, message = UNUSED[case]
    samples = load_data(str(data(*tasks)))
    with pytest.raises(BadData, match=message):
        dataset.tasks_for(samples, dialect=dialect_named("plain"), **settings)


def test_a_mixture_trains_with_weights_of_terms_that_some_of_its_tasks_have(
    run: Callable[..., Ran],
) -> None:
    dataset = pytest.importorskip("perception_r1.training.dataset")
    samples = load_data(str(data("grounding", "counting", "ocr")))
    weights = {"iou": 2.0, "edit": 0.0, "format": 0.5}
    tasks = dataset.tasks_for(
        samples, dialect=dialect_named("plain"), iou_shape="squared", weights=weights
    )
    scored = ScoreSettings(dialect="plain", iou_shape="squared", weights=weights)
    assert set(tasks) == {"grounding", "counting", "ocr"}
    for sample in samples:
        frame = frame_of(sample.width, sample.height, dialect_named("plain"))
        found = tasks[sample.task].score(NEAR, sample, frame)
        assert found == scored.score(NEAR, sample)
        assert "edit" not in found.terms


@pytest.mark.parametrize("words, message", [
    (["--iou_shape", "dice"], "iou_shape 'dice' is not known"),
    (["--weights", "giou=1"], "no task has the term 'giou'"),
    (["--weights", "iou=-1"], "expected a finite number of at least 0"),
    (["--dialect", "klingon"], "dialect 'klingon' is not known"),
])  # fmt: skip
def test_a_recipe_with_no_such_setting_is_refused_before_any_data_is_read(
    words: list[str], message: str, run: Callable[..., Ran]
) -> None:
    pytest.importorskip("trl")
    Path("mine.yaml").write_text("model: tiny\ndata: nowhere.jsonl\nuse_cpu: true\nbf16: false\n")
    ran = run("grpo", "mine.yaml", *words)
    assert ran.code == 1
    assert message in ran.err.splitlines()[-1]


@pytest.mark.parametrize("key, value", [("iou_shape", "giou"), ("weights", "iou=1"), ("matching", "best")])
def test_supervised_training_refuses_settings_of_a_reward(key: str, value: str, run: Callable[..., Ran]) -> None:
    pytest.importorskip("trl")
    ran = run("sft", "tiny-sft", f"--{key}", value)
    assert ran.code == 1
    assert ran.err.splitlines()[-1].endswith(f"{key} is a key of perception-r1 grpo, not of this command: leave it out")


# --- the same reward everywhere -------------------------------------------------------------------
SHAPES = {"iou": 0.8, "squared": 0.64, "giou": 0.9, "thresholded": 1.0}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_iou_shape_earns_the_same_wherever_it_is_asked_for(
    shape: str, run: Callable[..., Ran]
) -> None:
    data("grounding", completion=NEAR)
    line = json.loads(run("score", "data.jsonl", "--dialect", "plain", "--iou-shape", shape).out)
    assert line["terms"]["iou"] == pytest.approx(SHAPES[shape])
    row = json.loads(Path("data.jsonl").read_text())
    assert Rewards(dialect="plain", iou_shape=shape).verl("x", NEAR, row)["score"] == line["total"]
    assert (
        run("show", "data.jsonl", "--dialect", "plain", "--iou-shape", shape, "-o", "x.html").code
        == 0
    )
    assert f"iou {SHAPES[shape]:.3f}" in Path("x.html").read_text()
    (sample,) = load_data("data.jsonl")
    backend = Answering(NEAR)
    (group,) = sampled_groups(backend, [sample], ProbeSettings(iou_shape=shape, num_generations=2))
    assert [score.total for score in group.scores] == [line["total"]] * 2


class Answering:
    """A model that says one thing."""

    name, dialect, settings = "one", dialect_named("plain"), SimpleNamespace(get=lambda _: None)

    def __init__(self, text: str) -> None:
        self.text = text

    def generate(
        self, prompts: Sequence[str], images: Sequence[Image.Image], *, samples: int, **_: Any
    ) -> list[Reply]:
        frames = [frame_of(*image.size, self.dialect) for image in images for _ in range(samples)]
        return [Reply(self.text, "stop", frame) for frame in frames]


def test_the_demo_takes_the_reward_of_a_run() -> None:
    policies = pytest.importorskip("perception_r1.demo.policies")
    reward = RewardSettings(weights={"iou": 3}, iou_shape="squared", matching="greedy").about()
    policy = policies.Policy(title="Policy", name="one", backend=Answering(NEAR), reward=reward)
    task = policy.task("grounding")
    assert (task.iou_shape, task.weights, policy.task("counting").matching) == (
        "squared",
        {"iou": 3},
        "greedy",
    )


def test_every_reward_setting_of_a_recipe_is_an_option_of_every_command_that_computes_one() -> None:
    typer_main = pytest.importorskip("typer.main")
    from perception_r1.cli import app

    commands = typer_main.get_command(app).commands
    for command in ("score", "show", "probe", "demo"):
        options = {parameter.name for parameter in commands[command].params}
        assert {
            "matching",
            "iou_shape",
            "weights",
            "thinking",
            "dialect",
            "min_pixels",
            "max_pixels",
        } <= options, command
    fields = {"matching", "iou_shape", "weights", "thinking", "dialect", "min_pixels", "max_pixels"}
    assert fields == set(ScoreSettings.__dataclass_fields__)
    recipe = pytest.importorskip("perception_r1.training.recipe")
    assert fields <= set(recipe.RecipeArguments.__dataclass_fields__)


def test_what_a_reward_was_is_said_as_json() -> None:
    settings = RewardSettings(weights={"iou": np.float64(2)}, iou_shape="giou")
    assert json.loads(json.dumps(settings.about())) == {
        "matching": "hungarian",
        "iou_shape": "giou",
        "weights": {"iou": 2.0},
    }
    assert RewardSettings(**settings.about()).about() == settings.about()
