"""A table of cheats: what a policy might write to be paid without seeing. None beats an honest answer, none raises.

An honest answer is the written truth, and also an imperfect one: every box moved to IoU 0.7, or a page with one wrong letter
in eight. A cheat that carries the truth (duplicates, extra boxes, the wrong structure) must stay below the written truth; one
that does not must stay below the imperfect answer too. `SAME` marks another way of writing the truth, which may earn as much.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from perception_r1.dialects import DIALECTS, Dialect, frame_of
from perception_r1.primitives.boxes import pairwise_iou
from perception_r1.records import Frame, Sample, Truth
from perception_r1.tasks import Task, make_task
from perception_r1.tasks.detection import COCO_NAMES

WIDTH, HEIGHT = 640, 480
OBJECTS = {
    "grounding": ([[120.0, 80, 260, 400]], ("the left dog",)),
    "counting": ([[20.0, 30, 120, 110], [200, 40, 290, 130], [420, 60, 520, 170], [80, 300, 180, 420], [400, 290, 560, 440]], ("bird",) * 5),
    "detection": ([[120.0, 80, 260, 400], [300, 200, 420, 330], [440, 210, 600, 340], [30, 20, 110, 90]], ("person", "dog", "dog", "car")),
    "nothing": ([], ()),
}
PAGE = "Chapter 1\n\nIt was a bright cold day in the reading room, and the clocks were being wound.\nNobody had asked what the lamps were for.\n"
JSON_FAMILIES = ("qwen2.5-vl", "qwen3-vl")


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Where a cheat is written: the task, its sample and the family's pen."""

    task: Task
    sample: Sample
    frame: Frame

    @property
    def dialect(self) -> Dialect:
        return self.task.dialect

    @property
    def boxes(self) -> list[list[float]]:
        return [] if self.sample.truth.boxes is None else self.sample.truth.boxes.tolist()

    @property
    def labels(self) -> tuple[str, ...]:
        return self.sample.truth.labels

    @property
    def truth(self) -> str:
        """The true answer, without thinking tags."""
        return self.task.write_truth(self.sample, self.frame)

    def say(self, boxes: list[list[float]], labels: tuple[str, ...] | str) -> str:
        return self.dialect.write(np.array(boxes).reshape(-1, 4), (labels,) * len(boxes) if isinstance(labels, str) else labels, self.frame)

    def spell(self, *rows: tuple[str, str, str, str], label: str | None = None) -> str:
        """Boxes with any text in the place of the numbers."""
        return self.dialect.join(list(rows), [self.labels[0] if label is None else label] * len(rows))

    def steps(self, box: list[float], like: Dialect | None = None) -> tuple[str, str, str, str]:
        """A box's numbers as this family, or another one, writes them."""
        dialect = like or self.dialect
        return tuple(f"{step / dialect.divisor:g}" for step in dialect.quantise(np.array([box]), self.frame)[0])

    def total(self, completion: str) -> float:
        total = self.task.score(completion, self.sample, self.frame).total
        assert math.isfinite(total)
        return total

    def honest(self) -> float:
        """What the imperfect answer earns."""
        if self.sample.truth.text is not None:
            text = "".join("#" if place % 8 == 7 else letter for place, letter in enumerate(self.truth))
        else:
            text = self.say([nudged(box) for box in self.boxes], self.labels)
        return self.total(f"<think>I look.</think><answer>{text}</answer>" if self.task.thinking else text)


def desk(name: str, family: str, *, thinking: bool = False) -> Desk:
    task = make_task({"nothing": "detection"}.get(name, name), dialect=family, thinking=thinking)
    truth = Truth(text=PAGE) if name == "ocr" else Truth(boxes=np.array(OBJECTS[name][0]), labels=OBJECTS[name][1])
    query = {"grounding": "left dog", "counting": "bird"}.get(name, "")
    sample = Sample(id="scene", task=task.name, image="", width=WIDTH, height=HEIGHT, query=query, truth=truth)
    return Desk(task=task, sample=sample, frame=frame_of(WIDTH, HEIGHT, task.dialect))


def nudged(box: list[float]) -> list[float]:
    """The box moved by 3/17 of its width: IoU (14/17) / (20/17) = 0.7 with itself."""
    move = 3 / 17 * (box[2] - box[0])
    return [box[0] + move, box[1], box[2] + move, box[3]]


def test_the_honest_imperfect_answer_is_at_iou_0_7() -> None:
    for boxes, _ in OBJECTS.values():
        for box in boxes:
            assert pairwise_iou(np.array([box]), np.array([nudged(box)]))[0, 0] == pytest.approx(0.7)


WHOLE = [0.0, 0.0, float(WIDTH), float(HEIGHT)]
GRID = [[x, y, x + 40.0, y + 40.0] for x in range(0, 640, 40) for y in range(0, 480, 40)]
TINY = [[x + 1.0, y + 1.0, x + 5.0, y + 5.0] for x in range(0, 640, 32) for y in range(0, 480, 32)]
WINDOWS = [[x, y, x + side, y + side] for side in (120.0, 240.0) for x in range(0, 400, 40) for y in range(0, 240, 40)]
BLIND, SIGHTED, SAME = "carries no truth", "carries the truth", "the truth written otherwise"
ALL = tuple(DIALECTS)


@dataclass(frozen=True, kw_only=True)
class Cheat:
    """One cheat: the tasks and families it is tried in, what it knows, and what it writes."""

    tasks: tuple[str, ...]
    write: Callable[[Desk], str]
    knows: str = BLIND
    families: tuple[str, ...] = ALL
    thinking: bool = False


BOXES = ("grounding", "counting", "detection")
MANY = ("counting", "detection")


def truthful(write: Callable[[Desk], str], tasks: tuple[str, ...] = BOXES, **more: object) -> Cheat:
    return Cheat(tasks=tasks, write=write, knows=SIGHTED, **more)


def json_item(desk: Desk, box: str, label: str = '"dog"') -> str:
    return f'[{{"bbox_2d": {box}, "label": {label}}}]'


CHEATS: dict[str, Cheat] = {
    # Nothing, or no answer at all.
    "empty string": Cheat(tasks=(*BOXES, "ocr", "nothing"), write=lambda d: ""),
    "white space only": Cheat(tasks=(*BOXES, "ocr"), write=lambda d: " \n\t\u2003 "),
    "the written empty answer to a full scene": Cheat(tasks=BOXES, write=lambda d: d.dialect.nothing),
    "the other convention's empty answer": Cheat(tasks=(*BOXES, "nothing"), write=lambda d: "none" if d.dialect.nothing == "[]" else "[]"),
    "an apology": Cheat(tasks=BOXES, write=lambda d: "I am sorry, I cannot see the image."),
    "yes": Cheat(tasks=(*BOXES, "ocr"), write=lambda d: "yes"),
    "the prompt copied": Cheat(tasks=(*BOXES, "ocr"), write=lambda d: d.task.prompt(d.sample)),
    "only the opening token": Cheat(tasks=BOXES, write=lambda d: "<|box_start|>"),
    "unescaped pipe garbage": Cheat(tasks=BOXES, write=lambda d: '"<garbage'),
    "the count in words": Cheat(tasks=("counting",), write=lambda d: "There are 5 birds."),
    "a null byte": Cheat(tasks=BOXES, write=lambda d: "\x00"),
    "a lone surrogate": Cheat(tasks=(*BOXES, "ocr"), write=lambda d: "\ud800"),
    # Boxes that know nothing.
    "one giant box": Cheat(tasks=BOXES, write=lambda d: d.say([WHOLE], d.labels[0])),
    "as many giant boxes as objects": Cheat(tasks=MANY, write=lambda d: d.say([WHOLE] * len(d.boxes), d.labels)),
    "the giant box in an empty scene": Cheat(tasks=("nothing",), write=lambda d: d.say([WHOLE], "person")),
    "every class at once on the whole image": Cheat(tasks=("detection", "nothing"), write=lambda d: d.say([WHOLE] * 80, COCO_NAMES)),
    "every class at once on every true box": truthful(
        lambda d: d.say([box for box in d.boxes for _ in COCO_NAMES], COCO_NAMES * len(d.boxes)), ("detection",)
    ),
    "all names in one label": truthful(lambda d: d.say(d.boxes, ", ".join(COCO_NAMES)), ("detection",)),
    "a grid of boxes": Cheat(tasks=(*BOXES, "nothing"), write=lambda d: d.say(GRID, "dog")),
    "a grid of tiny boxes": Cheat(tasks=BOXES, write=lambda d: d.say(TINY, "dog")),
    "a sliding window of boxes": Cheat(tasks=BOXES, write=lambda d: d.say(WINDOWS, "dog")),
    "a sliding window of boxes in every class": Cheat(
        tasks=("detection",), write=lambda d: d.say(WINDOWS * 3, ("person",) * len(WINDOWS) + ("dog",) * len(WINDOWS) + ("car",) * len(WINDOWS))
    ),
    "ten thousand boxes": Cheat(tasks=MANY, write=lambda d: d.say((GRID * 53)[:10_000], "dog"), families=("qwen3-vl", "plain")),
    "more boxes than are read": Cheat(tasks=BOXES, write=lambda d: d.say(d.boxes, d.labels) * 10_001, families=("qwen2-vl",)),
    "boxes inside out": Cheat(tasks=BOXES, write=lambda d: d.spell(*[(x2, y2, x1, y1) for x1, y1, x2, y2 in map(d.steps, d.boxes)])),
    "boxes with x and y swapped": Cheat(tasks=BOXES, write=lambda d: d.spell(*[(y1, x1, y2, x2) for x1, y1, x2, y2 in map(d.steps, d.boxes)])),
    "boxes as x, y, width, height": Cheat(
        tasks=BOXES,
        write=lambda d: d.spell(
            *[d.steps([x1, y1, x2 - x1, y2 - y1]) for x1, y1, x2, y2 in d.boxes if x1 < x2 - x1 and y1 < y2 - y1] or [("5", "5", "1", "1")]
        ),
    ),
    "boxes of no area": Cheat(tasks=BOXES, write=lambda d: d.spell(*[(x1, y1, x1, y1) for x1, y1, _, _ in map(d.steps, d.boxes)])),
    "pixels in the 0-1000 families": Cheat(
        tasks=BOXES, write=lambda d: d.spell(*[d.steps(box, DIALECTS["plain"]) for box in d.boxes]), families=("qwen2-vl", "qwen3-vl", "internvl")
    ),
    "0-1000 in the pixel families": Cheat(
        tasks=BOXES, write=lambda d: d.spell(*[d.steps(box, DIALECTS["qwen3-vl"]) for box in d.boxes]), families=("qwen2.5-vl", "plain")
    ),
    "0-1000 in llava": Cheat(tasks=BOXES, write=lambda d: d.spell(*[d.steps(box, DIALECTS["qwen3-vl"]) for box in d.boxes]), families=("llava",)),
    "shares of the sides in the 0-1000 families": Cheat(
        tasks=BOXES, write=lambda d: d.spell(*[d.steps(box, DIALECTS["llava"]) for box in d.boxes]), families=("qwen2-vl", "qwen3-vl", "internvl")
    ),
    "boxes outside the image": Cheat(tasks=(*BOXES, "nothing"), write=lambda d: d.spell(("5000", "5000", "6000", "6000"), label="dog")),
    "boxes left of the image": Cheat(tasks=BOXES, write=lambda d: d.spell(("-500", "-500", "-400", "-400"))),
    "a box of 1e308": Cheat(tasks=BOXES, write=lambda d: d.spell(("0", "0", "1e308", "1e308"))),
    "a box from -1e308 to 1e308": Cheat(tasks=BOXES, write=lambda d: d.spell(("-1e308", "-1e308", "1e308", "1e308"))),
    "a box of 1e999": Cheat(tasks=BOXES, write=lambda d: d.spell(("0", "0", "1e999", "1e999"))),
    "a box of infinities": Cheat(tasks=BOXES, write=lambda d: d.spell(("-Infinity", "-Infinity", "Infinity", "Infinity"))),
    "a box of NaN": Cheat(tasks=(*BOXES, "nothing"), write=lambda d: d.spell(("NaN", "NaN", "NaN", "NaN"), label="dog")),
    "a box of 1e-320": Cheat(tasks=BOXES, write=lambda d: d.spell(("0", "0", "1e-320", "1e-320"))),
    "a box of a million digits": Cheat(tasks=BOXES, write=lambda d: d.spell(("0", "0", "9" * 1_000_000, "1"))),
    "code in the place of numbers": Cheat(tasks=BOXES, write=lambda d: d.spell(("__import__('os')", "0", "1", "1"))),
    "three numbers": Cheat(tasks=BOXES, write=lambda d: d.spell(("1", "2", "3", ""))),
    "five numbers": Cheat(tasks=BOXES, write=lambda d: d.spell(("1", "2", "3", "4, 5"))),
    # The truth, with something that costs.
    "every box twice": truthful(lambda d: d.say(d.boxes * 2, d.labels * 2)),
    "every box ten times": truthful(lambda d: d.say(d.boxes * 10, d.labels * 10)),
    "every box ten times, a hair apart": truthful(
        lambda d: d.say(
            [[x1 + k, y1 + k, x2 + k, y2 + k] for x1, y1, x2, y2 in d.boxes for k in range(10)], tuple(name for name in d.labels for _ in range(10))
        )
    ),
    "the first box as often as there are objects": truthful(lambda d: d.say([d.boxes[0]] * len(d.boxes), d.labels[0]), MANY),
    "only the first box": truthful(lambda d: d.say(d.boxes[:1], d.labels[:1]), MANY),
    "all but one box": truthful(lambda d: d.say(d.boxes[1:], d.labels[1:]), MANY),
    "the truth and a giant box": truthful(lambda d: d.say([*d.boxes, WHOLE], (*d.labels, d.labels[0]))),
    "the truth and a hallucinated class": truthful(lambda d: d.say([*d.boxes, d.boxes[0]], (*d.labels, "unicorn"))),
    "the truth and a box outside": truthful(lambda d: d.say(d.boxes, d.labels) + d.spell(("5000", "5000", "6000", "6000"))),
    "the truth and a box of NaN": truthful(lambda d: d.say(d.boxes, d.labels) + d.spell(("NaN", "NaN", "NaN", "NaN"))),
    "the truth said twice": truthful(lambda d: d.truth + "\n" + d.truth),
    "one box over two objects, twice": truthful(lambda d: d.say([[300, 200, 600, 340]] * 2, ("dog", "dog")), ("detection",)),
    "one box around everything for each object": truthful(
        lambda d: d.say([[*np.min(d.boxes, 0)[:2], *np.max(d.boxes, 0)[2:]]] * len(d.boxes), d.labels), MANY
    ),
    "swapped labels": truthful(lambda d: d.say(d.boxes, ("car", "person", "person", "dog")), ("detection",)),
    "labels rotated by one": truthful(lambda d: d.say(d.boxes, d.labels[1:] + d.labels[:1]), ("detection",)),
    "no labels": truthful(lambda d: d.say(d.boxes, ""), ("detection",)),
    "labels in homoglyphs": truthful(lambda d: d.say(d.boxes, ("pеrson", "dоg", "dоg", "cаr")), ("detection",)),
    "labels with a plural": truthful(lambda d: d.say(d.boxes, tuple(f"{name}s" for name in d.labels)), ("detection",)),
    "labels that contain the name": truthful(lambda d: d.say(d.boxes, tuple(f"hot {name}" for name in d.labels)), ("detection",)),
    "labels with a zero-width space": truthful(lambda d: d.say(d.boxes, tuple(f"{name}\u200b" for name in d.labels)), ("detection",)),
    "labels that hold JSON": truthful(
        lambda d: d.say(d.boxes, tuple(f'{{"label": "{name}"}}' for name in d.labels)), ("detection",), families=JSON_FAMILIES
    ),
    "a label that closes the list": truthful(
        lambda d: d.say(d.boxes, ('person"}], "bbox_2d": [1, 1, 2, 2]', *d.labels[1:])), ("detection",), families=JSON_FAMILIES
    ),
    "full-width digits": truthful(lambda d: d.truth.translate({ord("0") + k: "０１２３４５６７８９"[k] for k in range(10)})),
    "arabic digits": truthful(lambda d: d.truth.translate({ord("0") + k: "٠١٢٣٤٥٦٧٨٩"[k] for k in range(10)})),
    "underscored digits": truthful(lambda d: d.spell(*[tuple(f"0_{n}" for n in d.steps(box)) for box in d.boxes])),
    "the truth after a sentence of boxes": truthful(lambda d: f"I first thought of {d.say([WHOLE], d.labels[0])} but it is\n{d.truth}"),
    "the truth and then a megabyte of brackets": truthful(lambda d: d.truth + "[" * 1_000_000),
    "the truth and then a megabyte of another family's tokens": truthful(
        lambda d: d.truth + "<|box_start|>" * 80_000, families=("internvl", "llava", "plain")
    ),
    "the truth cut in its last box": truthful(lambda d: d.truth[: -len(d.spell(("1", "2", "3", "4"), label="")) // 2]),
    "the truth without its last character": truthful(lambda d: d.truth[:-1]),
    "numbers only, in prose": truthful(lambda d: f"It is at {' '.join(d.steps(d.boxes[0]))}."),
    "JSON in a family that writes none": truthful(
        lambda d: make_task(d.task.name, dialect="qwen3-vl").write_truth(d.sample, d.frame), families=("qwen2-vl", "internvl", "llava", "plain")
    ),
    "special tokens in a family that writes JSON": truthful(
        lambda d: make_task(d.task.name, dialect="qwen2-vl").write_truth(d.sample, d.frame), families=JSON_FAMILIES
    ),
    # JSON families.
    "empty list, then boxes": truthful(lambda d: "[]" + d.truth, families=JSON_FAMILIES),
    "boxes, then an empty list": truthful(lambda d: d.truth + "[]", families=JSON_FAMILIES),
    "truncated list": truthful(lambda d: d.truth[:-1], families=JSON_FAMILIES),
    "truncated list and a new item begun": truthful(lambda d: d.truth[:-1] + ', {"bbox_2d": [1, 2', families=JSON_FAMILIES),
    "duplicate box keys": truthful(
        lambda d: json_item(d, f'[1, 1, 2, 2], "bbox_2d": [{", ".join(d.steps(d.boxes[0]))}]', f'"{d.labels[0]}"'), families=JSON_FAMILIES
    ),
    "duplicate label keys": truthful(
        lambda d: d.truth.replace('"label": "person"', '"label": "dog", "label": "person"'), ("detection",), families=JSON_FAMILIES
    ),
    "box as a string": truthful(lambda d: d.truth.replace("[", '"[').replace("]", ']"'), families=JSON_FAMILIES),
    "nested lists of numbers": truthful(lambda d: d.truth.replace("[", "[[").replace("]", "]]"), families=JSON_FAMILIES),
    "nested objects": truthful(lambda d: f'{{"answer": {{"objects": {d.truth}}}}}', families=JSON_FAMILIES),
    "comments": truthful(lambda d: d.truth.replace("[{", "[ // here they are\n{").replace("}]", "} /* all */ ]"), families=JSON_FAMILIES),
    "single quotes": truthful(lambda d: d.truth.replace('"', "'"), families=JSON_FAMILIES),
    "another key for the box": truthful(lambda d: d.truth.replace("bbox_2d", "bbox"), families=JSON_FAMILIES),
    "another key for the label": truthful(lambda d: d.truth.replace('"label"', '"name"'), families=JSON_FAMILIES),
    "confidence of zero": truthful(lambda d: d.truth.replace("}", ', "confidence": 0}'), families=JSON_FAMILIES),
    "box key in escapes": truthful(lambda d: d.truth.replace("bbox_2d", "bbox\\u005f2d"), families=JSON_FAMILIES),
    "lines of objects without a list": truthful(lambda d: d.truth[1:-1].replace("}, {", "}\n{"), families=JSON_FAMILIES),
    "a fence never closed": truthful(lambda d: f"```json\n{d.truth}", families=JSON_FAMILIES),
    "a megabyte of opening brackets": Cheat(tasks=(*BOXES, "ocr"), write=lambda d: "[" * 1_000_000),
    "a megabyte of opening objects": Cheat(tasks=BOXES, write=lambda d: '{"' * 500_000),
    "a megabyte of closing tags": Cheat(tasks=BOXES, write=lambda d: "</answer></think>" * 60_000),
    # Other families.
    "single brackets in a box tag": truthful(lambda d: d.truth.replace("[[", "[").replace("]]", "]"), families=("internvl",)),
    "lines without a colon": truthful(lambda d: d.truth.replace(":", ""), families=("llava", "plain")),
    "lines with a bullet before each": truthful(
        lambda d: "\n".join(f"[{k}] {line}" for k, line in enumerate(d.truth.splitlines())), families=("llava", "plain")
    ),
    # Thinking.
    "thought never closed": truthful(lambda d: f"<think>I look. <answer>{d.truth}</answer>", thinking=True),
    "answer inside the thought": truthful(lambda d: f"<think>I look. <answer>{d.truth}</answer></think>", thinking=True),
    "answer inside a thought opened twice": truthful(lambda d: f"</think><think>I look. <answer>{d.truth}</answer>", thinking=True),
    "thought inside the answer": truthful(lambda d: f"<think>I look.</think><answer><think>{d.truth}</think></answer>", thinking=True),
    "two answers": truthful(lambda d: f"<think>I look.</think><answer>{d.dialect.nothing}</answer><answer>{d.truth}</answer>", thinking=True),
    "nested answers": truthful(lambda d: f"<think>I look.</think><answer><answer>{d.truth}</answer></answer>", thinking=True),
    "answer never closed": truthful(lambda d: f"<think>I look.</think><answer>{d.truth}", thinking=True),
    "answer without tags": truthful(lambda d: d.truth, thinking=True),
    "answer without a thought": truthful(lambda d: f"<answer>{d.truth}</answer>", thinking=True),
    "answer before the thought": truthful(lambda d: f"<answer>{d.truth}</answer><think>I look.</think>", thinking=True),
    "words after the answer": truthful(lambda d: f"<think>I look.</think><answer>{d.truth}</answer> I am sure.", thinking=True),
    "words between thought and answer": truthful(lambda d: f"<think>I look.</think>So:<answer>{d.truth}</answer>", thinking=True),
    "thought twice": truthful(lambda d: f"<think>a</think><think>b</think><answer>{d.truth}</answer>", thinking=True),
    "tags in capitals": truthful(lambda d: f"<THINK>I look.</THINK><ANSWER>{d.truth}</ANSWER>", thinking=True),
    "only tags": Cheat(tasks=(*BOXES, "ocr"), write=lambda d: "<think></think><answer></answer>", thinking=True),
    "a thought that never ends": Cheat(tasks=(*BOXES, "ocr"), write=lambda d: "<think>" + "Hmm. " * 200_000, thinking=True),
    "tags although none were asked for": truthful(lambda d: f"<think>{d.truth}</think><answer>{d.truth}</answer>", MANY),
    "answer inside a thought that the prompt opened": truthful(lambda d: f"I look. <answer>{d.truth}</answer></think>", thinking=True),
    "thought closed twice": truthful(lambda d: f"I look.</think></think><answer>{d.truth}</answer>", thinking=True),
    "truth in a thought although none was asked for": truthful(lambda d: f"<think>{d.truth}</think>{d.dialect.nothing}"),
    "truth in a thought never closed": truthful(lambda d: f"<think>{d.truth}"),
    "truth after a thought although none was asked for": truthful(lambda d: f"<think>I look.</think>{d.truth}"),
    # Pages.
    "the page twice": truthful(lambda d: d.truth * 2, ("ocr",), families=("qwen2-vl",)),
    "the page fifty times": truthful(lambda d: d.truth * 50, ("ocr",), families=("qwen2-vl",)),
    "half the page": truthful(lambda d: d.truth[: len(d.truth) // 2], ("ocr",), families=("qwen2-vl",)),
    "the page in a fence": truthful(lambda d: f"```\n{d.truth}\n```", ("ocr",), families=("qwen2-vl",)),
    "the page and a remark": truthful(lambda d: f"Here is the text: {d.truth}", ("ocr",), families=("qwen2-vl",)),
    "the page in capitals": truthful(lambda d: d.truth.upper(), ("ocr",), families=("qwen2-vl",)),
    "the page without spaces": truthful(lambda d: "".join(d.truth.split()), ("ocr",), families=("qwen2-vl",)),
    "the page's words sorted": truthful(lambda d: " ".join(sorted(d.truth.split())), ("ocr",), families=("qwen2-vl",)),
    "the page reversed": truthful(lambda d: d.truth[::-1], ("ocr",), families=("qwen2-vl",)),
    "the page in homoglyphs": truthful(lambda d: d.truth.translate({ord("a"): "а", ord("e"): "е", ord("o"): "о"}), ("ocr",), families=("qwen2-vl",)),
    "the page with zero-width spaces": truthful(lambda d: "\u200b".join(d.truth), ("ocr",), families=("qwen2-vl",)),
    "the alphabet": Cheat(tasks=("ocr",), write=lambda d: "abcdefghijklmnopqrstuvwxyz" * 6, families=("qwen2-vl",)),
    "spaces with a full stop": Cheat(tasks=("ocr",), write=lambda d: " " * 150 + ".", families=("qwen2-vl",)),
    "the commonest letter": Cheat(tasks=("ocr",), write=lambda d: "e" * len(d.truth), families=("qwen2-vl",)),
    # The truth, written otherwise: may earn as much, never more. Most engines strip special tokens, so their absence costs nothing.
    "box token never closed": Cheat(tasks=BOXES, write=lambda d: d.truth.replace("<|box_end|>", ""), knows=SAME, families=("qwen2-vl",)),
    "box token never opened": Cheat(tasks=BOXES, write=lambda d: d.truth.replace("<|box_start|>", ""), knows=SAME, families=("qwen2-vl",)),
    "ref tag never closed": Cheat(tasks=("detection",), write=lambda d: d.truth.replace("</ref>", ""), knows=SAME, families=("internvl",)),
    "box tag never closed": Cheat(tasks=BOXES, write=lambda d: d.truth.replace("</box>", ""), knows=SAME, families=("internvl",)),
    "the truth and then a megabyte of open tokens": Cheat(
        tasks=BOXES, write=lambda d: d.truth + "<|box_start|>" * 80_000, knows=SAME, families=("qwen2-vl", *JSON_FAMILIES)
    ),
    "labels in capitals": Cheat(tasks=("detection",), write=lambda d: d.say(d.boxes, tuple(name.upper() for name in d.labels)), knows=SAME),
    "labels with more white space": Cheat(tasks=("detection",), write=lambda d: d.say(d.boxes, tuple(f"{name} " for name in d.labels)), knows=SAME),
    "boxes in another order": Cheat(tasks=MANY, write=lambda d: d.say(d.boxes[::-1], d.labels[::-1]), knows=SAME),
    "numbers as floats": Cheat(
        tasks=BOXES, write=lambda d: d.spell(*[tuple(f"{float(n):.6f}" for n in d.steps(box)) for box in d.boxes]), knows=SAME
    ),
    "numbers with a plus and zeros": Cheat(
        tasks=BOXES, write=lambda d: d.spell(*[tuple(f"+00{n}" for n in d.steps(box)) for box in d.boxes]), knows=SAME
    ),
    "white space at the ends": Cheat(tasks=(*BOXES, "ocr", "nothing"), write=lambda d: f"\n {d.truth} \n", knows=SAME),
    "a fence": Cheat(tasks=(*BOXES, "nothing"), write=lambda d: f"```json\n{d.truth}\n```", knows=SAME, families=JSON_FAMILIES),
    "a long thought": Cheat(tasks=BOXES, write=lambda d: f"<think>{'Hmm. ' * 9000}</think>\n<answer>{d.truth}</answer>\n", knows=SAME, thinking=True),
    "a thought that the prompt opened": Cheat(
        tasks=(*BOXES, "ocr"), write=lambda d: f"I look.</think><answer>{d.truth}</answer>", knows=SAME, thinking=True
    ),
    "boxes in the thought": Cheat(
        tasks=BOXES, write=lambda d: f"<think>{d.say(GRID, 'dog')}</think><answer>{d.truth}</answer>", knows=SAME, thinking=True
    ),
}


def test_the_table_names_at_least_sixty_cheats_and_every_task() -> None:
    assert len(CHEATS) >= 60
    assert {task for cheat in CHEATS.values() for task in cheat.tasks} == {*OBJECTS, "ocr"}
    assert sum(cheat.knows == BLIND for cheat in CHEATS.values()) >= 30


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_never_beats_an_honest_answer(name: str) -> None:
    cheat = CHEATS[name]
    for task_name in cheat.tasks:
        for family in cheat.families if task_name != "ocr" else ("qwen2-vl",):
            place = desk(task_name, family, thinking=cheat.thinking)
            paid, written = place.total(cheat.write(place)), place.total(place.task.write(place.sample, place.frame))
            where = f"{name} in {task_name}, {family}: {paid} against {written}"
            assert written == place.task.bounds()[1]
            if cheat.knows == SAME:
                assert paid <= written, where
                continue
            assert paid < written, where
            if cheat.knows == BLIND:
                assert paid < place.honest(), f"{where} and {place.honest()} for the honest imperfect answer"


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("task_name", [*BOXES, "ocr"])
def test_the_honest_imperfect_answer_earns_more_than_half_of_what_can_be_earned(task_name: str, family: str) -> None:
    """Else the comparison with it would prove little."""
    place = desk(task_name, family)
    least, greatest = place.task.bounds()
    assert (place.honest() - least) / (greatest - least) > 0.7
