"""Numbers as text: ASCII, finite, and never a reason to raise (U+001C to U+001F at the edge did)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception_r1.dialects import DIALECTS
from perception_r1.records import BadData, Frame, Sample, Truth
from perception_r1.tasks import TASKS, make_task, parse_weights

FOREIGN_SPACES = [
    "\x1c",
    "\x1d",
    "\x1e",
    "\x1f",
    "\x85",
    "\xa0",
    "\u2003",
    "\u2028",
    "\u3000",
    "\u200b",
    "\ufeff",
]
"""White space, or nearly, of which Python's strip, split, splitlines, float and int do not think alike."""
NOT_NUMBERS = [
    "１0", "١٠", "१०", "1_0", "1_000", "inf", "-inf", "Infinity", "nan", "NaN", "1e999", "-1e999", "9" * 400, "²", "½", "①", "Ⅳ", "0x10",
    "1e", "e1", "1e+", "--1", "+-1", "1 0", "1.0.0", ".", "+", "", " ", "10f", "1'000", "ten", "True", "\x00", "1\x00", "\ud800",
]  # fmt: skip
ROWS = {
    "qwen2-vl": "dog({},{}),({},{})",
    "qwen2.5-vl": '[{{"bbox_2d": [{}, {}, {}, {}], "label": "dog"}}]',
    "qwen3-vl": '[{{"bbox_2d": [{}, {}, {}, {}], "label": "dog"}}]',
    "internvl": "dog[[{}, {}, {}, {}]]",
    "llava": "dog: [{}, {}, {}, {}]",
    "plain": "dog: [{}, {}, {}, {}]",
}
GOOD = {"llava": ("0.1", "0.1", "0.9", "0.9")}


def total(task_name: str, family: str, text: str) -> float:
    task = make_task(task_name, dialect=family)
    truth = (
        Truth(text="10")
        if task_name == "ocr"
        else Truth(boxes=np.array([[100.0, 100, 900, 900]]), labels=("dog",))
    )
    sample = Sample(
        id="s", task=task_name, image="", width=1000, height=1000, query="dog", truth=truth
    )
    return task.score(
        text, sample, Frame(width=1000, height=1000, seen_width=1000, seen_height=1000)
    ).total


def with_number(family: str, place: int, number: str) -> str:
    numbers = list(GOOD.get(family, ("100", "100", "900", "900")))
    numbers[place] = number
    return ROWS[family].format(*numbers)


def test_the_good_rows_are_good() -> None:
    assert set(ROWS) == set(DIALECTS)
    assert [
        total("detection", family, with_number(family, 0, GOOD.get(family, ("100",))[0]))
        for family in ROWS
    ] == [4] * 6


@pytest.mark.parametrize("family", DIALECTS)
@pytest.mark.parametrize("space", FOREIGN_SPACES)
def test_a_number_with_foreign_white_space_at_its_edge_is_no_number(
    family: str, space: str
) -> None:
    number = GOOD.get(family, ("100",))[0]
    for written in (space + number, number + space, f" {space}{number}", f"{number}{space} "):
        for task in ("grounding", "counting", "detection"):
            for place in range(4):
                text = with_number(
                    family,
                    place,
                    written.replace(number, GOOD.get(family, ("100", "100", "900", "900"))[place]),
                )
                assert total(task, family, text) == make_task(task).bounds()[0], (task, place)


@pytest.mark.parametrize("family", DIALECTS)
@pytest.mark.parametrize("number", NOT_NUMBERS)
def test_what_python_takes_for_a_number_or_not_is_no_number_here(family: str, number: str) -> None:
    for place in range(4):
        assert total("detection", family, with_number(family, place, number)) == -1


@pytest.mark.parametrize("family", DIALECTS)
@pytest.mark.parametrize(
    "number",
    [
        "9" * 5000,
        "0" * 5000,
        "1." + "0" * 5000,
        "0." + "0" * 5000 + "1",
        "1e-99999",
        "1e" + "9" * 5000,
        "-" + "9" * 5000,
    ],
)
def test_numbers_of_thousands_of_digits_never_raise(family: str, number: str) -> None:
    for task in TASKS:
        for place in range(4):
            assert math.isfinite(total(task, family, with_number(family, place, number)))


@pytest.mark.parametrize("family", DIALECTS)
@given(
    st.text(
        alphabet='0123456789.,eE+-_ \t\n\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2028１٣²inf"[](){}:;<|>',
        max_size=12,
    ),
    st.integers(0, 3),
)
def test_no_text_in_the_place_of_a_number_raises(family: str, number: str, place: int) -> None:
    for task in TASKS:
        assert math.isfinite(total(task, family, with_number(family, place, number)))


@pytest.mark.parametrize(
    "number", ["1_000", "１", "١", "inf", "nan", "1e999", "1\x1c", "\xa01", "", " ", "one"]
)
def test_a_weight_is_an_ascii_number_or_an_error(number: str) -> None:
    with pytest.raises(BadData, match="expected name=number"):
        parse_weights(f"format={number}")


def test_weights_are_read_and_none_is_replaced_silently() -> None:
    assert parse_weights(" iou=1 , format = .5,") == {"iou": 1.0, "format": 0.5}
    assert parse_weights("") == {}
    with pytest.raises(BadData, match="iou is there twice"):
        parse_weights("iou=1,iou=0")
