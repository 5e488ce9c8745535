"""What docs/rewards.md says of the rewards beyond their formulas: what filler earns, copies, centres, moves, time."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception_r1.dialects import frame_of
from perception_r1.evaluation.score import ScoreSettings
from perception_r1.primitives.text import text_agreement, words_of
from perception_r1.records import BadData, Sample, Truth
from perception_r1.tasks import Task, make_task

DOCUMENT = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
FILLER = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were all her she "
    "there would their we him been has when who will no more if out so up said what its about than into them can only other time new some could "
    "these two may first then do any "
)
PAGES = st.text(alphabet="abc de\n.é漢", min_size=1, max_size=60).filter(lambda text: text.strip())


def ocr(answer: str, page: str, **weights: float) -> dict[str, float]:
    task = make_task("ocr", weights=weights)
    sample = Sample(
        id="s", task="ocr", image="", width=9, height=9, query="", truth=Truth(text=page)
    )
    return dict(task.score(answer, sample, frame_of(90, 90, task.dialect)).terms)


def boxes(task: Task, truth: Truth, text: str) -> dict[str, float]:
    sample = Sample(
        id="s", task=task.name, image="", width=640, height=480, query="dog", truth=truth
    )
    return dict(task.score(text, sample, frame_of(640, 480, task.dialect)).terms)


# --- filler on pages --------------------------------------------------------------------------------------------------
def test_filler_pays_in_characters_and_not_in_words_on_real_pages(
    data_folder: Callable[[str], Path],
) -> None:
    """The figures of the document: half a page, half a page and filler, filler alone."""
    found: dict[str, list[dict[str, float]]] = {"half": [], "filled": [], "blind": []}
    for name in ("8071_093.3B.txt", "8087_054.3B.txt", "eurotext.txt", "phototest.gold.txt"):
        page = (data_folder("ocr_tesseract") / name).read_text(encoding="utf-8").strip()
        half = page[: len(page) // 2]
        filler = (FILLER * (len(page) // len(FILLER) + 1))[: len(page)]
        answers = {"half": half, "filled": half + filler[: len(page) - len(half)], "blind": filler}
        for kind, answer in answers.items():
            found[kind].append(ocr(answer, page, words=1))
    edit, words = (
        {kind: [terms[name] for terms in rows] for kind, rows in found.items()}
        for name in ("edit", "words")
    )
    assert [round(value, 2) for value in edit["half"]] == [0.5] * 4
    assert (round(min(edit["filled"]), 2), round(max(edit["filled"]), 2)) == (0.59, 0.61)
    assert (round(min(edit["blind"]), 2), round(max(edit["blind"]), 2)) == (0.17, 0.25)
    lost = [half - filled for half, filled in zip(words["half"], words["filled"], strict=True)]
    assert 0.045 <= min(lost) <= max(lost) < 0.105
    assert (round(min(words["blind"]), 2), round(max(words["blind"]), 2)) == (0.01, 0.05)


def test_words_is_absent_unless_a_weight_names_it() -> None:
    assert set(ocr("a b", "a c")) == {"format", "edit"}
    assert ocr("a b", "a c", words=1) == {"format": 1, "edit": pytest.approx(2 / 3), "words": 0.5}
    assert ocr("a b", "a c", words=2, edit=0) == {"format": 1, "words": 1}
    assert set(ocr("", "a c", words=1, format=0)) == {"edit", "words"}
    assert make_task("ocr").bounds() == (0, 2)
    assert make_task("ocr", weights={"words": 0.5}).bounds() == (0, 2.5)
    assert ScoreSettings(weights={"words": 1}).tasks["ocr"].bounds() == (0, 3)
    with pytest.raises(BadData, match="grounding has no term words"):
        make_task("grounding", weights={"words": 1})


def table(found: list[str], true: list[str]) -> int:
    """The textbook table of edits, a row at a time."""
    row = list(range(len(true) + 1))
    for i, left in enumerate(found, 1):
        previous, row = row, [i]
        for j, right in enumerate(true, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (left != right)))
    return row[-1]


@given(PAGES, PAGES)
def test_words_is_its_formula(answer: str, page: str) -> None:
    found, true = (re.sub("(漢)", r" \1 ", text).split() for text in (answer, page))
    assert (words_of(answer), words_of(page)) == (found, true)
    expected = (
        1 - table(found[: 5 * len(true)], true) / max(len(found), len(true))
        if len(found) <= 5 * len(true)
        else None
    )
    if expected is not None:
        assert ocr(answer, page, words=1)["words"] == pytest.approx(expected)


@given(PAGES, st.text(max_size=60), st.data())
def test_the_laws_of_pages_hold_with_words(page: str, other: str, data: st.DataObject) -> None:
    true = page.strip()
    assert ocr(true, page, words=1) == {"format": 1, "edit": 1, "words": 1}
    assert ocr(" ", page, words=1) == {"format": 0, "edit": 0, "words": 0}
    assert all(0 <= value <= 1 for value in ocr(other, page, words=1).values())
    short, long = sorted(data.draw(st.integers(1, len(true))) for _ in range(2))
    assert (
        sum(ocr(true[:short], page, words=1).values())
        <= sum(ocr(true[:long], page, words=1).values()) + 1e-9
    )
    assert ocr(f"{true} xyz", page, words=1)["words"] < 1
    assert ocr(f"xyz {true}", page, words=1)["words"] < 1


@given(PAGES, st.integers(1, 40))
def test_a_page_repeated_any_number_of_times_earns_one_over_it(page: str, copies: int) -> None:
    true = page.strip()
    assert ocr(true * copies, page)["edit"] == pytest.approx(1 / copies)
    assert ocr(f"{true} " * copies, page, words=1)["words"] == pytest.approx(1 / copies)


@given(
    st.text(alphabet="ab", max_size=60),
    st.text(alphabet="ab", min_size=1, max_size=6),
    st.text(alphabet="ab", max_size=40),
)
def test_beyond_five_pages_an_answer_earns_less_the_longer_it_is_and_never_more_than_its_edits(
    start: str, page: str, more: str
) -> None:
    long = (start + page * 5)[: 5 * len(page)] + more
    exact = 1 - table(list(long), list(page)) / max(len(long), len(page))
    assert text_agreement(long, page, 5) <= exact + 1e-12
    assert text_agreement(long + "a", page, 5) <= text_agreement(long, page, 5)


def test_a_megabyte_is_scored_in_a_fifth_of_a_second_against_a_page_of_ten_thousand_characters() -> (
    None
):
    page = (FILLER * 30)[:10_000]
    for text in (
        "lorem ipsum " * 83_000,
        "a " * 500_000,
        "a" * 1_000_000,
        "漢" * 1_000_000,
        page * 100,
    ):
        for weights in ({}, {"words": 1.0}):
            seconds = []
            for _ in range(6):
                start = time.process_time()
                ocr(text, page, **weights)
                seconds.append(time.process_time() - start)
            assert min(seconds) < 0.2, (text[:12], weights)


# --- boxes ------------------------------------------------------------------------------------------------------------
DOGS = Truth(
    boxes=np.array([[100.0, 100, 200, 200], [300, 100, 500, 300], [20, 300, 90, 400]]),
    labels=("dog",) * 3,
)


@pytest.mark.parametrize("name", ["counting", "detection"])
def test_best_pays_full_marks_for_one_perfect_box_written_as_often_as_there_are_objects(
    name: str,
) -> None:
    copies = "\n".join(["dog: [100, 100, 200, 200]"] * 3)
    task = make_task(name, dialect="plain", matching="best")
    assert sum(boxes(task, DOGS, copies).values()) == task.bounds()[1]
    assert (
        sum(boxes(make_task(name, dialect="plain"), DOGS, copies).values()) < task.bounds()[1] - 0.6
    )


OFFERED = {
    "docs/rewards.md": r"^\| `best` \|",
    "docs/task.md": r"`greedy`.*`best`",
    "src/perception_r1/terminal.py": r"greedy.*best",
    "src/perception_r1/training/recipe.py": r"greedy.*best",
}
"""Where a user chooses a matching, and the lines there that offer `best`."""


@pytest.mark.parametrize("path", OFFERED)
def test_wherever_best_is_offered_its_price_is_told(path: str) -> None:
    text = (Path(__file__).parents[1] / path).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.search(OFFERED[path], line)]
    assert lines
    assert all("pays for copies" in line for line in lines)


@given(st.floats(0.5, 50), st.floats(0.5, 50))
def test_countings_full_marks_need_the_centres_only(half_width: float, half_height: float) -> None:
    rows = [
        (150 - half_width, 150 - half_height, 150 + half_width, 150 + half_height),
        (399, 199, 401, 201),
        (0, 300, 110, 400),
    ]
    text = "\n".join(f"dog: [{x1!r}, {y1!r}, {x2!r}, {y2!r}]" for x1, y1, x2, y2 in rows)
    assert boxes(make_task("counting", dialect="plain"), DOGS, text)["distance"] == pytest.approx(1)


def test_moving_a_matched_box_towards_its_truth_may_lower_the_total_by_what_the_document_says() -> (
    None
):
    """H counts p for a and q for c; S pairs p with c and q with a. p moves 2 % of its way to c, and misses a by a little."""
    a, c = [80.0, 0, 180, 100], [80.0, 0, 120, 100]
    p, q = np.array([0.0, 0, 170, 100]), np.array([80.0, 0, 160, 100])
    moved = 0.98 * p + 0.02 * np.array(c)
    task = make_task("detection", dialect="plain")
    truth = Truth(boxes=np.array([a, c]), labels=("dog", "dog"))
    before, after = (
        boxes(task, truth, "\n".join(f"dog: {[float(edge) for edge in box]}" for box in (first, q)))
        for first in (p, moved)
    )
    assert after["location"] >= before["location"]
    assert sum(after.values()) - sum(before.values()) == pytest.approx(-1.49, abs=0.01)
    assert "in a made case by 1.49" in DOCUMENT
