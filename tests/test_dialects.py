"""Dialects: what is written is read back, each reading rule of the design, and hostile text in linear time."""

import itertools
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from perception_r1.dialects import DIALECTS, MOST_ITEMS, Dialect, dialect_named, dialect_of_model, frame_of, smart_resize
from perception_r1.records import Answer, BadData, Frame, Malformed, Sample, Truth
from perception_r1.tasks import TASKS, make_task

JSON_FAMILIES = ("qwen2.5-vl", "qwen3-vl")
FRAME = Frame(width=1000, height=1000, seen_width=1000, seen_height=1000)
"""Here a pixel is a step of every grid, so the numbers in a text are the boxes (LLaVA: over 1,000)."""
BOX, OTHER = [10, 20, 30, 40], [500, 600, 700, 800]


def read(family: str, text: str) -> Answer:
    return dialect_named(family).read(text, FRAME)


def write(family: str, *boxes: list[float], labels: tuple[str, ...] | None = None) -> str:
    return dialect_named(family).write(np.array(boxes, dtype=float).reshape(-1, 4), labels or ("cat",) * len(boxes), FRAME)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """Images of 1 to 20,000 pixels a side, of any aspect, seen at any size."""
    side = st.one_of(st.integers(1, 40), st.integers(1, 2000), st.integers(1, 20_000))
    return Frame(width=draw(side), height=draw(side), seen_width=draw(side), seen_height=draw(side))


@st.composite
def boxes_inside(draw: st.DrawFn, frame: Frame) -> np.ndarray:
    """Boxes (N, 4) inside the image: of any size, a few thousandths of a pixel included, and at its borders."""

    def side(length: int) -> tuple[float, float]:
        extent = min(draw(st.one_of(st.floats(1e-3, 2), st.floats(1e-3, length))), length)
        start = draw(st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1)))
        low = start * (length - extent)
        return low, min(low + extent, float(length))

    rows = []
    for _ in range(draw(st.integers(0, 4))):
        (x1, x2), (y1, y2) = side(frame.width), side(frame.height)
        rows.append((x1, y1, x2, y2))
    boxes_N4 = np.array(rows, dtype=float).reshape(-1, 4)
    assume((boxes_N4[:, :2] < boxes_N4[:, 2:]).all())
    return boxes_N4


# --- read(write(x)) == x ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", DIALECTS)
@given(data=st.data())
def test_what_is_written_is_read_back_within_one_grid_step(family: str, data: st.DataObject) -> None:
    dialect, frame = DIALECTS[family], data.draw(frames())
    boxes_N4 = data.draw(boxes_inside(frame))
    labels = tuple(data.draw(st.sampled_from(["", "cat", "traffic light"])) for _ in boxes_N4)
    answer = dialect.read(dialect.write(boxes_N4, labels, frame), frame)
    steps_x, steps_y = dialect.units(frame)
    step_4 = np.array([frame.width / steps_x, frame.height / steps_y] * 2)
    assert answer.exact
    assert not answer.bad
    assert answer.labels == labels
    assert answer.boxes.shape == boxes_N4.shape
    assert (np.abs(answer.boxes - boxes_N4) <= step_4 * (1 + 1e-9)).all()
    assert (answer.boxes[:, :2] < answer.boxes[:, 2:]).all()
    assert (dialect.snap(boxes_N4, frame) == answer.boxes).all()


@pytest.mark.parametrize("family", DIALECTS)
@given(data=st.data())
def test_a_box_on_the_grid_is_read_back_exactly_where_it_was(family: str, data: st.DataObject) -> None:
    dialect, frame = DIALECTS[family], data.draw(frames())
    once_N4 = dialect.snap(data.draw(boxes_inside(frame)), frame)
    np.testing.assert_allclose(dialect.snap(once_N4, frame), once_N4, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("family", DIALECTS)
@given(label=st.text(max_size=20))
def test_any_label_comes_back_or_is_refused_when_written(family: str, label: str) -> None:
    try:
        text = write(family, BOX, OTHER, labels=(label, "cat"))
    except BadData:
        assert set(label) & set("<>|[],"), "refused without a reason"
        return
    answer = read(family, text)
    assert answer.exact
    assert answer.labels == ((label if family in JSON_FAMILIES else " ".join(label.split())), "cat")


@given(label=st.text(max_size=40))
def test_json_families_refuse_no_label(label: str) -> None:
    assert read("qwen3-vl", write("qwen3-vl", BOX, labels=(label,))).labels == (label,)


@pytest.mark.parametrize(
    ("family", "label"),
    [("qwen2-vl", "a<|box_start|>"), ("internvl", "</ref>"), ("llava", "[0, 0, 1, 1]"), ("plain", ", comma first")],
)
def test_a_label_that_holds_the_familys_punctuation_is_refused(family: str, label: str) -> None:
    with pytest.raises(BadData, match="punctuation"):
        write(family, BOX, labels=(label,))


@pytest.mark.parametrize("family", DIALECTS)
def test_more_boxes_than_can_be_read_are_refused_when_written(family: str) -> None:
    with pytest.raises(BadData, match="at most"):
        write(family, *[BOX] * (MOST_ITEMS + 1))


# --- the six families, as they are ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("qwen2-vl", "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>"),
        ("qwen2-vl", "a cat(10,20),(30,40)"),
        ("qwen2.5-vl", '```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "a cat"}\n]\n```'),
        ("qwen3-vl", '[{"bbox_2d": [10, 20, 30, 40], "label": "a cat"}]'),
        ("internvl", "<ref>a cat</ref><box>[[10,20,30,40]]</box>"),
        ("llava", "a cat: [0.010, 0.020, 0.030, 0.040]"),
        ("plain", "a cat: [10, 20, 30, 40]"),
    ],
)
def test_each_familys_own_form_is_exact(family: str, text: str) -> None:
    answer = read(family, text)
    assert (answer.boxes.tolist(), answer.labels, answer.bad, answer.exact) == ([BOX], ("a cat",), 0, True)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen2-vl", [64, 48, 320, 240]),
        ("qwen2.5-vl", [100 * 640 / 644, 100 * 480 / 476, 500 * 640 / 644, 400 * 480 / 476]),
        ("qwen3-vl", [64, 48, 320, 240]),
        ("internvl", [64, 48, 320, 240]),
        ("plain", [100, 100, 500, 400]),
    ],
)
def test_numbers_mean_what_the_family_says_in_a_640_by_480_image(family: str, expected: list[float]) -> None:
    dialect = DIALECTS[family]
    numbers = ["100", "100", "500", "400"] if family in ("qwen2.5-vl", "plain") else ["100", "100", "500", "500"]
    answer = dialect.read(dialect.join([numbers], ["cat"]), frame_of(640, 480, dialect))
    np.testing.assert_allclose(answer.boxes, [expected], rtol=1e-12)


def test_llava_numbers_are_shares_of_the_sides() -> None:
    frame = Frame(width=640, height=480, seen_width=1, seen_height=1)
    np.testing.assert_allclose(DIALECTS["llava"].read("cat: [0.1, 0.1, 0.5, 0.5]", frame).boxes, [[64, 48, 320, 240]])


# --- the reading rules, one by one ------------------------------------------------------------------------------------
@pytest.mark.parametrize("fence", ["{}", "```json\n{}\n```", "```\n{}\n```", "```json{}```", "  {}\n\n"])
def test_a_json_list_may_be_fenced_or_bare(fence: str) -> None:
    for boxes in ([BOX], [BOX, OTHER], []):
        answer = read("qwen3-vl", fence.format(write("qwen3-vl", *boxes)))
        assert answer.boxes.tolist() == boxes
        assert answer.exact


@pytest.mark.parametrize("text", ["Sure! {}", "{} Done.", "```json\n{}", "{}\n```", "~~~\n{}\n~~~", "[{}]", "{},"])
def test_words_or_half_fences_around_a_json_list_cost_exactness_only(text: str) -> None:
    answer = read("qwen3-vl", text.format(write("qwen3-vl", BOX)))
    assert (answer.boxes.tolist(), answer.bad, answer.exact) == ([BOX], 0, False)


@pytest.mark.parametrize("family", DIALECTS)
def test_floats_and_spaces_are_read(family: str) -> None:
    scale = 1000 if family == "llava" else 1
    rows = [[f"  {value / scale} " for value in (10.5, 20.25, 30.125, 40.0)]]
    answer = read(family, DIALECTS[family].join(rows, ["cat"]))
    np.testing.assert_allclose(answer.boxes, [[10.5, 20.25, 30.125, 40.0]], rtol=1e-12)
    assert answer.exact


@pytest.mark.parametrize("number", ["10", "10.", "10.0", "+10", "1e1", "1.0E+1", "010"])
def test_the_ways_of_writing_the_number_ten(number: str) -> None:
    assert read("plain", f"cat: [{number}, 20, 30, 40]").boxes.tolist() == [BOX]


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("qwen2-vl", "(10,20),(30,40)(500,600),(700,800)"),
        ("qwen2-vl", "(10,20),(30,40), (500,600),(700,800)"),
        ("qwen2-vl", "<|box_start|>(10,20),(30,40)<|box_end|><|box_start|>(500,600),(700,800)<|box_end|>"),
        ("internvl", "<box>[[10,20,30,40],[500,600,700,800]]</box>"),
        ("llava", "[0.01, 0.02, 0.03, 0.04], [0.5, 0.6, 0.7, 0.8]"),
        ("plain", "[10, 20, 30, 40] [500, 600, 700, 800]"),
    ],
)
def test_several_boxes_on_a_line_are_one_answer(family: str, text: str) -> None:
    answer = read(family, text)
    assert answer.boxes.tolist() == [BOX, OTHER]
    assert answer.exact


def test_a_further_box_after_a_special_token_box_keeps_its_label() -> None:
    tokens = "<|box_start|>(10,20),(30,40)<|box_end|><|box_start|>(500,600),(700,800)<|box_end|>"
    assert read("qwen2-vl", f"<|object_ref_start|>cat<|object_ref_end|>{tokens}").labels == ("cat", "cat")


@pytest.mark.parametrize("between", ["", "\n", " and ", "\n```\n```json\n"])
def test_several_json_lists_are_one_answer_that_is_not_exact(between: str) -> None:
    answer = read("qwen3-vl", write("qwen3-vl", BOX) + between + write("qwen3-vl", OTHER))
    assert (answer.boxes.tolist(), answer.exact) == ([BOX, OTHER], False)


@pytest.mark.parametrize("family", JSON_FAMILIES)
def test_a_truncated_json_list_keeps_its_complete_items_and_is_never_exact(family: str) -> None:
    """Cut anywhere inside the second item or after it: the first counts, and the rest of a cut item is a bad item."""
    text = write(family, BOX, OTHER)
    first = text.index("}") + 1
    for cut in range(first, len(text)):
        answer = read(family, text[:cut])
        complete = text[:cut].count("}")
        assert answer.boxes.tolist() == [BOX, OTHER][:complete]
        assert not answer.exact
        assert answer.bad == (text[first:cut].strip(", ") != "" and complete == 1)


@pytest.mark.parametrize("family", ["qwen2-vl", "internvl", "llava", "plain"])
def test_a_cut_box_counts_as_a_bad_item(family: str) -> None:
    text = write(family, BOX, OTHER)
    answer = read(family, text[: -len(" 800]" if family in ("llava", "plain") else "0)<|box_end|>" if family == "qwen2-vl" else ",800]]</box>")])
    assert (answer.boxes.tolist(), answer.bad, answer.exact) == ([BOX], 1, False)


BAD_ROWS = {
    "nan": "NaN, 20, 30, 40",
    "infinite": "10, 20, inf, 40",
    "minus infinite": "-Infinity, 20, 30, 40",
    "overflows to infinite": "10, 20, 1e999, 40",
    "1e308": "10, 20, 1e308, 1e308",
    "inverted x": "30, 20, 10, 40",
    "inverted y": "10, 40, 30, 20",
    "no width": "10, 20, 10, 40",
    "no height": "10, 20, 30, 20",
    "three numbers": "10, 20, 30",
    "five numbers": "10, 20, 30, 40, 50",
    "trailing comma": "10, 20, 30, 40,",
    "nothing": "",
    "arabic digits": "١٠, ٢٠, ٣٠, ٤٠",
    "full-width digits": "１０, ２０, ３０, ４０",
    "superscript digit": "10, 20, 30, ⁴",
    "underscored": "1_0, 20, 30, 40",
    "hexadecimal": "0x10, 20, 30, 40",
    "words": "ten, 20, 30, 40",
    "arithmetic": "5+5, 20, 30, 40",
    "call": "int(1), 20, 30, 40",
    "null": "null, 20, 30, 40",
    "two signs": "--10, 20, 30, 40",
    "over 1 px left": "-1.1, 20, 30, 40",
    "over 1 px above": "10, -1.1, 30, 40",
    "over 1 px right": "10, 20, 1001.1, 40",
    "over 1 px below": "10, 20, 30, 1001.1",
}


def readable_as_item(family: str, row: str) -> bool:
    """In Qwen2-VL parentheses and missing pairs make another text: see the test of its own bad items."""
    return family != "qwen2-vl" or ("(" not in row and row.count(",") >= 3)


@pytest.mark.parametrize(
    ("family", "row"),
    [
        pytest.param(family, row, id=f"{family}-{name}")
        for family in DIALECTS
        if family != "llava"
        for name, row in BAD_ROWS.items()
        if readable_as_item(family, row)
    ],
)
def test_a_bad_item_is_a_prediction_that_matches_nothing_and_costs_exactness(family: str, row: str) -> None:
    parts = row.split(",", 3)
    bad = (
        DIALECTS[family].join([parts if len(parts) == 4 else [row]], ["cat"])
        if family != "qwen2-vl"
        else f"({parts[0]},{parts[1]}),({parts[2]},{parts[3]})"
    )
    answer = read(family, write(family, BOX) + bad)
    assert (answer.boxes.tolist(), answer.bad, answer.exact) == ([BOX], 1, False)
    with pytest.raises(Malformed):
        read(family, bad)


@pytest.mark.parametrize("bad", ["(10,20,30),(30,40)", "(10),(30,40)", "(a,b),(c,d)", "<|box_start|>10,20,30,40<|box_end|>", "(10,20),()"])
def test_a_bad_item_of_qwen2_vl(bad: str) -> None:
    answer = read("qwen2-vl", write("qwen2-vl", BOX) + bad)
    assert (answer.boxes.tolist(), answer.bad, answer.exact) == ([BOX], 1, False)


@pytest.mark.parametrize(
    "item",
    [
        '{"bbox_2d": "10, 20, 30, 40", "label": "cat"}',
        '{"bbox_2d": [[10, 20], [30, 40]], "label": "cat"}',
        '{"bbox_2d": ["10", "20", "30", "40"], "label": "cat"}',
        '{"bbox_2d": [10, 20, 30, 40], "bbox_2d": [500, 600, 700, 800], "label": "cat"}',
        '{"point_2d": [10, 20], "label": "cat"}',
        '{"bbox_2d": null, "label": "cat"}',
        '{"label": "cat"}',
        "{'bbox_2d': [10, 20, 30, 40], \"bbox_2d\": [1, 2, 3, 4]",
    ],
)
def test_a_bad_item_of_the_json_families(item: str) -> None:
    answer = read("qwen3-vl", f"{write('qwen3-vl', OTHER)[:-1]}, {item}]")
    assert answer.boxes.tolist() == [OTHER]
    assert answer.bad >= 1
    assert not answer.exact


@pytest.mark.parametrize(
    "item",
    ['{"bbox_2d": [10, 20, 30, 40]}', '{"bbox_2d": [10, 20, 30, 40], "label": 5}', '{"bbox_2d": [10, 20, 30, 40], "label": "cat", "score": 0.9}'],
)
def test_members_more_or_less_than_box_and_label_cost_exactness_only(item: str) -> None:
    answer = read("qwen3-vl", f"[{item}]")
    assert (answer.boxes.tolist(), answer.bad, answer.exact) == ([BOX], 0, False)


@pytest.mark.parametrize("family", DIALECTS)
def test_a_box_up_to_one_original_pixel_outside_is_still_a_box(family: str) -> None:
    dialect, frame = DIALECTS[family], Frame(width=400, height=300, seen_width=800, seen_height=600)
    steps_x, steps_y = dialect.units(frame)
    for outside, bad in ((0.99, 0), (1.01, 1)):
        edges = (-outside * steps_x / 400, -outside * steps_y / 300, (400 + outside) * steps_x / 400, (300 + outside) * steps_y / 300)
        text = dialect.join([[repr(edge / dialect.divisor) for edge in edges], ["0.1", "0.1", "0.9", "0.9"]], ["", ""])
        answer = dialect.read(text, frame)
        assert (len(answer.boxes), answer.bad) == (2 - bad, bad)


@pytest.mark.parametrize("family", DIALECTS)
def test_the_written_empty_answer_is_empty_and_exact(family: str) -> None:
    nothing = "[]" if family in JSON_FAMILIES else "none"
    assert write(family) == nothing
    for text in (nothing, f" {nothing}\n"):
        answer = read(family, text)
        assert (answer.count, answer.exact) == (0, True)


@pytest.mark.parametrize("family", DIALECTS)
def test_the_other_families_empty_answer_is_malformed(family: str) -> None:
    with pytest.raises(Malformed):
        read(family, "none" if family in JSON_FAMILIES else "[]")


@pytest.mark.parametrize(("family", "text"), [("plain", "None."), ("qwen2-vl", "NONE"), ("qwen3-vl", "There are none: []"), ("qwen3-vl", "[].")])
def test_an_empty_answer_in_other_words_is_empty_but_not_exact(family: str, text: str) -> None:
    answer = read(family, text)
    assert (answer.count, answer.exact) == (0, False)


@pytest.mark.parametrize("family", DIALECTS)
@pytest.mark.parametrize("text", ["", " \n\t", "I see a cat.", "10 20 30 40", "\x00", "\ud800", "none of them", "<think>"])
def test_text_without_a_readable_answer_is_malformed(family: str, text: str) -> None:
    with pytest.raises(Malformed):
        read(family, text)


@pytest.mark.parametrize("family", DIALECTS)
def test_an_answer_at_the_item_limit_is_read_and_one_more_is_malformed(family: str) -> None:
    dialect = DIALECTS[family]
    row = ["0.1", "0.1", "0.9", "0.9"]
    assert len(dialect.read(dialect.join([row] * MOST_ITEMS, ["a"] * MOST_ITEMS), FRAME).boxes) == MOST_ITEMS
    with pytest.raises(Malformed, match=str(MOST_ITEMS)):
        dialect.read(dialect.join([row] * (MOST_ITEMS + 1), ["a"] * (MOST_ITEMS + 1)), FRAME)


@pytest.mark.parametrize("family", DIALECTS)
@given(data=st.data())
def test_reading_any_text_gives_an_answer_or_malformed_and_never_an_impossible_box(family: str, data: st.DataObject) -> None:
    pieces = [
        "[",
        "]",
        "{",
        "}",
        '"bbox_2d"',
        '"label"',
        ":",
        ",",
        '"',
        "\\",
        "1,2,3,4",
        "(1,2)",
        "<box>",
        "</box>",
        "<ref>",
        "</ref>",
        "cat",
        "\n",
        "none",
        "1e308",
    ]
    pieces += [
        "<|box_start|>",
        "<|box_end|>",
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "[[1,2,3,4]]",
        '{"bbox_2d": [1,2,3,4], "label": "cat"}',
        "NaN",
        "-5",
        "```",
    ]
    text = "".join(data.draw(st.lists(st.one_of(st.sampled_from(pieces), st.text(max_size=3)), max_size=30)))
    try:
        answer = read(family, text)
    except Malformed:
        return
    assert np.isfinite(answer.boxes).all()
    assert (answer.boxes[:, :2] < answer.boxes[:, 2:]).all()
    assert len(answer.labels) == len(answer.boxes)
    assert not (answer.exact and answer.bad)


# --- hostile text ------------------------------------------------------------------------------------------------------
SIZE, LIMIT = 1_000_000, 0.2
UNITS = [
    "[", "]", "(", ")", "{", "}", '"', "\\", '\\"', '{"', '{"\\', '{"\\"', '{"":', '{"":1}', '{"":1,', '{"a":"{","', '{"a" : [', '[{"bbox_2d":[',
    '{"bbox_2d": "', '{"bbox_2d":[0,0,1,1]}', '{"bbox_2d": [0, 0, 1, 1], "label": "person"}, ', '"bbox_2d"', '"label":', "[]", "[[", "[0,0,1,1]",
    "[0,0,1,1", "0,0,1,1],", "[[0,0,1,1]]", "(1,1),(2,2)", "(1,1),", "(1,1", "(a)   ,", "((", "()", "(),()", "<", "<|", "<|box_start|>",
    "<|box_start|>(", "<|box_end|>", "<|object_ref_start|>", "<|object_ref_start|>a", "<|object_ref_start|>a<|object_ref_end|>",
    "<|object_ref_end|> ", "<box>", "</box>", "<box>[[", "<box></box>", "<box>[[0,0,1,1]]</box>", "<ref>", "<ref>a</ref>", "<ref>a<", "</ref>  ",
    "cat: [1, 2, 3, 4]\n", "a: [", ":", ",", "1", "1,", "1e", "-", ".", "0.", " ", "\n", "\t\u2003", "a", "é", "漢", "\U0001f600", "\ud800", "\x00",
    "```", "```json\n", "none", "none ", "<think>", "</think>", "<answer>", "</answer>", "</think><answer>", "</think> <answer>", "</answer> ",
    "<think></think><answer>",
]  # fmt: skip
SHAPES = {
    "one label of 900 KB among 5,000 boxes": lambda d: d.join([["0.1", "0.1", "0.9", "0.9"]] * 5000, ["a" * 900_000] + ["b"] * 4999),
    "as many boxes as are read": lambda d: d.join([["0.1", "0.1", "0.9", "0.9"]] * MOST_ITEMS, ["person"] * MOST_ITEMS),
    "as many different labels": lambda d: d.join([["0.1", "0.1", "0.9", "0.9"]] * MOST_ITEMS, [f"name {k}" for k in range(MOST_ITEMS)]),
    "one number of 1 MB": lambda d: d.join([["1" * SIZE, "0", "1", "1"]], ["a"]),
    "a long fraction": lambda d: d.join([["0." + "0" * SIZE + "1", "0", "1", "1"]], ["a"]),
    "spaces inside a box": lambda d: d.join([[" " * SIZE + "0", "0", "1", "1"]], ["a"]),
    "a label of escapes": lambda d: d.join([["0", "0", "1", "1"]], ["\\" * (SIZE // 2)]),
    "random punctuation": lambda d: "".join(random.Random(0).choices('[]{}()<>|",:\\ 01ab\n', k=SIZE)),
    "random pieces": lambda d: "".join(random.Random(1).choices(UNITS, k=SIZE // 6)),
    "thought, then answers never closed": lambda d: "<think>" + "</think><answer>" * (SIZE // 16),
    "thought, answer, then spaces": lambda d: "<think></think><answer>none</answer>" + " " * SIZE + "x",
}
SCENE = Sample(
    id="1",
    task="any",
    image="",
    width=640,
    height=480,
    query="cat",
    truth=Truth(boxes=np.array([[10.0 + 7 * k, 20 + 5 * k, 60 + 8 * k, 90 + 6 * k] for k in range(20)]), labels=("person", "cat") * 10),
)
ONE = Sample(id="2", task="any", image="", width=640, height=480, query="cat", truth=Truth(boxes=np.array([[10.0, 20, 60, 90]]), labels=("cat",)))
PAGE = Sample(id="3", task="ocr", image="", width=640, height=480, query="", truth=Truth(text="The quick brown fox jumps over the lazy dog.\n" * 11))


def seconds_to_score(task_name: str, dialect: Dialect, thinking: bool, text: str) -> float:
    """Processor time, the least of up to six runs: what the code needs, without what else the machine was doing."""
    task, sample = make_task(task_name, dialect=dialect, thinking=thinking), {"grounding": ONE, "ocr": PAGE}.get(task_name, SCENE)
    frame, least = frame_of(640, 480, dialect), float("inf")
    for _ in range(6):
        start = time.process_time()
        score = task.score(text, sample, frame)
        least = min(least, time.process_time() - start)
        assert np.isfinite(score.total)
        if least < LIMIT:
            break
    return least


# Reading a page does not depend on the family, and rapidfuzz takes time with the page's length: docs/rewards.md.
@pytest.mark.parametrize(("task_name", "family"), [(task, family) for task in TASKS for family in DIALECTS if task != "ocr" or family == "qwen2-vl"])
def test_a_megabyte_of_hostile_text_is_scored_in_a_fifth_of_a_second(task_name: str, family: str) -> None:
    dialect, slow = DIALECTS[family], {}
    units = (
        UNITS if task_name == "detection" else UNITS[len(task_name) % 4 :: 4]
    )  # the tasks share the reading: every text once, a sample of them again
    texts = {f"{unit!r} repeated": unit * (SIZE // len(unit)) for unit in units} | {name: make(dialect) for name, make in SHAPES.items()}
    answered = {f"{name}, as a thought's answer": f"<think></think><answer>{texts[name]}</answer>" for name in SHAPES}
    for thinking, (name, text) in itertools.chain(((False, item) for item in texts.items()), ((True, item) for item in (texts | answered).items())):
        if thinking and not ("think" in name or "answer" in name):
            continue
        seconds = seconds_to_score(task_name, dialect, thinking, text)
        if seconds >= LIMIT:
            slow[name] = round(seconds, 2)
    assert not slow


def test_reading_time_grows_no_faster_than_the_text() -> None:
    """Eight times the text may cost up to sixteen times the time (noise); quadratic reading would cost sixty-four times."""
    for unit in ('{"a":"{","', "</think><answer>", "<ref>a<", "(1,1", "[{"):
        seconds = []
        for size in (SIZE // 2, 4 * SIZE):
            task, text = make_task("detection", dialect="qwen3-vl", thinking="think" in unit), unit * (size // len(unit))
            runs = []
            for _ in range(3):
                start = time.process_time()
                task.score(text, SCENE, FRAME)
                runs.append(time.process_time() - start)
            seconds.append(min(runs))
        assert seconds[1] < 16 * seconds[0] + 0.05, unit


# --- frames and models -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("factor", [28, 32])
def test_smart_resize_equals_transformers_own(factor: int) -> None:
    oracle = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize
    rng, refused = random.Random(factor), 0
    for _ in range(1500):
        width, height = (int(2 ** rng.uniform(0, 14)) for _ in range(2))
        least = int(2 ** rng.uniform(8, 17))
        limits = {"factor": factor, "min_pixels": least, "max_pixels": least * rng.randint(2, 500)}
        if max(width, height) / min(width, height) > 200:
            refused += 1
            with pytest.raises(ValueError, match="aspect"):
                oracle(height, width, **limits)
            with pytest.raises(BadData, match="aspect ratio"):
                smart_resize(width, height, **limits)
        else:
            assert smart_resize(width, height, **limits) == tuple(reversed(oracle(height, width, **limits)))
    assert 0 < refused < 750


@pytest.mark.parametrize(
    ("file", "family"),
    [
        ("qwen2_vl_2b_config.json", "qwen2-vl"),
        ("qwen2_5_vl_3b_config.json", "qwen2.5-vl"),
        ("qwen2_5_vl_7b_config.json", "qwen2.5-vl"),
        ("qwen3_vl_2b_config.json", "qwen3-vl"),
        ("qwen3_vl_4b_config.json", "qwen3-vl"),
        ("qwen3_vl_8b_config.json", "qwen3-vl"),
    ],
)
def test_the_dialect_of_a_real_models_config(data_folder, file: str, family: str) -> None:
    config = json.loads((data_folder("qwen_tokenizer_config") / file).read_text())
    assert dialect_of_model(config["model_type"]).name == family


@pytest.mark.parametrize(
    ("file", "family"), [("qwen2_5_vl_preprocessor_config.json", "qwen2.5-vl"), ("qwen3_vl_embedding_preprocessor_config.json", "qwen3-vl")]
)
def test_the_resize_factor_is_the_real_processors_patch_times_merge(data_folder, file: str, family: str) -> None:
    config = json.loads(Path(data_folder("qwen_tokenizer_config") / file).read_text())
    assert DIALECTS[family].factor == config["patch_size"] * config["merge_size"]


def test_unknown_dialects_and_models_are_errors_that_name_the_known_ones() -> None:
    with pytest.raises(BadData, match="'klingon'.*qwen2-vl, qwen2.5-vl, qwen3-vl, internvl, llava, plain"):
        dialect_named("klingon")
    with pytest.raises(BadData, match="'gpt2'.*--dialect"):
        dialect_of_model("gpt2")


@pytest.mark.parametrize("family", DIALECTS)
def test_a_frame_takes_the_seen_size_when_it_is_known(family: str) -> None:
    frame = frame_of(640, 480, DIALECTS[family], seen=(320, 240))
    assert (frame.seen_width, frame.seen_height) == (320, 240)
    guessed = frame_of(640, 480, DIALECTS[family])
    assert (guessed.seen_width, guessed.seen_height) == {28: (644, 476), 32: (640, 480), None: (640, 480)}[DIALECTS[family].factor]
