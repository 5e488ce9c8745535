"""A truth that is a bare count: every figure about the number of answers works, and nothing that needs a place pretends to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from perception_r1.cli import app
from perception_r1.data.check import check_file, counts_right
from perception_r1.data.mixture import load_data
from perception_r1.data.samples import write_samples
from perception_r1.dialects import DIALECTS
from perception_r1.evaluation.metrics import Reading, statistics
from perception_r1.evaluation.probe import log10_mean_factorial, perplexities
from perception_r1.evaluation.report import write_report
from perception_r1.evaluation.run import evaluate
from perception_r1.records import Answer, BadData, Sample, Truth
from perception_r1.tasks import make_task
from perception_r1.training import grpo, sft
from perception_r1.visualize import MATCHED, UNMATCHED, draw

COUNTS = (0, 2, 3, 10)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sample of each of COUNTS, as PixMo-Count's test split holds them."""
    Image.new("RGB", (200, 100), "white").save(tmp_path / "a.png")
    samples = [
        Sample(id=str(n), task="counting", image="a.png", width=200, height=100, query="goose", truth=Truth(count=n), root=tmp_path) for n in COUNTS
    ]
    write_samples(samples, tmp_path / "test.jsonl")
    return tmp_path / "test.jsonl"


def listed(number: int) -> str:
    return "".join(f"({k},{k}),({k + 9},{k + 9})" for k in range(number)) or "none"


def answers(file: Path, texts: dict[int, str]) -> Path:
    path = file.with_name("answers.jsonl")
    path.write_text("".join(json.dumps({"id": str(n), "completion": text}) + "\n" for n, text in texts.items()))
    return path


def test_count_metrics_are_those_of_the_numbers_and_no_distance_is_made_up(file: Path, tmp_path: Path) -> None:
    said = {0: "none", 2: listed(2), 3: listed(5), 10: "I see ten geese."}
    found = evaluate(data=str(file), predictions=answers(file, said), output=tmp_path / "out")["metrics"]
    errors = np.array([0, 0, 2, 10])  # what cannot be read is as far off as nothing
    assert found["count_acc"]["value"] == 0.5
    assert found["count_mae"]["value"] == errors.mean()
    assert found["count_rmse"]["value"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert found["parse_failure_rate"]["value"] == 0.25
    assert found["count_within1"]["value"] == 0.5
    assert not [name for name in found if "distance" in name]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"] == found


def test_counts_and_places_are_not_averaged_into_one_figure(file: Path) -> None:
    bare = load_data(str(file))[1]
    placed = Sample(**{**bare.__dict__, "id": "p", "truth": Truth(points=[[1, 2]], labels=("goose",))})
    with pytest.raises(BadData, match="2 by its count and p by its points: split the file"):
        statistics(make_task("counting"), [bare, placed], [Reading(Answer()), Reading(Answer())])


def test_the_check_accepts_it_in_every_dialect_and_says_what_it_is_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = check_file(file)
    assert (report.problems.problems, report.counted, report.objects) == ([], 4, {"counting": sum(COUNTS)})
    ran = CliRunner().invoke(app, ["check", str(file)])
    assert ran.exit_code == 0
    assert "4 samples hold a bare count" in ran.output
    monkeypatch.setattr(type(DIALECTS["plain"]), "read", lambda *_: Answer(bad=1))
    assert not any(counts_right(make_task("counting", dialect="plain"), sample) for sample in load_data(str(file)))


@pytest.mark.parametrize("train", [grpo.run, sft.run])
def test_training_refuses_it_in_one_line_before_a_model_is_loaded(train: Any, file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: tiny\ndata: {file}\noutput_dir: {tmp_path / 'run'}\nuse_cpu: true\nbf16: false\n")
    with pytest.raises(BadData, match="4 of 4 samples hold a bare count, without places, so no answer earns a reward") as caught:
        train(str(recipe))
    assert "\n" not in str(caught.value)


def test_a_reward_and_a_written_answer_are_refused_by_name(file: Path) -> None:
    from perception_r1.evaluation.score import ScoreSettings, score_file

    with pytest.raises(BadData, match="sample 2: its truth is a count without places, so no answer earns a reward"):
        list(score_file(file, ScoreSettings(), answers(file, {2: listed(2)})))
    sample, settings = load_data(str(file))[1], ScoreSettings()
    with pytest.raises(BadData, match="a count without places"):
        settings.tasks["counting"].write(sample, settings.frame(sample))


def test_its_perplexity_is_that_of_as_many_placed_objects(file: Path) -> None:
    (found,) = perplexities(load_data(str(file)))
    assert (found.objects, found.most) == (15, 10)
    assert found.log10 == pytest.approx(log10_mean_factorial(dict.fromkeys(COUNTS, 1)))


def colours(picture: Image.Image) -> set[str]:
    return {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in picture.getcolors(picture.width * picture.height) or ()}


def test_a_picture_shows_whether_the_number_is_right_and_no_truth_is_drawn() -> None:
    image, three = Image.new("RGB", (64, 64), "white"), Answer(boxes=np.array([[1, 1, 9, 9], [20, 20, 30, 30], [40, 40, 60, 60]]), labels=("",) * 3)
    assert colours(draw(image, truth=Truth(count=3))) == {"#ffffff"}
    assert MATCHED in colours(draw(image, truth=Truth(count=3), answer=three))
    assert UNMATCHED in colours(draw(image, truth=Truth(count=4), answer=three))
    assert MATCHED not in colours(draw(image, truth=Truth(count=4), answer=three))


def test_pages_of_answers_and_reports_name_the_count(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    ran = CliRunner().invoke(app, ["show", str(file), "--answers", str(answers(file, {3: listed(2)})), "-o", str(out)])
    assert ran.exit_code == 0, ran.output
    assert "truth: 3 of them, without places" in out.read_text()
    two = Answer(boxes=np.array([[1.0, 1, 9, 9], [20, 20, 30, 30]]), labels=("", ""))
    picture = {"image": Image.new("RGB", (64, 64)), "truth": Truth(count=3), "before": None, "after": two}
    path = write_report(tmp_path, title="t", curves={}, metrics_before={}, metrics_after={}, paired={}, pictures=[picture], notes=[])
    assert "2 boxes; 3 objects counted" in path.read_text()
