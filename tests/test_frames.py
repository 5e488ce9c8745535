"""The size seen: carried wherever answers go, demanded where it is missing and matters, and
never assumed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.test_cli import Ran

from perception_r1.cli import main
from perception_r1.dialects import DIALECTS, frame_of, smart_resize
from perception_r1.evaluation.run import evaluate
from perception_r1.records import Frame, Sample, Truth
from perception_r1.tasks import make_task

SIZE = (1600, 1200)
SEEN = (812, 588)
"""What a processor with at most 501,760 pixels makes of it; a million gives 1148 x 840."""
BOX = [200.0, 300.0, 900.0, 1000.0]
ROW: dict[str, Any] = {
    "task": "grounding",
    "image": "a.png",
    "width": 1600,
    "height": 1200,
    "query": "dog",
}
ROW |= {"truth": {"boxes": [BOX]}}
DIALECT = "qwen2.5-vl"


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*words: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ran(int(left.value.code or 0), out, err)

    return run


def lines(name: str | Path, *rows: Any) -> Path:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path(name)


def right(seen: tuple[int, int]) -> str:
    """The true box, as a model writes it that saw the image at this size."""
    frame = Frame(width=1600, height=1200, seen_width=seen[0], seen_height=seen[1])
    truth = Truth(boxes=np.array([BOX]), labels=("dog",))
    sample = Sample(
        id="a", task="grounding", image="a.png", width=1600, height=1200, query="dog", truth=truth
    )
    return make_task("grounding", dialect=DIALECT).write(sample, frame)


def answer(name: str, size: tuple[int, int], **fields: Any) -> dict[str, Any]:
    return {"id": name, "completion": right(size)} | fields


def totals(ran: Ran) -> list[float]:
    assert ran.code == 0, ran.err
    return [json.loads(line)["total"] for line in ran.out.splitlines()]


# --- score ----------------------------------------------------------------------------------------
def test_score_reads_each_answer_at_the_size_that_it_states(run: Callable[..., Ran]) -> None:
    lines("s.jsonl", ROW | {"id": "a"}, ROW | {"id": "b"})
    lines("a.jsonl", answer("a", SEEN, seen=SEEN), answer("b", (1148, 840), seen=(1148, 840)))
    ran = run("score", "s.jsonl", "--answers", "a.jsonl", "--dialect", DIALECT)
    assert totals(ran) == [2, 2]
    assert ran.err.splitlines()[-1] == "sizes at which the model saw the images: 2 stated (seen)"


def test_score_of_lines_that_hold_both_reads_seen_as_well(run: Callable[..., Ran]) -> None:
    lines("both.jsonl", ROW | answer("a", SEEN, seen=SEEN))
    assert totals(run("score", "both.jsonl", "--dialect", DIALECT)) == [2]


def test_rows_with_and_without_a_size_are_read_row_by_row(run: Callable[..., Ran]) -> None:
    lines("s.jsonl", ROW | {"id": "a"}, ROW | {"id": "b"}, ROW | {"id": "c"})
    limits = smart_resize(*SIZE, factor=28, min_pixels=3136, max_pixels=200_000)
    lines(
        "a.jsonl", answer("a", SEEN, seen=SEEN), answer("b", limits), answer("c", limits, seen=None)
    )
    words = ["score", "s.jsonl", "--answers", "a.jsonl", "--dialect", DIALECT]
    ran = run(*words, "--max-pixels", 200_000)
    assert totals(ran) == [2, 2, 2]
    assert "1 stated (seen), 2 computed, between 3,136 and 200,000 pixels (--max-pixels)" in ran.err
    refused = run(*words, "-o", "out.jsonl")
    assert refused.code == 1
    assert refused.err.startswith(
        "error: a.jsonl:2: sample 'b': qwen2.5-vl writes pixels of the resized image"
    )
    assert '"seen": [width, height]' in refused.err
    assert "--max-pixels" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not Path("out.jsonl").exists()


def test_what_an_answer_states_goes_before_what_its_sample_does(run: Callable[..., Ran]) -> None:
    lines("s.jsonl", ROW | {"id": "a", "seen": [1148, 840]}, ROW | {"id": "b", "seen": SEEN})
    lines("a.jsonl", answer("a", SEEN, seen=SEEN), answer("b", SEEN))
    assert totals(run("score", "s.jsonl", "--answers", "a.jsonl", "--dialect", DIALECT)) == [2, 2]
    found = evaluate(
        data="s.jsonl", predictions="a.jsonl", output="run", dialect=DIALECT, resamples=5
    )
    assert found["metrics"]["mean_iou"]["value"] > 0.99


NO_SIZES = {
    "one": [812],
    "three": [812, 588, 3],
    "zero": [0, 588],
    "negative": [-812, 588],
    "a flag": [True, 588],
}
NO_SIZES |= {
    "text": "812x588",
    "text sides": ["812", "588"],
    "a fraction": [812.5, 588],
    "a mapping": {"w": 1},
}
NO_SIZES |= {"beyond any image": [10**12, 588], "empty": []}


@pytest.mark.parametrize("seen", NO_SIZES.values(), ids=NO_SIZES)
def test_a_size_that_is_none_names_file_line_and_id(seen: Any, run: Callable[..., Ran]) -> None:
    lines("s.jsonl", ROW | {"id": "a"}, ROW | {"id": "b"})
    lines("a.jsonl", answer("a", SEEN, seen=SEEN), answer("b", SEEN, seen=seen))
    lines("both.jsonl", ROW | answer("a", SEEN, seen=SEEN), ROW | answer("b", SEEN, seen=seen))
    for words in (
        ["score", "s.jsonl", "--answers", "a.jsonl"],
        ["evaluate", "--predictions", "a.jsonl", "--data", "s.jsonl", "-o", "run"],
    ):
        ran = run(*words, "--dialect", DIALECT)
        assert ran.code == 1
        assert "a.jsonl:2: sample 'b': found seen " in ran.err
        assert "expected [width, height]" in ran.err
        assert len(ran.err.splitlines()) == 1
    for words in (
        ["score", "both.jsonl"],
        ["evaluate", "--predictions", "both.jsonl", "-o", "run"],
    ):
        ran = run(*words, "--dialect", DIALECT)
        assert ran.code == 1
        assert "both.jsonl:2: sample 'b': field seen: found " in ran.err


SAYS_NOTHING = {
    "no boxes": ("grounding", {"boxes": [BOX]}, ""),
    "an end token alone": ("grounding", {"boxes": [BOX]}, "<|im_end|>"),
    "a page": ("ocr", {"text": "a page of words"}, "a page of words"),
}


@pytest.mark.parametrize("case", SAYS_NOTHING)
def test_nobody_is_asked_for_a_size_that_changes_nothing(
    case: str, run: Callable[..., Ran]
) -> None:
    task, truth, completion = SAYS_NOTHING[case]
    lines("s.jsonl", ROW | {"id": "a", "task": task, "truth": truth, "completion": completion})
    assert run("score", "s.jsonl", "--dialect", DIALECT).code == 0
    found = evaluate(predictions="s.jsonl", output="run", dialect=DIALECT, resamples=5)
    assert found["model"]["image"]["needed"] is False
    assert "seen" not in json.loads(Path("run/answers.jsonl").read_text())


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != DIALECT])
def test_no_other_dialect_needs_a_size(dialect: str, run: Callable[..., Ran]) -> None:
    task = make_task("grounding", dialect=dialect)
    truth = Truth(boxes=np.array([BOX]), labels=("dog",))
    sample = Sample(
        id="a", task="grounding", image="a.png", width=1600, height=1200, query="dog", truth=truth
    )
    text = task.write(sample, frame_of(*SIZE, task.dialect))
    lines("s.jsonl", ROW | {"id": "a", "completion": text})
    ran = run("score", "s.jsonl", "--dialect", dialect)
    assert totals(ran) == [2]
    assert ran.err == "1 completions, mean total 2.0000, malformed 0\n"


# --- evaluate -------------------------------------------------------------------------------------
def test_evaluate_carries_the_size_that_a_file_states(run: Callable[..., Ran]) -> None:
    lines("s.jsonl", ROW | {"id": "a"}, ROW | {"id": "b"}, ROW | {"id": "c"})
    lines("a.jsonl", answer("b", SEEN, seen=SEEN), answer("a", SEEN, seen=SEEN))  # c has no answer
    found = evaluate(
        data="s.jsonl", predictions="a.jsonl", output="run", dialect=DIALECT, resamples=5
    )
    assert found["metrics"]["mean_iou"]["value"] == pytest.approx(2 / 3, abs=0.01)
    assert found["model"]["image"] == {
        "min_pixels": None, "max_pixels": None, "needed": False, "stated": 2, "computed": 0,
    }  # fmt: skip
    written = [json.loads(line) for line in Path("run/answers.jsonl").read_text().splitlines()]
    assert [row.get("seen") for row in written] == [list(SEEN), list(SEEN), None]
    again = evaluate(
        data="s.jsonl", predictions="run/answers.jsonl", output="two", dialect=DIALECT, resamples=5
    )
    assert again["metrics"] == found["metrics"]
    assert totals(
        run("score", "s.jsonl", "--answers", "run/answers.jsonl", "--dialect", DIALECT)
    ) == [2, 2, 0]


def test_a_size_is_carried_in_a_dialect_that_does_not_need_it(run: Callable[..., Ran]) -> None:
    lines("s.jsonl", ROW | {"id": "a"})
    lines("a.jsonl", answer("a", SEEN, seen=SEEN))
    evaluate(data="s.jsonl", predictions="a.jsonl", output="run", dialect="qwen3-vl", resamples=5)
    found = evaluate(
        data="s.jsonl", predictions="run/answers.jsonl", output="two", dialect=DIALECT, resamples=5
    )
    assert found["metrics"]["mean_iou"]["value"] > 0.99


def test_evaluate_demands_the_limit_for_answers_without_a_size_and_records_it(
    run: Callable[..., Ran],
) -> None:
    lines("s.jsonl", ROW | {"id": "a"}, ROW | {"id": "b"})
    lines("a.jsonl", answer("a", (1148, 840), seen=(1148, 840)), answer("b", SEEN))
    words = [
        "evaluate",
        "--predictions",
        "a.jsonl",
        "--data",
        "s.jsonl",
        "--dialect",
        DIALECT,
        "-o",
        "run",
    ]
    refused = run(*words)
    assert refused.code == 1
    assert (
        "a.jsonl: 1 of 2 answers, first that to 'b': qwen2.5-vl writes pixels of the resized image"
        in refused.err
    )
    assert "--max-pixels" in refused.err
    assert not Path("run/metrics.json").exists()
    told = run(*words, "--max-pixels", 501_760)
    assert "1 stated (seen), 1 computed, between 3,136 and 501,760 pixels" in told.out
    found = json.loads(Path("run/metrics.json").read_text())
    assert found["metrics"]["mean_iou"]["value"] > 0.99
    assert (found["settings"]["min_pixels"], found["settings"]["max_pixels"]) == (3136, 501_760)
    assert found["model"]["image"] == {
        "min_pixels": 3136, "max_pixels": 501_760, "needed": True, "stated": 1, "computed": 1,
    }  # fmt: skip
    assert any("1 stated (seen), 1 computed" in note for note in found["notes"])
    written = [json.loads(line) for line in Path("run/answers.jsonl").read_text().splitlines()]
    assert [row["seen"] for row in written] == [[1148, 840], list(SEEN)]


@pytest.mark.parametrize(
    "limits, message",
    [((9, 8), "1 <= min <= max"), ((None, 2000), "min_pixels 3136 and max_pixels 2000")],
)
def test_limits_that_are_none_are_refused_everywhere(
    limits: tuple[int | None, int], message: str, run: Callable[..., Ran]
) -> None:
    lines("s.jsonl", ROW | answer("a", SEEN))
    words = [
        word
        for name, value in zip(("--min-pixels", "--max-pixels"), limits, strict=True)
        if value
        for word in (name, value)
    ]
    Image.new("RGB", SIZE).save("a.png")
    for command in (
        ["score", "s.jsonl"],
        ["evaluate", "--predictions", "s.jsonl", "-o", "run"],
        ["show", "s.jsonl", "-o", "x.html"],
    ):
        ran = run(*command, "--dialect", DIALECT, *words)
        assert ran.code in (1, 2)
        assert message in ran.err


# --- show -----------------------------------------------------------------------------------------
def test_show_reads_the_answer_at_the_size_that_it_states(run: Callable[..., Ran]) -> None:
    Image.new("RGB", SIZE).save("a.png")
    lines("s.jsonl", ROW | {"id": "a"})
    lines("a.jsonl", answer("a", SEEN, seen=SEEN))
    words = ["show", "s.jsonl", "--answers", "a.jsonl", "--dialect", DIALECT, "-o", "x.html"]
    assert run(*words).code == 0
    assert "total 2.000" in Path("x.html").read_text()
    lines("a.jsonl", answer("a", SEEN))
    refused = run(*words)
    assert refused.code == 1
    assert "a.jsonl:1: sample 'a': qwen2.5-vl writes pixels" in refused.err
    assert run(*words, "--max-pixels", 501_760).code == 0
    assert "total 2.000" in Path("x.html").read_text()
