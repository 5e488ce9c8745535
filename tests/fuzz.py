"""A search for completions that break a reward: tasks × dialects × thinking × matching, for some minutes.

    make fuzz                                            ten minutes from a seed drawn by chance, which is printed
    python tests/fuzz.py --minutes 1 --seed 7            the same answers again
    python tests/fuzz.py --seed 7 --case 1234            one of them, with its text

An answer is the written truth with faults, or pieces of every family's form and of others'. Of each, the laws in `faults`
are asked. A case depends on the seed and its number alone. Exits with 1 at the first fault, and prints how to see it again.
"""

import argparse
import itertools
import math
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from perception_r1.dialects import DIALECTS, frame_of
from perception_r1.primitives.matching import MATCHINGS
from perception_r1.records import Frame, Sample, Score, Truth
from perception_r1.tasks import TASKS, Task, make_task

SETTINGS = list(itertools.product(TASKS, DIALECTS, (False, True), MATCHINGS))
SECONDS = 1.0
"""Processor time that no answer of this search may take: they have a few thousand letters at most."""
ROUNDING = 1e-9

NUMBERS = [
    "0",
    "1",
    "10",
    "250",
    "999",
    "1000",
    "0.5",
    "-1",
    "1e3",
    "1e308",
    "1e999",
    "nan",
    "inf",
    "١",
    "１",
    "1_0",
    "²",
    "9" * 400,
    "",
    " ",
]
SPACES = [
    " ",
    "\n",
    "\t",
    "\r",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x1f",
    "\x85",
    "\xa0",
    "\u2003",
    "\u2028",
    "\u200b",
    "\ufeff",
]
WORDS = [
    "dog",
    "cat",
    "none",
    "None.",
    "a dog (left)",
    "I see 2 dogs.",
    "漢字",
    "\x00",
    "\ud800",
    "\U0001f600",
    "é",
    "<b>",
    "\\",
    "'",
]
TAGS = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<think></think><answer>",
    "</think><answer>",
    "</answer></think>",
]
TOKENS = [
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|im_end|>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    "<img>",
]
MARKS = [
    "[",
    "]",
    "[[",
    "]]",
    "(",
    ")",
    "{",
    "}",
    ",",
    ":",
    ";",
    '"',
    "```",
    "```json\n",
    "[]",
    '"bbox_2d"',
    '"label"',
    '{"bbox_2d": [',
    '], "label": "',
]
BOXES = [
    "(10,20),(300,400)",
    "[10, 20, 300, 400]",
    "[[10,20,300,400],[5,5,9,9]]",
    '{"bbox_2d": [10, 20, 300, 400], "label": "dog"}',
    "dog: [0.1, 0.2, 0.3, 0.4]",
]
PIECES = [NUMBERS, SPACES, WORDS, TAGS, TOKENS, MARKS, BOXES]
SPECIAL = {
    "qwen": re.compile(r"<\|(?:object_ref_start|object_ref_end|box_start|box_end|im_end)\|>"),
    "internvl": re.compile("</?(?:ref|box)>|<img>"),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One answer to one sample under one setting."""

    task: Task
    sample: Sample
    frame: Frame
    text: str

    @property
    def setting(self) -> str:
        thinking = "thinking" if self.task.thinking else "no thinking"
        return f"{self.task.name}, {self.task.dialect.name}, {thinking}, {self.task.matching}"

    def score(self, text: str) -> Score:
        return self.task.score(text, self.sample, self.frame)


def draw_sample(task: str, rng: random.Random) -> Sample:
    width, height = rng.choice([(640, 480), (1, 1), (333, 500), (1200, 90), (4000, 3000)])
    known = {
        "id": "fuzz",
        "task": task,
        "image": "",
        "width": width,
        "height": height,
        "query": "dog",
    }
    if task == "ocr":
        return Sample(
            **known,
            truth=Truth(
                text=rng.choice(["10", "A page.\nOf two lines", "第1页 漢", "none", "[1, 2, 3, 4]"])
            ),
        )
    rows = []
    for _ in range(
        rng.choice([0, 1, 1, 1]) if task == "grounding" else rng.choice([0, 1, 2, 3, 7])
    ):
        (x1, x2), (y1, y2) = (
            sorted((rng.uniform(0, side), rng.uniform(0, side))) for side in (width, height)
        )
        rows.append((x1, y1, x2 + 1e-3, y2 + 1e-3))
    boxes_M4 = np.array(rows).reshape(-1, 4)
    labels = tuple(rng.choice(["dog", "cat"]) for _ in rows)
    if task == "counting" and rng.random() < 0.3:
        return Sample(**known, truth=Truth(points=boxes_M4[:, :2], labels=labels))
    return Sample(**known, truth=Truth(boxes=boxes_M4, labels=labels))


def soup(rng: random.Random) -> str:
    """Pieces of all kinds, one after the other."""
    return "".join(rng.choice(rng.choice(PIECES)) for _ in range(rng.randint(0, 25)))


def damaged(text: str, rng: random.Random) -> str:
    """A text with some faults: a part cut out, written twice or put elsewhere, and pieces put in."""
    for _ in range(rng.randint(0, 4)):
        start, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        part = text[start : min(end, start + rng.choice([1, 1, 5, 40]))]
        without = text[:start] + text[start + len(part) :]
        place = rng.randint(0, len(without))
        moved = without[:place] + part + without[place:]
        inserted = text[:start] + rng.choice(rng.choice(PIECES)) + text[start:]
        text = rng.choice(
            [without, moved, inserted, inserted, text[:start] + part + text[start:], text[:end]]
        )
    return text


def draw_case(seed: int, number: int) -> Case:
    """The case of this number: the settings take turns, all else is drawn from seed and number."""
    name, family, thinking, matching = SETTINGS[number % len(SETTINGS)]
    rng = random.Random(f"{seed}:{number}")
    task = make_task(
        name,
        dialect=family,
        thinking=thinking,
        matching=matching,
        weights={"words": 1.0} if name == "ocr" else {},
    )
    sample = draw_sample(name, rng)
    frame = frame_of(
        sample.width, sample.height, task.dialect, seen=rng.choice([None, (28, 56), (1000, 1000)])
    )
    form = rng.random()
    text = soup(rng) if form < 0.3 else damaged(task.write(sample, frame), rng)
    if form > 0.85:
        text = f"{rng.choice(['<think>', ''])}{soup(rng)}</think><answer>{damaged(task.write_truth(sample, frame), rng)}</answer>"
    return Case(task=task, sample=sample, frame=frame, text=text)


def faults(case: Case) -> Iterator[str]:
    """Laws that this case breaks, in words."""
    start = time.process_time()
    score = case.score(case.text)
    if time.process_time() - start > SECONDS:
        yield f"took more than {SECONDS} s"
    yield from out_of_bounds(case, score)
    if case.score(case.text) != score:
        yield "another score the second time"
    token = SPECIAL.get(
        case.task.dialect.name, SPECIAL["qwen"] if "qwen" in case.task.dialect.name else None
    )
    if token and case.score(token.sub("", case.text)).terms != score.terms:
        yield "another score without special tokens"
    yield from thought_faults(case, score)
    written = replace(case, text=case.task.write(case.sample, case.frame))
    if not math.isclose(case.score(written.text).total, case.task.bounds()[1]):
        yield "the written truth does not earn full marks"


def out_of_bounds(case: Case, score: Score) -> Iterator[str]:
    least, greatest = case.task.bounds()
    if not (math.isfinite(score.total) and least - ROUNDING <= score.total <= greatest + ROUNDING):
        yield f"total {score.total} is not from {least} to {greatest}"
    for name, (low, high) in case.task.all_terms().items():
        if name in score.terms and not low - ROUNDING <= score.terms[name] <= high + ROUNDING:
            yield f"{name} {score.terms[name]} is not from {low} to {high}"
    if score.problem is not None and score.total != least:
        yield "malformed, and not the least total"


def thought_faults(case: Case, score: Score) -> Iterator[str]:
    """What a thought may change: nothing when it was asked for and the prompt opened it; else the format term alone."""
    bare = case.task.dialect.bare(case.text)
    tags = re.findall("</?think>", bare)
    if tags[:1] == ["</think>"] and case.score(f"<think>{case.text}") != score:
        yield "another score when the thought is opened in the text"
    if tags or case.task.thinking:
        return
    thinking = case.score(f"<think>[10, 20, 300, 400] dog(1,2),(300,400)</think>{case.text}").terms
    if {**thinking, "format": 0.0} != {**score.terms, "format": 0.0} or thinking["format"]:
        yield "a thought that was not asked for changes more than the format term"


def again(seed: int, number: int) -> str:
    return f"again: python tests/fuzz.py --seed {seed} --case {number}"


def search(
    seed: int, minutes: float, first: int = 0, most: int | None = None
) -> tuple[int, list[str]]:
    """How many cases were tried, from `first` on, and the faults of the first that has some.

    What a case raises goes through, after the line that says how to see it again.
    """
    end, number = time.monotonic() + 60 * minutes, first
    while time.monotonic() < end and (most is None or number < first + most):
        case, found = draw_case(seed, number), None
        try:
            found = list(faults(case))
        finally:
            if found is None:
                print(
                    f"{case.setting}: raised\ntext: {case.text!r}\n{again(seed, number)}",
                    flush=True,
                )
        number += 1
        if found:
            told = [f"{case.setting}: {fault}" for fault in found]
            return number - first, [*told, f"text: {case.text!r}", again(seed, number - 1)]
    return number - first, []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="drawn by chance when not given")
    parser.add_argument("--case", type=int, default=None, help="only this case")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}, {len(SETTINGS)} settings, {options.minutes:g} minutes", flush=True)
    if options.case is not None:
        case = draw_case(seed, options.case)
        print(f"case {options.case}: {case.setting}\ntext: {case.text!r}")
    tried, found = search(
        seed, options.minutes, options.case or 0, None if options.case is None else 1
    )
    print("\n".join(found) if found else f"{tried:,} answers, no fault")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
