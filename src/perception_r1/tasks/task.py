"""The contract of a task: what the model is asked, how its reply is read, what it earns, and how it is measured."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from ..dialects import Dialect, dialect_named
from ..primitives.boxes import centres, diagonals, pairwise_distance, pairwise_iou
from ..primitives.matching import MATCHINGS
from ..records import Answer, BadData, Frame, Malformed, Sample, Score, Truth
from .thoughts import (
    ANSWER_TAGS,
    CLOSE,
    OPEN,
    THOUGHT_TAGS,
    inside_thought,
    opened,
    outside_thoughts,
)

THINK_REQUEST = " Think first, between <think> and </think>, then give the answer between <answer> and </answer>."


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One task with its settings. Subclasses are the chapters of the book: grounding, counting, detection, ocr."""

    dialect: Dialect = field(default_factory=lambda: dialect_named("qwen2-vl"))
    thinking: bool = False
    """Ask for, and demand, `<think>…</think><answer>…</answer>`."""
    matching: str = "hungarian"
    """How predictions are paired with truths: one of `primitives.matching.MATCHINGS`."""
    iou_shape: str = "iou"
    """What grounding makes of the IoU: one of `grounding.IOU_SHAPES`."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of a reward term, 1 (0 for those of OPTIONAL) where not given; 0 removes the term."""

    name: ClassVar[str]
    TERMS: ClassVar[Mapping[str, tuple[float, float]]]
    """Each reward term with its least and greatest value before weighting."""
    OPTIONAL: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Further terms that are there only where `weights` names them."""
    MAIN_METRIC: ClassVar[str]
    LOWER_IS_BETTER: ClassVar[frozenset[str]] = frozenset()
    TESTED: ClassVar[tuple[str, ...]] = ()
    """What a comparison tests, adjusted for each other: the main metric and the paper's."""
    RATES: ClassVar[frozenset[str]] = frozenset()
    """Metrics that are a share of the samples: means of the statistic of that name, 0 or 1 each."""
    BOUNDED: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Other metrics within [0, 1], and by the sum of which statistics a sample weighs in them.

    Without any, all samples weigh the same.
    """

    def __post_init__(self) -> None:
        if self.matching not in MATCHINGS:
            raise BadData(f"matching {self.matching!r} is not known: expected one of {', '.join(MATCHINGS)}")
        known = self.all_terms()
        if unknown := set(self.weights) - set(known):
            raise BadData(
                f"weights: {self.name} has no term {', '.join(sorted(unknown))}: "
                f"expected {', '.join(known)}"
            )
        if bad := [name for name, weight in self.weights.items() if not (math.isfinite(weight) and weight >= 0)]:
            raise BadData(f"weights: {bad[0]} is {self.weights[bad[0]]}: expected a finite number of at least 0")

    @classmethod
    def all_terms(cls) -> dict[str, tuple[float, float]]:
        """TERMS, and then OPTIONAL, with their limits before weighting."""
        return {**cls.TERMS, **cls.OPTIONAL}

    def weight(self, term: str) -> float:
        return float(self.weights.get(term, 0.0 if term in self.OPTIONAL else 1.0))

    def bounds(self) -> tuple[float, float]:
        """The least and the greatest total under these weights."""
        limits = [
            (self.weight(name) * least, self.weight(name) * greatest)
            for name, (least, greatest) in self.all_terms().items()
        ]
        return math.fsum(least for least, _ in limits), math.fsum(most for _, most in limits)

    def prompt(self, sample: Sample) -> str:
        """The user's words, the same in training and evaluation."""
        return self.question(sample) + (THINK_REQUEST if self.thinking else "")

    def template(self) -> str:
        """The prompt, with `{query}` and `{categories}` where a sample's own words go."""
        return self.prompt(_nothing(self.name, "{query}"))

    def write(self, sample: Sample, frame: Frame, thought: str = "") -> str:
        """The true answer as a completion: what supervised training teaches, and what earns full marks.

        Raises BadData for a truth that could not be read back (a tag, a label with the dialect's
        own punctuation).
        """
        text = self.write_truth(sample, frame)
        self.refuse_tags(sample, text)
        if not self.thinking:
            return text
        self.refuse_tags(sample, thought)
        return f"{OPEN}{thought}{CLOSE}<answer>{text}</answer>"

    def refuse_tags(self, sample: Sample, text: str) -> None:
        """Raises BadData for a text of the truth that would be read as a tag."""
        tags = THOUGHT_TAGS + (ANSWER_TAGS if self.thinking else ())
        if tag := next((tag for tag in tags if tag in text), None):
            raise BadData(
                f"sample {sample.id}: {tag} is in the truth or the thought, so it could not be read "
                f"back: {'use thinking=False or ' if tag in ANSWER_TAGS else ''}leave it out"
            )

    def read(self, completion: str, frame: Frame) -> Answer:
        """The answer in a completion. Raises Malformed.

        Nothing inside a thought is ever part of the answer, and special tokens say nothing.
        """
        text = self.dialect.bare(completion)
        if self.thinking:
            return self._read_after_thought(opened(text), frame)
        said, thoughtless = outside_thoughts(text)
        answer = self.read_answer(said, frame)
        return answer if thoughtless else replace(answer, exact=False)

    def _read_after_thought(self, text: str, frame: Frame) -> Answer:
        thought, _, rest = text.partition("<answer>")
        said, closing, tail = rest.partition("</answer>")
        if not closing or text.count("<answer>") != 1 or inside_thought(thought):
            raise Malformed("expected one <answer>…</answer> after the thought has closed")
        if OPEN in said or CLOSE in said:
            raise Malformed("expected no thought inside the answer")
        answer = self.read_answer(said, frame)
        thought = thought.strip()
        ends = thought.startswith(OPEN) and thought.endswith(CLOSE) and not tail.strip()
        exact = ends and all(text.count(tag) == 1 for tag in THOUGHT_TAGS + ANSWER_TAGS)
        return answer if exact else replace(answer, exact=False)

    def score(self, completion: str, sample: Sample, frame: Frame) -> Score:
        """The reward of one completion. Never raises on model text; raises BadData on a broken truth."""
        truth = self.snapped(sample, frame)
        try:
            answer, problem = self.read(completion, frame), None
            terms = self.terms(answer, truth, frame)
        except Malformed as malformed:
            problem = str(malformed)
            terms = {name: least for name, (least, _) in self.all_terms().items()}
        named = [name for name in self.all_terms() if self.weight(name)]
        return Score(terms={name: self.weight(name) * terms[name] for name in named}, problem=problem)

    def metrics(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Metrics from the means, over samples, of what `measure` gave. Works elementwise, so it serves the bootstrap too."""
        return dict(means)

    def needs_query(self) -> bool:
        """Whether a sample must say what is asked for: by default where the question changes with
        it. Override it where an empty query means something.
        """
        return self.question(_nothing(self.name, "{query}")) != self.question(
            _nothing(self.name, "")
        )

    @abstractmethod
    def question(self, sample: Sample) -> str: ...

    @abstractmethod
    def write_truth(self, sample: Sample, frame: Frame) -> str: ...

    @abstractmethod
    def read_answer(self, text: str, frame: Frame) -> Answer: ...

    @abstractmethod
    def snapped(self, sample: Sample, frame: Frame) -> Truth:
        """The truth on the dialect's grid: the best that the policy can write. Raises BadData if it is not this task's kind."""

    @abstractmethod
    def terms(self, answer: Answer, truth: Truth, frame: Frame) -> dict[str, float]:
        """Unweighted reward terms of a readable answer. Raises Malformed where the task demands more of it."""

    @staticmethod
    def pair_values(answer: Answer, truth: Truth, size: tuple[int, int]) -> np.ndarray:
        """What pictures call a match: for each predicted and true object (N, M) above 0, else 0.

        `size` is the original image's, in pixels. By default pairs of IoU ≥ 0.5, worth so much
        that most of them are found; where the truth is points, as the counting reward does.
        A task whose reward knows other pairs says so, that its pictures agree with it.
        """
        if truth.points is not None:
            return centre_values(answer.boxes, truth, float(np.hypot(*size)))
        iou_NM = pairwise_iou(answer.boxes, truth.needed_boxes())
        return np.where(iou_NM >= MATCH_IOU, 1 + iou_NM, 0.0)

    @abstractmethod
    def measure(self, answer: Answer | None, sample: Sample) -> dict[str, float]:
        """Statistics of one answer (None: malformed, which is wrong, never absent) against the raw truth."""


def _nothing(task: str, query: str) -> Sample:
    """A sample of no image."""
    return Sample(
        id="",
        task=task,
        image="",
        width=1,
        height=1,
        query=query,
        categories=("{categories}",),
        truth=Truth(text=""),
    )
MATCH_IOU = 0.5
POINT_RADIUS = 0.05
"""A true point is as wide as this share of the image's diagonal, where a box has half its own."""


def centre_values(boxes_N4: np.ndarray, truth: Truth, image_diagonal: float) -> np.ndarray:
    """φ = max(0, 1 − d / r) of N predicted boxes and M true objects, by their centres.

    d is in pixels, r half the diagonal of the true box, or POINT_RADIUS of the image's for a point.
    """
    if truth.boxes is not None:
        true_M2, radius_M = centres(truth.boxes), diagonals(truth.boxes) / 2
    else:
        true_M2 = np.asarray(truth.points)
        radius_M = np.full(len(truth), POINT_RADIUS * image_diagonal)
    return np.clip(1 - pairwise_distance(centres(boxes_N4), true_M2) / radius_M, 0, None)


POINT_BOX = 0.01
"""A point is written as a box this share of the image's sides to each side of it; only its centre counts."""


class BoxTask(Task):
    """What the three box tasks share: the dialect reads and writes, and truths are snapped to its grid."""

    def write_truth(self, sample: Sample, frame: Frame) -> str:
        truth = placed_objects(sample)
        boxes_M4 = truth.boxes if truth.boxes is not None else point_boxes(truth, frame)
        return self.dialect.write(boxes_M4, truth.labels, frame)

    def read_answer(self, text: str, frame: Frame) -> Answer:
        return self.dialect.read(text, frame)

    def snapped(self, sample: Sample, frame: Frame) -> Truth:
        truth = placed_objects(sample)
        if truth.boxes is not None:
            return Truth(boxes=self.dialect.snap(truth.boxes, frame), labels=truth.labels)
        boxes_M4 = self.dialect.snap(point_boxes(truth, frame), frame)
        return Truth(points=(boxes_M4[:, :2] + boxes_M4[:, 2:]) / 2, labels=truth.labels)


def true_objects(sample: Sample) -> Truth:
    """The sample's objects without its crowd regions. Raises BadData for a page of text."""
    truth = sample.truth
    if truth.text is not None:
        raise BadData(f"sample {sample.id}: task {sample.task} needs boxes or points as its truth, found text")
    if sample.crowd is None or not any(sample.crowd):
        return truth
    keep = ~np.array(sample.crowd)
    labels = tuple(label for label, kept in zip(truth.labels, keep, strict=True) if kept)
    return Truth(boxes=None if truth.boxes is None else truth.boxes[keep], points=None if truth.points is None else truth.points[keep], labels=labels)


def placed_objects(sample: Sample) -> Truth:
    """`true_objects` where they have places: what a reward needs. Raises BadData for a bare count too."""
    if sample.truth.count is not None:
        raise BadData(
            f"sample {sample.id}: its truth is a count without places, so no answer earns a reward: evaluate with it, train with boxes or points"
        )
    return true_objects(sample)


def point_boxes(truth: Truth, frame: Frame) -> np.ndarray:
    """Small boxes (M, 4) centred on the truth's points, inside the image."""
    points_M2 = np.zeros((0, 2)) if truth.points is None else truth.points
    size_2 = np.array([frame.width, frame.height])
    half_M2 = np.clip(np.minimum(points_M2, size_2 - points_M2), 0, POINT_BOX * size_2)
    return np.concatenate([points_M2 - half_M2, points_M2 + half_M2], axis=1)


def canonical_order(answer: Answer) -> np.ndarray:
    """An order of the predictions that does not depend on how they were written, so that neither ties nor rounding do."""
    rank = {label: place for place, label in enumerate(sorted(set(answer.labels)))}  # not a str array: one long label would fill the memory
    return np.lexsort((np.array([rank[label] for label in answer.labels], dtype=int), *answer.boxes.T[::-1]))


def same_names(a: Sequence[str], b: Sequence[str]) -> np.ndarray:
    """Which of N labels equal which of M labels, up to case and white space: bool (N, M).

    >>> same_names(["Traffic  Light", "cat"], ["traffic light"]).tolist()
    [[True], [False]]
    """
    codes: dict[str, int] = {}
    a_N, b_M = (np.array([codes.setdefault(plain_name(name), len(codes)) for name in names], dtype=int) for names in (a, b))
    return a_N[:, None] == b_M[None]


def plain_name(name: str) -> str:
    """A label as it is compared: without differences of case and white space."""
    return " ".join(name.split()).casefold()
