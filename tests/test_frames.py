"""The size seen: carried wherever answers go, demanded where it is missing and matters, and never assumed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.chat_server import Act, said, serving
from tests.test_cli import Ran

from perception_r1.cli import main
from perception_r1.demo.policies import load_policies
from perception_r1.dialects import DIALECTS, frame_of, smart_resize
from perception_r1.evaluation.asking import Reply
from perception_r1.evaluation.journal import Journal
from perception_r1.evaluation.run import evaluate
from perception_r1.evaluation.server import ServerBackend
from perception_r1.frames import MAX_PIXELS, PixelLimits, ScaledBefore, stated_size
from perception_r1.records import BadData, Frame, Sample, Truth
from perception_r1.tasks import make_task

SIZE = (1600, 1200)
SEEN = (812, 588)
"""What a processor with at most 501,760 pixels makes of it; a million gives 1148 x 840."""
BOX = [200.0, 300.0, 900.0, 1000.0]
ROW: dict[str, Any] = {"task": "grounding", "image": "a.png", "width": 1600, "height": 1200, "query": "dog"}
ROW |= {"truth": {"boxes": [BOX]}}
DIALECT = "qwen2.5-vl"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
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
    sample = Sample(id="a", task="grounding", image="a.png", width=1600, height=1200, query="dog", truth=truth)
    return make_task("grounding", dialect=DIALECT).write(sample, frame)


def answer(name: str, size: tuple[int, int], **fields: Any) -> dict[str, Any]:
    return {"id": name, "completion": right(size)} | fields


def totals(ran: Ran) -> list[float]:
    assert ran.code == 0, ran.err
    return [json.loads(line)["total"] for line in ran.out.splitlines()]


# --- score ------------------------------------------------------------------------------------------------------------
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
    lines("a.jsonl", answer("a", SEEN, seen=SEEN), answer("b", limits), answer("c", limits, seen=None))
    words = ["score", "s.jsonl", "--answers", "a.jsonl", "--dialect", DIALECT]
    ran = run(*words, "--max-pixels", 200_000)
    assert totals(ran) == [2, 2, 2]
    assert "1 stated (seen), 2 computed, between 3,136 and 200,000 pixels (--max-pixels)" in ran.err
    refused = run(*words, "-o", "out.jsonl")
    assert refused.code == 1
    assert refused.err.startswith("error: a.jsonl:2: sample 'b': qwen2.5-vl writes pixels of the resized image")
    assert '"seen": [width, height]' in refused.err
    assert "--max-pixels" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not Path("out.jsonl").exists()


def test_what_an_answer_states_goes_before_what_its_sample_does(run: Callable[..., Ran]) -> None:
    lines("s.jsonl", ROW | {"id": "a", "seen": [1148, 840]}, ROW | {"id": "b", "seen": SEEN})
    lines("a.jsonl", answer("a", SEEN, seen=SEEN), answer("b", SEEN))
    assert totals(run("score", "s.jsonl", "--answers", "a.jsonl", "--dialect", DIALECT)) == [2, 2]
    found = evaluate(data="s.jsonl", predictions="a.jsonl", output="run", dialect=DIALECT, resamples=5)
    assert found["metrics"]["mean_iou"]["value"] > 0.99


NO_SIZES = {"one": [812], "three": [812, 588, 3], "zero": [0, 588], "negative": [-812, 588], "a flag": [True, 588]}
NO_SIZES |= {"text": "812x588", "text sides": ["812", "588"], "a fraction": [812.5, 588], "a mapping": {"w": 1}}
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
    for words in (["score", "both.jsonl"], ["evaluate", "--predictions", "both.jsonl", "-o", "run"]):
        ran = run(*words, "--dialect", DIALECT)
        assert ran.code == 1
        assert "both.jsonl:2: sample 'b': field seen: found " in ran.err


SAYS_NOTHING = {
    "no boxes": ("grounding", {"boxes": [BOX]}, ""),
    "an end token alone": ("grounding", {"boxes": [BOX]}, "<|im_end|>"),
    "a page": ("ocr", {"text": "a page of words"}, "a page of words"),
}


@pytest.mark.parametrize("case", SAYS_NOTHING)
def test_nobody_is_asked_for_a_size_that_changes_nothing(case: str, run: Callable[..., Ran]) -> None:
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
    sample = Sample(id="a", task="grounding", image="a.png", width=1600, height=1200, query="dog", truth=truth)
    text = task.write(sample, frame_of(*SIZE, task.dialect))
    lines("s.jsonl", ROW | {"id": "a", "completion": text})
    ran = run("score", "s.jsonl", "--dialect", dialect)
    assert totals(ran) == [2]
    assert ran.err == "1 completions, mean total 2.0000, malformed 0\n"


# --- evaluate ---------------------------------------------------------------------------------------------------------
def test_evaluate_carries_the_size_that_a_file_states(run: Callable[..., Ran]) -> None:
    lines("s.jsonl", ROW | {"id": "a"}, ROW | {"id": "b"}, ROW | {"id": "c"})
    lines("a.jsonl", answer("b", SEEN, seen=SEEN), answer("a", SEEN, seen=SEEN))  # c has no answer
    found = evaluate(data="s.jsonl", predictions="a.jsonl", output="run", dialect=DIALECT, resamples=5)
    assert found["metrics"]["mean_iou"]["value"] == pytest.approx(2 / 3, abs=0.01)
    assert found["model"]["image"] == {
        "min_pixels": None, "max_pixels": None, "needed": False, "stated": 2, "computed": 0,
    }  # fmt: skip
    written = [json.loads(line) for line in Path("run/answers.jsonl").read_text().splitlines()]
    assert [row.get("seen") for row in written] == [list(SEEN), list(SEEN), None]
    again = evaluate(data="s.jsonl", predictions="run/answers.jsonl", output="two", dialect=DIALECT, resamples=5)
    assert again["metrics"] == found["metrics"]
    assert totals(run("score", "s.jsonl", "--answers", "run/answers.jsonl", "--dialect", DIALECT)) == [2, 2, 0]


def test_a_size_is_carried_in_a_dialect_that_does_not_need_it(run: Callable[..., Ran]) -> None:
    lines("s.jsonl", ROW | {"id": "a"})
    lines("a.jsonl", answer("a", SEEN, seen=SEEN))
    evaluate(data="s.jsonl", predictions="a.jsonl", output="run", dialect="qwen3-vl", resamples=5)
    found = evaluate(data="s.jsonl", predictions="run/answers.jsonl", output="two", dialect=DIALECT, resamples=5)
    assert found["metrics"]["mean_iou"]["value"] > 0.99


def test_evaluate_demands_the_limit_for_answers_without_a_size_and_records_it(run: Callable[..., Ran]) -> None:
    lines("s.jsonl", ROW | {"id": "a"}, ROW | {"id": "b"})
    lines("a.jsonl", answer("a", (1148, 840), seen=(1148, 840)), answer("b", SEEN))
    words = ["evaluate", "--predictions", "a.jsonl", "--data", "s.jsonl", "--dialect", DIALECT, "-o", "run"]
    refused = run(*words)
    assert refused.code == 1
    assert "a.jsonl: 1 of 2 answers, first that to 'b': qwen2.5-vl writes pixels of the resized image" in refused.err
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


@pytest.mark.parametrize("limits, message", [((9, 8), "1 <= min <= max"), ((None, 2000), "min_pixels 3136 and max_pixels 2000")])
def test_limits_that_are_none_are_refused_everywhere(
    limits: tuple[int | None, int], message: str, run: Callable[..., Ran]
) -> None:
    lines("s.jsonl", ROW | answer("a", SEEN))
    words = [word for name, value in zip(("--min-pixels", "--max-pixels"), limits, strict=True) if value for word in (name, value)]
    Image.new("RGB", SIZE).save("a.png")
    for command in (["score", "s.jsonl"], ["evaluate", "--predictions", "s.jsonl", "-o", "run"], ["show", "s.jsonl", "-o", "x.html"]):
        ran = run(*command, "--dialect", DIALECT, *words)
        assert ran.code in (1, 2)
        assert message in ran.err


# --- show -------------------------------------------------------------------------------------------------------------
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


# --- what a run keeps -------------------------------------------------------------------------------------------------
DAMAGED = {"gone": None, "zero": [0, 588], "text": "812x588", "one": [812]}


@pytest.mark.parametrize("seen", DAMAGED.values(), ids=DAMAGED)
def test_a_kept_answer_whose_size_is_damaged_is_one_line(seen: Any, tmp_path: Path) -> None:
    truth = Truth(boxes=np.array([BOX]), labels=("dog",))
    sample = Sample(id="a", task="grounding", image="a.png", width=1600, height=1200, query="dog", truth=truth)
    frame = Frame(width=1600, height=1200, seen_width=812, seen_height=588)
    with Journal(tmp_path, [sample], {}, needs_size=True) as journal:
        journal.add(sample, Reply(right(SEEN), "stop", frame))
    row = json.loads((tmp_path / "answers.jsonl").read_text())
    lines(tmp_path / "answers.jsonl", row | {"seen": seen})
    with pytest.raises(BadData, match=r"answers\.jsonl:1: sample 'a': found seen .*, expected \[width, height\]") as error:
        Journal(tmp_path, [sample], {}, needs_size=True)
    assert "\n" not in str(error.value)


def test_a_size_that_nobody_knows_is_not_made_up(tmp_path: Path) -> None:
    """A server does not say to what it resizes, and a relative dialect does not ask: such answers are no source of sizes."""
    pytest.importorskip("openai")
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    data = lines(tmp_path / "s.jsonl", ROW | {"id": "a"})
    with serving(lambda body, _: Act(body=said(right(SEEN) + "<|im_end|>"))) as heard:
        options: dict[str, Any] = {"data": str(data), "server": heard.url, "output": tmp_path / "run", "resamples": 5}
        evaluate(**options, dialect="qwen3-vl")
        assert evaluate(**options, dialect="qwen3-vl")["metrics"]["parse_failure_rate"]["value"] == 0  # resumed
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert row["seen"] is None
    assert row["completion"] == right(SEEN)
    with pytest.raises(BadData, match="--max-pixels"):
        evaluate(data=str(data), predictions=tmp_path / "run" / "answers.jsonl", output=tmp_path / "two", dialect=DIALECT)


def test_a_server_needs_no_limit_for_pages(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with serving(lambda body, _: Act(body=said("words"))) as heard:
        backend = ServerBackend(heard.url, task="ocr", dialect=DIALECT)
        assert backend.about(7)["image"]["needed"] is False


def test_the_demo_tells_a_server_both_limits(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with serving(lambda body, _: Act(body=said(right(SEEN)))) as heard:
        with pytest.raises(BadData, match="--max-pixels"):
            load_policies(None, server=heard.url, dialect=DIALECT)
        (policy,) = load_policies(None, server=heard.url, dialect=DIALECT, min_pixels=784, max_pixels=501_760)
        truth = Truth(boxes=np.array([BOX]), labels=("dog",))
        sample = Sample(id="a", task="grounding", image="", width=1600, height=1200, query="dog", truth=truth)
        reply = policy.reply(sample, Image.new("RGB", SIZE))
    assert (reply.frame.seen_width, reply.frame.seen_height) == SEEN
    assert policy.task("grounding").score(reply.completion, sample, reply.frame).total == 2


# --- the sizes themselves ---------------------------------------------------------------------------------------------
def test_a_size_may_be_of_numpys_numbers_and_none_is_absent() -> None:
    assert stated_size([np.int64(3), np.int32(4)], "here") == (3, 4)
    assert stated_size(None, "here") is None


def test_easyr1_scales_before_its_processor_does() -> None:
    """As `process_image` of EasyR1 and a processor with Qwen's own limits do it, one after the other."""
    random = np.random.default_rng(0)
    limits = ScaledBefore(min_pixels=262_144, max_pixels=1_000_000)
    different = 0
    for width, height in random.integers(60, 4000, (300, 2)).tolist():
        expected = (width, height)
        if math.prod(expected) > 1_000_000:
            factor = math.sqrt(1_000_000 / (width * height))
            expected = int(width * factor), int(height * factor)
        if math.prod(expected) < 262_144:
            factor = math.sqrt(262_144 / math.prod(expected))
            expected = int(expected[0] * factor), int(expected[1] * factor)
        expected = smart_resize(*expected, factor=28, min_pixels=3136, max_pixels=MAX_PIXELS)
        truth = Truth(boxes=np.zeros((0, 4)))
        sample = Sample(id="a", task="grounding", image="a", width=width, height=height, query="dog", truth=truth)
        assert limits.size(sample, DIALECTS[DIALECT]) == expected
        plain = PixelLimits(min_pixels=262_144, max_pixels=1_000_000)
        different += plain.size(sample, DIALECTS[DIALECT]) != expected
    assert different > 100


@pytest.mark.parametrize("value", [0, -1, 1.5, "9", True])
def test_a_limit_is_a_whole_number_of_at_least_one(value: Any) -> None:
    with pytest.raises(BadData, match=r"max_pixels: found .*, expected a whole number of at least 1"):
        PixelLimits(max_pixels=value)
