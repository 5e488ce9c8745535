"""Sizes that a run keeps, a server does not tell, and other trainers' processors make."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.chat_server import Act, said, serving
from tests.test_frames import BOX, DIALECT, ROW, SEEN, SIZE, lines, right

from perception_r1.demo.policies import load_policies
from perception_r1.dialects import DIALECTS, smart_resize
from perception_r1.engines import Rewards
from perception_r1.evaluation.asking import Reply
from perception_r1.evaluation.journal import Journal
from perception_r1.evaluation.run import evaluate
from perception_r1.evaluation.server import ServerBackend
from perception_r1.frames import MAX_PIXELS, PixelLimits, ScaledBefore, stated_size
from perception_r1.records import BadData, Frame, Sample, Truth

# --- what a run keeps -----------------------------------------------------------------------------
DAMAGED = {"gone": None, "zero": [0, 588], "text": "812x588", "one": [812]}


@pytest.mark.parametrize("seen", DAMAGED.values(), ids=DAMAGED)
def test_a_kept_answer_whose_size_is_damaged_is_one_line(seen: Any, tmp_path: Path) -> None:
    truth = Truth(boxes=np.array([BOX]), labels=("dog",))
    sample = Sample(
        id="a", task="grounding", image="a.png", width=1600, height=1200, query="dog", truth=truth
    )
    frame = Frame(width=1600, height=1200, seen_width=812, seen_height=588)
    with Journal(tmp_path, [sample], {}, needs_size=True) as journal:
        journal.add(sample, Reply(right(SEEN), "stop", frame))
    row = json.loads((tmp_path / "answers.jsonl").read_text())
    lines(tmp_path / "answers.jsonl", row | {"seen": seen})
    with pytest.raises(
        BadData, match=r"answers\.jsonl:1: sample 'a': found seen .*, expected \[width, height\]"
    ) as error:
        Journal(tmp_path, [sample], {}, needs_size=True)
    assert "\n" not in str(error.value)


def test_a_size_that_nobody_knows_is_not_made_up(tmp_path: Path) -> None:
    """A server does not say to what it resizes, and a relative dialect does not ask: such
    answers are no source of sizes.
    """
    pytest.importorskip("openai")
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    data = lines(tmp_path / "s.jsonl", ROW | {"id": "a"})
    with serving(lambda body, _: Act(body=said(right(SEEN) + "<|im_end|>"))) as heard:
        options: dict[str, Any] = {
            "data": str(data),
            "server": heard.url,
            "output": tmp_path / "run",
            "resamples": 5,
        }
        evaluate(**options, dialect="qwen3-vl")
        assert (
            evaluate(**options, dialect="qwen3-vl")["metrics"]["parse_failure_rate"]["value"] == 0
        )  # resumed
    (row,) = [
        json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()
    ]
    assert row["seen"] is None
    assert row["completion"] == right(SEEN)
    with pytest.raises(BadData, match="--max-pixels"):
        evaluate(
            data=str(data),
            predictions=tmp_path / "run" / "answers.jsonl",
            output=tmp_path / "two",
            dialect=DIALECT,
        )


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
        (policy,) = load_policies(
            None, server=heard.url, dialect=DIALECT, min_pixels=784, max_pixels=501_760
        )
        truth = Truth(boxes=np.array([BOX]), labels=("dog",))
        sample = Sample(
            id="a", task="grounding", image="", width=1600, height=1200, query="dog", truth=truth
        )
        reply = policy.reply(sample, Image.new("RGB", SIZE))
    assert (reply.frame.seen_width, reply.frame.seen_height) == SEEN
    assert policy.task("grounding").score(reply.completion, sample, reply.frame).total == 2


# --- the sizes themselves -------------------------------------------------------------------------
def test_a_size_may_be_of_numpys_numbers_and_none_is_absent() -> None:
    assert stated_size([np.int64(3), np.int32(4)], "here") == (3, 4)
    assert stated_size(None, "here") is None


def test_easyr1_scales_before_its_processor_does() -> None:
    """As `process_image` of EasyR1 and a processor with Qwen's own limits do it, one after the
    other.
    """
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
        sample = Sample(
            id="a",
            task="grounding",
            image="a",
            width=width,
            height=height,
            query="dog",
            truth=truth,
        )
        assert limits.size(sample, DIALECTS[DIALECT]) == expected
        plain = PixelLimits(min_pixels=262_144, max_pixels=1_000_000)
        different += plain.size(sample, DIALECTS[DIALECT]) != expected
    assert different > 100


@pytest.mark.parametrize("value", [0, -1, 1.5, "9", True])
def test_a_limit_is_a_whole_number_of_at_least_one(value: Any) -> None:
    with pytest.raises(
        BadData, match=r"max_pixels: found .*, expected a whole number of at least 1"
    ):
        PixelLimits(max_pixels=value)


# --- other trainers --------------------------------------------------------------------------------
def test_no_engine_assumes_a_size() -> None:
    pytest.importorskip("torch")
    rewards, text = Rewards(dialect=DIALECT), right((1148, 840))  # a million pixels, by chance
    row = ROW | {"id": "a"}
    for call in (
        lambda: rewards.trl([text], sample=[row]),
        lambda: rewards.ms_swift([text], sample=[row]),
        lambda: rewards.verl("x", text, row),
        lambda: rewards.easyr1([{"response": text, "ground_truth": row}]),
        lambda: rewards.openrlhf(["P" + text], ["P"], [row]),
    ):
        with pytest.raises(
            BadData,
            match=r"sample 'a': qwen2\.5-vl writes pixels of the resized image.*seen.*max_pixels",
        ) as error:
            call()
        assert "\n" not in str(error.value)
