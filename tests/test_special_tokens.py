"""Special tokens say nothing: most engines strip them, and no score may depend on the engine."""

import json
import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from perception_r1.dialects import DIALECTS, frame_of
from perception_r1.records import BadData, Malformed, Sample, Truth
from perception_r1.tasks import TASKS, make_task

QWEN = (
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>",
    "<|im_end|>", "<|endoftext|>",
)  # fmt: skip
INTERNVL = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<IMG_CONTEXT>")
TOKENS = {"qwen2-vl": QWEN, "qwen2.5-vl": QWEN, "qwen3-vl": QWEN, "internvl": INTERNVL}
PENS = ("qwen2-vl", "internvl")
"""The families whose own form has special tokens."""
LABELS = (
    "dog", "cat", "traffic light", "player (10)", "man (left, red)", "sign [x], 7", "1,000 dogs", "a:b;c", "(1,2)", "[1, 2, 3, 4]",
    "", "none", "dog (", ") cat", "[", "ünï 漢",
)  # fmt: skip
AROUND = ("", "Here: ", " and ", "\n", ", ", ";", "There are 2 dogs.\n", "(10,20)", "[[", "10,20,30,40", "none", "```")


def stripped(family: str, text: str) -> str:
    """The text as an engine gives it that skips special tokens."""
    return re.sub("|".join(map(re.escape, TOKENS[family])), "", text)


def row(numbers: tuple[int, int, int, int], family: str) -> str:
    x1, y1, x2, y2 = numbers
    return f"({x1},{y1}),({x2},{y2})" if family == "qwen2-vl" else f"[{x1},{y1},{x2},{y2}]"


def spelled(label: str, rows: list[tuple[int, int, int, int]], family: str, lists: bool = True) -> str:
    """One ref with several boxes: InternVL in one list, or a list each; Qwen2-VL a box each."""
    if family == "qwen2-vl":
        boxes = "".join(f"<|box_start|>{row(numbers, family)}<|box_end|>" for numbers in rows)
        return f"<|object_ref_start|>{label}<|object_ref_end|>{boxes}"
    joined = ",".join(row(numbers, family) for numbers in rows)
    boxes = f"<box>[{joined}]</box>" if lists else "".join(f"<box>[{row(numbers, family)}]</box>" for numbers in rows)
    return f"<ref>{label}</ref>{boxes}"


def numbers() -> st.SearchStrategy[tuple[int, int, int, int]]:
    """Mostly boxes; sometimes inside out or outside."""
    side = st.tuples(st.integers(0, 900), st.integers(1, 100)).map(lambda pair: (pair[0], pair[0] + pair[1]))
    good = st.tuples(side, side).map(lambda xy: (xy[0][0], xy[1][0], xy[0][1], xy[1][1]))
    return st.one_of(good, good, good, st.tuples(*[st.integers(-50, 1200)] * 4))


@st.composite
def answers(draw: st.DrawFn, family: str) -> str:
    """Several refs with several boxes each, words around, and tokens where they do not belong."""
    pieces = []
    for _ in range(draw(st.integers(0, 4))):
        pieces.append(draw(st.sampled_from(AROUND)))
        rows = draw(st.lists(numbers(), min_size=0, max_size=3))
        pieces.append(spelled(draw(st.sampled_from(LABELS)), rows, family, draw(st.booleans())))
        pieces.append(draw(st.sampled_from(("", "", *TOKENS[family]))))
    text = "".join(pieces) + draw(st.sampled_from(AROUND))
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


@st.composite
def truths(draw: st.DrawFn, task: str) -> Sample:
    """Truths of every size that the task has."""
    text = Truth(text="Page <box> 1\n<|im_start|>of 2") if task == "ocr" else None
    most = 1 if task == "grounding" else 4
    rows = [] if text is not None else draw(st.lists(numbers().filter(lambda n: 0 <= n[0] < n[2] <= 999 and 0 <= n[1] < n[3] <= 999), max_size=most))
    labels = tuple(draw(st.sampled_from(("dog", "cat"))) for _ in rows)
    boxes = Truth(boxes=np.array(rows, dtype=float).reshape(-1, 4), labels=labels)
    return Sample(id="s", task=task, image="", width=1000, height=1000, query="dog", truth=boxes if text is None else text)


def same_score(task_name: str, family: str, thinking: bool, sample: Sample, kept: str, other: str) -> None:
    task = make_task(task_name, dialect=family, thinking=thinking)
    frame = frame_of(1000, 1000, task.dialect)
    one, two = (task.score(text, sample, frame) for text in (kept, other))
    assert one.terms == two.terms, (kept, other)
    assert (one.problem is None) == (two.problem is None)


# --- the law ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", PENS)
@pytest.mark.parametrize("task", TASKS)
@given(data=st.data(), thinking=st.booleans())
def test_stripping_special_tokens_changes_no_score(task: str, family: str, thinking: bool, data: st.DataObject) -> None:
    text = data.draw(answers(family))
    if thinking:
        text = f"<think>{data.draw(answers(family))}</think><answer>{text}</answer>"
    sample = data.draw(truths(task))
    same_score(task, family, thinking, sample, text, stripped(family, text))


@pytest.mark.parametrize("family", TOKENS)
@given(data=st.data(), thinking=st.booleans(), task=st.sampled_from(sorted(TASKS)))
def test_special_tokens_anywhere_in_an_answer_change_no_score(family: str, task: str, thinking: bool, data: st.DataObject) -> None:
    """In the JSON families too, between any two letters of the written truth, tags included."""
    sample = data.draw(truths(task))
    chapter = make_task(task, dialect=family, thinking=thinking)
    text = stripped(family, chapter.write(sample, frame_of(1000, 1000, chapter.dialect)))
    kept = text
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(kept)))
        kept = kept[:place] + data.draw(st.sampled_from(TOKENS[family])) + kept[place:]
    same_score(task, family, thinking, sample, kept, text)


@pytest.mark.parametrize("family", PENS)
@given(data=st.data(), task=st.sampled_from(["grounding", "counting", "detection"]), thinking=st.booleans())
def test_white_space_around_special_tokens_changes_no_score(family: str, task: str, thinking: bool, data: st.DataObject) -> None:
    labels = st.sampled_from([label for label in LABELS if label.strip("[(),; ")])
    parts = [
        spelled(data.draw(labels), data.draw(st.lists(numbers(), min_size=1, max_size=3)), family, data.draw(st.booleans()))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    text = ("\n" if family == "internvl" else "").join(parts)
    pieces = re.split(f"({'|'.join(map(re.escape, TOKENS[family]))})", text)
    spaces = st.sampled_from(["", " ", "\n", " \t "])
    spaced = "".join(data.draw(spaces) + piece + data.draw(spaces) if piece in TOKENS[family] else piece for piece in pieces)
    if thinking:
        text, spaced = (f"<think>I look.</think><answer>{some}</answer>" for some in (text, spaced))
    same_score(task, family, thinking, data.draw(truths(task)), text, spaced)


@pytest.mark.parametrize("family", PENS)
@pytest.mark.parametrize("task", TASKS)
@given(data=st.data(), thinking=st.booleans())
def test_the_written_truth_earns_full_marks_in_both_forms(task: str, family: str, thinking: bool, data: st.DataObject) -> None:
    sample = data.draw(truths(task))
    chapter = make_task(task, dialect=family, thinking=thinking)
    frame = frame_of(1000, 1000, chapter.dialect)
    written = chapter.write(sample, frame, thought="I look." if thinking else "")
    for text in (written, stripped(family, written)):
        assert chapter.score(text, sample, frame).total == chapter.bounds()[1]


@pytest.mark.parametrize("family", DIALECTS)
@given(labels=st.lists(st.text(alphabet="ab()[],;:<>|/ 019.-\n漢", max_size=8), min_size=1, max_size=3))
def test_odd_labels_are_read_back_from_both_forms_or_refused(family: str, labels: list[str]) -> None:
    dialect, frame = DIALECTS[family], frame_of(1000, 1000, DIALECTS[family])
    boxes = np.array([[10.0, 20, 30, 40]] * len(labels))
    try:
        text = dialect.write(boxes, labels, frame)
    except BadData:
        return
    for form in (text, stripped(family, text) if family in TOKENS else text):
        answer = dialect.read(form, frame)
        assert answer.exact
        assert answer.labels == tuple(labels if dialect.quotes_labels else [" ".join(label.split()) for label in labels])


@pytest.mark.parametrize("family", PENS)
@pytest.mark.parametrize("label", ["player (10)", "man (left, red)", "a 1,000", "2 dogs", "dog, black", "a: b", "<b>", "it's \"x\"", "C++ {1}", ""])
def test_labels_with_odd_letters_can_be_written(family: str, label: str) -> None:
    dialect, frame = DIALECTS[family], frame_of(1000, 1000, DIALECTS[family])
    text = dialect.write(np.array([[10.0, 20, 30, 40], [50.0, 60, 70, 80]]), [label, "cat"], frame)
    assert dialect.read(stripped(family, text), frame).labels == dialect.read(text, frame).labels == (label, "cat")


def test_a_box_without_a_name_after_one_with_a_name_keeps_none() -> None:
    dialect, frame = DIALECTS["qwen2-vl"], frame_of(1000, 1000, DIALECTS["qwen2-vl"])
    text = dialect.write(np.array([[10.0, 20, 30, 40]] * 4), ["", "cat", "", ""], frame)
    for form in (text, stripped("qwen2-vl", text)):
        answer = dialect.read(form, frame)
        assert (answer.labels, answer.exact) == (("", "cat", "", ""), True)


# --- the cases that were seen ----------------------------------------------------------------------------------------
def detect(family: str, text: str, *boxes: list[float], labels: tuple[str, ...] = ("dog", "dog")) -> float:
    task = make_task("detection", dialect=family)
    truth = Truth(boxes=np.array(boxes, dtype=float), labels=labels[: len(boxes)])
    sample = Sample(id="s", task="detection", image="", width=1000, height=1000, query="", truth=truth)
    return task.score(text, sample, frame_of(1000, 1000, task.dialect)).total


@pytest.mark.parametrize(
    "text",
    [
        "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|><|box_start|>(50,60),(70,80)<|box_end|>",
        "dog(10,20),(30,40)(50,60),(70,80)",
        "dog(10,20),(30,40), (50,60),(70,80)",
        " dog (10, 20), (30, 40)\n(50, 60), (70, 80)",
        "dog(10,20),(30,40)dog(50,60),(70,80)",
    ],
)
def test_one_ref_with_two_boxes_of_qwen2_vl(text: str) -> None:
    assert detect("qwen2-vl", text, [10, 20, 30, 40], [50, 60, 70, 80]) == 4


@pytest.mark.parametrize(
    "text",
    [
        "<ref>dog</ref><box>[[10,20,30,40],[50,60,70,80]]</box>",
        "dog[[10,20,30,40],[50,60,70,80]]",
        "dog[[10, 20, 30, 40]]\ndog[[50, 60, 70, 80]]",
        "dog [[10, 20, 30, 40]], dog [[50, 60, 70, 80]]",
    ],
)
def test_the_bare_form_of_internvl(text: str) -> None:
    assert detect("internvl", text, [10, 20, 30, 40], [50, 60, 70, 80]) == 4
    assert detect("internvl", "dog[[250, 250, 750, 750]]", [250, 250, 750, 750]) == 4


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("internvl", "dog[10,20,30,40]", (1, 0, False)),
        ("internvl", "dog[[10,20,30,40],[50,60,70", (1, 1, False)),
        ("internvl", "dog[[10,20,30,40]", (1, 0, False)),
        ("internvl", "dog[[10,20,30,40],[50,60,70]]", (1, 1, False)),
        ("internvl", "dog[[10,20,30,40][50,60,70,80]]", (2, 0, False)),
        ("internvl", "dog[[10,20,30,40]]10,20,30,40", (1, 1, False)),
        ("internvl", "dog[[10,20,30,40]] it is [sic]", (1, 0, False)),
        ("internvl", "Two:\ndog[[10,20,30,40]]", (1, 0, False)),
        ("internvl", "dog[[10,20,30,40]]cat[50,60,70]bird[[50,60,70,80]]", (2, 1, False)),
        ("internvl", "dog[[10,20,30,40],[50,60,7 cat[[50,60,70,80]]", (2, 1, False)),
        ("qwen2-vl", "dog(10,20)cat(30,40),(50,60)", (1, 1, False)),
        ("qwen2-vl", "dog(10,20),(30,4 cat(30,40),(50,60)", (1, 1, False)),
        ("qwen2-vl", "dog(10,20),(30,40)cat(30", (1, 1, False)),
        ("qwen2-vl", "dog(10,20),(30,40)10,20,30,40", (1, 1, False)),
        ("qwen2-vl", "dog(10,20),(30,40) is all", (1, 0, False)),
        ("qwen2-vl", "One dog:\ndog(10,20),(30,40)", (1, 0, False)),
        ("qwen2-vl", "Hm\u2028dog(10,20),(30,40)", (1, 0, False)),
    ],
)
def test_what_is_wrong_in_the_bare_form_costs_as_in_the_other(family: str, text: str, expected: tuple[int, int, bool]) -> None:
    dialect = DIALECTS[family]
    answer = dialect.read(text, frame_of(1000, 1000, dialect))
    assert (len(answer.boxes), answer.bad, answer.exact) == expected


def test_the_label_after_a_broken_box_is_its_own() -> None:
    for family, text in (("qwen2-vl", "dog(10,20)cat(30,40),(50,60)"), ("internvl", "dog[10,20]cat[[30,40,50,60]]")):
        assert DIALECTS[family].read(text, frame_of(1000, 1000, DIALECTS[family])).labels == ("cat",)


def test_tokens_spelled_inside_one_another_come_out_as_well() -> None:
    nested = "<|box_<|box_start|>start|>"
    assert detect("qwen2-vl", f"dog{nested}(10,20),(30,40)", [10, 20, 30, 40]) == 4
    deep = "<bo" * 100_000 + "<box>" + "x>" * 100_000
    with pytest.raises(Malformed, match="inside one another"):
        DIALECTS["internvl"].read(deep, frame_of(1000, 1000, DIALECTS["internvl"]))


def test_a_label_of_thousands_of_boxes_is_refused_when_written() -> None:
    with pytest.raises(BadData, match="punctuation"):
        DIALECTS["plain"].write(np.array([[1.0, 2, 3, 4]]), ["[1,2,3,4]" * 10_001], frame_of(9, 9, DIALECTS["plain"]))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "qwen3_vl_tokenizer_config.json"])
def test_the_special_tokens_are_those_of_the_real_tokenizer(data_folder, file: str) -> None:
    config = json.loads((data_folder("qwen_tokenizer_config") / file).read_text())
    known = config["added_tokens_decoder"].values()
    pattern = DIALECTS["qwen2-vl"].special_tokens
    assert {token["content"] for token in known if token["special"]} == set(QWEN)
    assert all(bool(pattern.fullmatch(token["content"])) == token["special"] for token in known)


def test_a_page_with_special_tokens_is_the_page_without_them() -> None:
    task = make_task("ocr", dialect="internvl")
    page = Sample(id="s", task="ocr", image="", width=9, height=9, query="", truth=Truth(text="a <box>b</box>"))
    frame = frame_of(9, 9, task.dialect)
    assert task.write(page, frame) == "a b"
    assert task.score("a b", page, frame).total == task.score("a <box>b</box>", page, frame).total == 2
    empty = Sample(id="s7", task="ocr", image="", width=9, height=9, query="", truth=Truth(text=" <box></box>"))
    with pytest.raises(BadData, match="s7.*blank"):
        task.score("a", empty, frame)


@given(st.text(alphabet="<|>/refboximgstart_", max_size=60))
def test_what_is_left_holds_no_special_token(text: str) -> None:
    for family in TOKENS:
        try:
            bare = DIALECTS[family].bare(text)
        except Malformed:
            assume(False)
        assert not any(token in bare for token in TOKENS[family])
