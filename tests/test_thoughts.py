"""Thoughts: nothing in one is an answer, and a prompt that opens `<think>` costs no format reward."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception_r1.dialects import DIALECTS, frame_of
from perception_r1.records import BadData, Frame, Sample, Score, Truth
from perception_r1.tasks import TASKS, Task, make_task

DOG, CAT = [100.0, 100, 200, 200], [300.0, 100, 500, 300]


def desk(name: str, family: str, *, thinking: bool) -> tuple[Task, Sample, Frame]:
    boxes = Truth(boxes=np.array([DOG]), labels=("dog",))
    truth = Truth(text="The quick brown fox") if name == "ocr" else boxes
    task = make_task(name, dialect=family, thinking=thinking)
    sample = Sample(id="s1", task=name, image="", width=1000, height=1000, query="dog", truth=truth)
    return task, sample, frame_of(1000, 1000, task.dialect)


def both(name: str, family: str, *, thinking: bool) -> tuple[Task, Sample, Frame, str, str]:
    """The true answer and another one, without tags."""
    task, sample, frame = desk(name, family, thinking=thinking)
    other = "Lorem ipsum" if name == "ocr" else task.dialect.write(np.array([CAT]), ("cat",), frame)
    return task, sample, frame, task.write_truth(sample, frame), other


def without_format(score: Score) -> dict[str, float]:
    return {name: value for name, value in score.terms.items() if name != "format"}


# --- the prompt opened the thought -----------------------------------------------------------------------------------
@pytest.mark.parametrize("family", DIALECTS)
@pytest.mark.parametrize("name", TASKS)
def test_a_completion_that_begins_inside_the_thought_can_earn_full_marks(
    name: str, family: str
) -> None:
    task, sample, frame, true, other = both(name, family, thinking=True)
    for thought in ("I look.", "", f"First {other}, then", "\n"):
        for text in (
            f"{thought}</think><answer>{true}</answer>",
            f"{thought}\n</think>\n\n<answer>{true}</answer>\n",
        ):
            assert task.score(text, sample, frame).total == task.bounds()[1]


PIECES = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "I look.",
    " ",
    "\n",
    "dog: [100, 100, 200, 200]",
    "none",
)


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join), st.sampled_from(sorted(TASKS)))
def test_leaving_out_the_opening_tag_never_earns_more_than_writing_it(text: str, name: str) -> None:
    """So the rule that reads it into the text pays nobody: every completion that it pays has a twin with the tag."""
    task, sample, frame = desk(name, "plain", thinking=True)
    opening, closing = text.find("<think>"), text.find("</think>")
    begins_inside = closing >= 0 and not 0 <= opening < closing
    twin = f"<think>{text}" if begins_inside else text
    assert task.score(text, sample, frame) == task.score(twin, sample, frame)


@pytest.mark.parametrize(
    "form",
    ["So: </think>{}", "</think></think><answer>{}</answer>", "a</think><think>b</think><answer>{}</answer>", "a</think>so<answer>{}</answer>",
     "a</think><answer>{}</answer>.", "<answer>{}</answer>", "{}"],
)  # fmt: skip
def test_other_forms_still_lose_the_format_reward(form: str) -> None:
    task, sample, frame, true, _ = both("detection", "plain", thinking=True)
    score = task.score(form.format(true), sample, frame)
    assert score.terms["format"] == 0


@pytest.mark.parametrize(
    "form",
    [
        "<answer>{}</answer></think>",
        "a <answer>{}</answer></think><answer></answer>",
        "</think><think><answer>{}</answer>",
    ],
)
def test_an_answer_inside_a_thought_that_the_prompt_opened_is_malformed(form: str) -> None:
    task, sample, frame, true, _ = both("detection", "plain", thinking=True)
    score = task.score(form.format(true), sample, frame)
    assert score.problem is not None
    assert score.total == task.bounds()[0]


# --- thinking was not asked for --------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", DIALECTS)
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    "form",
    [
        "<think>{0}</think>{1}",
        "{0}</think>\n{1}",
        "<think>{0}</think>\n\n{1}",
        "<think>a<think>{0}</think>b</think>{1}",
        "{1}<think>{0}",
    ],
)
def test_with_thinking_off_what_is_in_a_thought_does_not_count(
    name: str, family: str, form: str
) -> None:
    task, sample, frame, true, other = both(name, family, thinking=False)
    for inside, outside in ((true, other), (other, true)):
        found, plain = (
            task.score(text, sample, frame) for text in (form.format(inside, outside), outside)
        )
        assert without_format(found) == without_format(plain)
        assert found.terms["format"] == 0
        assert plain.terms["format"] == 1


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    "form",
    [
        "<think>{}",
        "<think>{}</think>",
        "{}</think>",
        "<think><think></think>{}",
        "<think>a</think> <think>{}",
    ],
)
def test_with_thinking_off_a_thought_alone_is_malformed(name: str, form: str) -> None:
    task, sample, frame, true, _ = both(name, "qwen2-vl", thinking=False)
    assert task.score(form.format(true), sample, frame).total == task.bounds()[0]


def test_with_thinking_off_the_answers_tags_are_only_words_around() -> None:
    task, sample, frame, true, _ = both("counting", "qwen3-vl", thinking=False)
    assert dict(
        task.score(f"<think>{true}</think><answer>{true}</answer>", sample, frame).terms
    ) == {"format": 0, "distance": 1}


def test_a_box_is_not_made_across_a_thought() -> None:
    task, sample, frame, _, _ = both("counting", "plain", thinking=False)
    assert (
        task.score("dog: <think>one</think>[100, 100, 200, 200]", sample, frame).terms["format"]
        == 0
    )


# --- a truth with a tag ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tag", ["<think>", "</think>"])
def test_a_truth_that_holds_a_thoughts_tag_is_an_error_in_both_modes(tag: str) -> None:
    for thinking in (False, True):
        task, _, frame = desk("ocr", "plain", thinking=thinking)
        page = Sample(
            id="s8",
            task="ocr",
            image="",
            width=9,
            height=9,
            query="",
            truth=Truth(text=f"Use {tag} here"),
        )
        with pytest.raises(BadData, match=f"s8.*{tag}.*leave it out"):
            task.write(page, frame)
        with pytest.raises(BadData, match=f"s8.*{tag}"):
            task.score("Use here", page, frame)
        labelled = Sample(
            id="s9",
            task="detection",
            image="",
            width=1000,
            height=1000,
            query="",
            truth=Truth(boxes=np.array([DOG]), labels=(f"a{tag}",)),
        )
        with pytest.raises(BadData, match=f"s9.*{tag}"):
            make_task("detection", dialect="plain", thinking=thinking).write(labelled, frame)
