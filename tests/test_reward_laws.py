"""The laws of every reward (DESIGN.md), each as a property: through text, in every dialect, thinking on and off.

Unless a test says otherwise: Hungarian matching, default weights, and a law holds of the TOTAL.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from perception_r1.dialects import DIALECTS, frame_of
from perception_r1.primitives.matching import MATCHINGS
from perception_r1.records import BadData, Frame, Sample, Truth
from perception_r1.tasks import Task, make_task

NAMES = ("person", "dog", "traffic light")
ROUNDING = 1e-9
BOX_TASKS = ("grounding", "counting", "detection")
LISTS = ("counting", "detection")
"""The tasks whose answer may have any number of boxes."""

LATTICE = [(low, high) for high in range(1, 9) for low in range(high)]
Boxes = list[tuple[float, float, float, float]]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A sample, how its answers are written, and one answer: predicted boxes in original pixels, with labels."""

    task: Task
    sample: Sample
    frame: Frame
    boxes: Boxes
    labels: tuple[str, ...]

    def text(self, boxes: Boxes, labels: tuple[str, ...]) -> str:
        """The boxes as the family writes them, with unrounded numbers."""
        if not boxes:
            return self.wrap(self.task.dialect.nothing)
        scale_4 = np.array(self.task.dialect.units(self.frame) * 2) / (
            np.array([self.frame.width, self.frame.height] * 2) * self.task.dialect.divisor
        )
        return self.wrap(self.task.dialect.join([[repr(float(value)) for value in np.array(box) * scale_4] for box in boxes], labels))

    def wrap(self, text: str) -> str:
        return f"<think>I look.</think><answer>{text}</answer>" if self.task.thinking else text

    def score(self, boxes: Boxes, labels: tuple[str, ...]) -> dict[str, float]:
        return dict(self.task.score(self.text(boxes, labels), self.sample, self.frame).terms)

    def total(self, boxes: Boxes, labels: tuple[str, ...]) -> float:
        return math.fsum(self.score(boxes, labels).values())

    @cached_property
    def truths(self) -> list[tuple[tuple[float, ...], str]]:
        """The true boxes (for a point: the point twice) on the dialect's grid, with labels."""
        truth = self.task.snapped(self.sample, self.frame)
        rows = truth.boxes if truth.boxes is not None else np.tile(truth.points, (1, 2))
        return [(tuple(map(float, row)), label) for row, label in zip(rows, truth.labels, strict=True)]

    def phi(self, box: tuple[float, ...], label: str, truth: tuple[tuple[float, ...], str]) -> float:
        """The pair value of DESIGN.md, box by box, written independently of the package."""
        true, name = truth
        if self.task.name == "counting":
            radius = math.dist(true[:2], true[2:]) / 2 or 0.05 * math.hypot(self.frame.width, self.frame.height)
            distance = math.dist([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], [(true[0] + true[2]) / 2, (true[1] + true[3]) / 2])
            return max(0.0, 1 - distance / radius)
        if self.task.name == "detection" and name != label:
            return 0.0
        inter = math.prod(max(0.0, min(box[k + 2], true[k + 2]) - max(box[k], true[k])) for k in (0, 1))
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, true)]
        return inter / (sum(areas) - inter)

    def touched(self, box: tuple[float, ...], label: str) -> list[int]:
        """The true objects with φ > 0 (above rounding) for this box."""
        return [m for m, truth in enumerate(self.truths) if self.phi(box, label, truth) > 1e-12]


@st.composite
def a_box(draw: st.DrawFn, frame: Frame) -> tuple[float, float, float, float]:
    """A box on a coarse lattice, so that boxes of one scene touch, nest and coincide often."""
    (x1, x2), (y1, y2) = draw(st.sampled_from(LATTICE)), draw(st.sampled_from(LATTICE))
    return x1 * frame.width / 8, y1 * frame.height / 8, x2 * frame.width / 8, y2 * frame.height / 8


@st.composite
def near(draw: st.DrawFn, box: tuple[float, ...], frame: Frame) -> tuple[float, float, float, float]:
    """A box like the given one, each side moved by up to a third of the box, inside the image."""
    width, height = box[2] - box[0], box[3] - box[1]
    x1, y1, x2, y2 = (edge + draw(st.floats(-0.33, 0.33)) * side for edge, side in zip(box, (width, height) * 2, strict=True))
    return max(0.0, x1), max(0.0, y1), min(float(frame.width), x2), min(float(frame.height), y2)


@st.composite
def scenes(draw: st.DrawFn, task_name: str, *, most_true: int = 4, least_true: int = 0, answers: int | None = None, points: bool = True) -> Scene:
    """A random truth with a random answer made of true, nearly true and arbitrary boxes."""
    task = make_task(task_name, dialect=draw(st.sampled_from(sorted(DIALECTS))), thinking=draw(st.booleans()))
    width, height = draw(st.sampled_from([(640, 480), (333, 500), (1200, 90), (4000, 3000)]))
    frame = frame_of(width, height, task.dialect)
    true = draw(st.lists(a_box(frame), min_size=least_true, max_size=1 if task_name == "grounding" else most_true, unique=True))
    names = tuple(draw(st.sampled_from(NAMES)) for _ in true)
    centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in true]
    as_points = points and task_name == "counting" and bool(true) and draw(st.booleans())
    truth = Truth(points=np.array(centres), labels=names) if as_points else Truth(boxes=np.array(true), labels=names)
    sample = Sample(id="s", task=task_name, image="", width=width, height=height, query="dog", truth=truth)
    exact = [tuple(map(float, box)) for box in task.dialect.snap(np.array(true).reshape(-1, 4), frame)]
    one = st.one_of(*([st.sampled_from(exact), st.sampled_from(true).flatmap(lambda box: near(box, frame))] if true else []), a_box(frame))
    size = {"min_size": 0, "max_size": 4} if answers is None else {"min_size": answers, "max_size": answers}
    boxes = draw(st.lists(one, **({"min_size": 1, "max_size": 1} if task_name == "grounding" else size)))
    labels = tuple(names[true.index(box)] if box in true else draw(st.sampled_from(names + NAMES)) for box in boxes)
    return Scene(task=task, sample=sample, frame=frame, boxes=boxes, labels=labels)


# --- the greatest and the least ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BOX_TASKS)
@given(data=st.data())
def test_the_written_truth_earns_the_greatest_total(name: str, data: st.DataObject) -> None:
    scene = data.draw(scenes(name))
    written = scene.task.score(scene.task.write(scene.sample, scene.frame), scene.sample, scene.frame)
    assert written.problem is None
    assert written.total == scene.task.bounds()[1]
    assert {
        term: (value, greatest)
        for (term, value), (_, greatest) in zip(written.terms.items(), scene.task.TERMS.values(), strict=True)
        if value != greatest
    } == {}
    assert scene.total(scene.boxes, scene.labels) <= written.total + ROUNDING


@pytest.mark.parametrize("name", BOX_TASKS)
@given(
    data=st.data(),
    text=st.one_of(st.just(""), st.text(max_size=30), st.sampled_from(["[", "(1,2", "<box>[[9,9,1,1]]</box>", "<think>", "[1, 2, 3]"])),
)
def test_malformed_earns_the_least(name: str, data: st.DataObject, text: str) -> None:
    scene = data.draw(scenes(name))
    score = scene.task.score(text, scene.sample, scene.frame)
    assume(score.problem is not None)
    assert score.total == scene.task.bounds()[0]
    assert score.total <= scene.total(scene.boxes, scene.labels)


@pytest.mark.parametrize("name", BOX_TASKS)
@given(data=st.data(), weight=st.floats(0, 1e6))
def test_every_term_is_finite_and_within_its_weighted_limits(name: str, data: st.DataObject, weight: float) -> None:
    scene = data.draw(scenes(name))
    term, matching = data.draw(st.sampled_from(sorted(scene.task.TERMS))), data.draw(st.sampled_from(sorted(MATCHINGS)))
    task = make_task(name, dialect=scene.task.dialect, thinking=scene.task.thinking, matching=matching, weights={term: weight})
    for text in (scene.text(scene.boxes, scene.labels), "", data.draw(st.text(max_size=20))):
        score = task.score(text, scene.sample, scene.frame)
        assert math.isfinite(score.total)
        assert task.bounds()[0] - ROUNDING * weight <= score.total <= task.bounds()[1] + ROUNDING * (1 + weight)
        for name_of_term, value in score.terms.items():
            least, greatest = (task.weight(name_of_term) * limit for limit in task.TERMS[name_of_term])
            assert least - ROUNDING * (1 + weight) <= value <= greatest + ROUNDING * (1 + weight)


# --- order, duplicates, wrong boxes, missing boxes -----------------------------------------------------------------------
@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("matching", [name for name in MATCHINGS if name != "sequential"])
@given(data=st.data())
def test_the_order_written_does_not_matter(matching: str, name: str, data: st.DataObject) -> None:
    scene = data.draw(scenes(name, answers=4))
    task = make_task(name, dialect=scene.task.dialect, thinking=scene.task.thinking, matching=matching)
    order = data.draw(st.permutations(range(len(scene.boxes))))
    shuffled = scene.text([scene.boxes[n] for n in order], tuple(scene.labels[n] for n in order))
    scores = [task.score(text, scene.sample, scene.frame).terms for text in (scene.text(scene.boxes, scene.labels), shuffled)]
    assert scores[0] == scores[1]  # to the last bit


@pytest.mark.parametrize("matching", [name for name in MATCHINGS if name != "sequential"])
def test_the_order_written_does_not_matter_where_pair_values_tie(matching: str) -> None:
    """Both boxes have IoU 0.5 with the first dog, one of them also with the second: greedy must not take whichever came first."""
    task = make_task("detection", dialect="plain", matching=matching)
    dogs = Truth(boxes=np.array([[0.0, 0, 100, 100], [100, 0, 200, 100]]), labels=("dog", "dog"))
    sample = Sample(id="s", task="detection", image="", width=400, height=400, query="", truth=dogs)
    lines = ["dog: [0, 0, 200, 100]", "dog: [0, 0, 100, 50]"]
    scores = [task.score("\n".join(order), sample, frame_of(400, 400, task.dialect)).terms for order in (lines, lines[::-1])]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("name", BOX_TASKS)
@given(data=st.data())
def test_a_duplicate_never_raises_the_total(name: str, data: st.DataObject) -> None:
    """Exactly for boxes with φ > 0 for at most one true object; for the others see docs/decisions/0001 and the next tests."""
    scene = data.draw(scenes(name))
    single = [n for n, box in enumerate(scene.boxes) if len(scene.touched(box, scene.labels[n])) <= 1]
    assume(single)
    n, copies = data.draw(st.sampled_from(single)), data.draw(st.integers(1, 3))
    more = scene.total(scene.boxes + [scene.boxes[n]] * copies, scene.labels + (scene.labels[n],) * copies)
    assert more <= scene.total(scene.boxes, scene.labels) + ROUNDING


@pytest.mark.parametrize("name", BOX_TASKS)
@given(data=st.data())
def test_no_number_of_duplicates_of_any_box_beats_the_written_truth(name: str, data: st.DataObject) -> None:
    scene = data.draw(scenes(name, least_true=1))
    assume(scene.boxes)
    n, copies = data.draw(st.integers(0, len(scene.boxes) - 1)), data.draw(st.integers(1, 4))
    more = scene.total(scene.boxes + [scene.boxes[n]] * copies, scene.labels + (scene.labels[n],) * copies)
    written = scene.task.score(scene.task.write(scene.sample, scene.frame), scene.sample, scene.frame).total
    assert more <= written + ROUNDING
    if len(scene.boxes) + copies > len(scene.truths):
        assert more < written - ROUNDING


def hugging_pair(copies: int) -> tuple[float, float]:
    """The counter-example of docs/decisions/0001: totals of one box over two touching dogs, `copies` times, and of the truth."""
    task = make_task("detection", dialect="plain")
    truth = Truth(boxes=np.array([[0.0, 0, 100, 100], [100, 0, 200, 100]]), labels=("dog", "dog"))
    sample = Sample(id="s", task="detection", image="", width=400, height=400, query="", truth=truth)
    frame = frame_of(400, 400, task.dialect)
    both = task.dialect.write(np.array([[0.0, 0, 200, 100]] * copies), ("dog",) * copies, frame)
    return task.score(both, sample, frame).total, task.score(task.write(sample, frame), sample, frame).total


def test_the_duplicate_of_a_box_over_two_truths_is_worth_what_decision_0001_says() -> None:
    """IoU 0.5 with each: one copy hits one dog of two; a second hits the other; the truth is still far ahead; a third loses."""
    one, written = hugging_pair(1)
    two, three, four = (hugging_pair(copies)[0] for copies in (2, 3, 4))
    assert one == pytest.approx(1 + 2 / 3 + 0.25 + 0.5 - 0.5)
    assert two == pytest.approx(1 + 1 + 0.5 + 1 - 0)
    assert three == pytest.approx(1 + 4 / 5 + 1 / 3 + 2 / 3 - 0)
    assert written == 4
    assert one < two < written
    assert four < three < two


@pytest.mark.parametrize("name", BOX_TASKS)
@given(data=st.data())
def test_a_box_on_no_truth_or_of_a_wrong_class_never_raises_the_total(name: str, data: st.DataObject) -> None:
    scene = data.draw(scenes(name))
    box, label = data.draw(a_box(scene.frame)), data.draw(st.sampled_from((*NAMES, "unicorn")))
    assume(not scene.touched(box, label))
    assert scene.total([*scene.boxes, box], (*scene.labels, label)) <= scene.total(scene.boxes, scene.labels) + ROUNDING


@given(data=st.data())
def test_a_wrong_class_box_exactly_on_a_truth_never_raises_the_total(data: st.DataObject) -> None:
    scene = data.draw(scenes("detection", least_true=1))
    box, name = data.draw(st.sampled_from(scene.truths))
    label = data.draw(st.sampled_from([other for other in (*NAMES, "unicorn", "PERSON!") if other != name]))
    assume(not scene.touched(box, label))
    assert scene.total([*scene.boxes, box], (*scene.labels, label)) <= scene.total(scene.boxes, scene.labels) + ROUNDING


@pytest.mark.parametrize("name", BOX_TASKS)
@given(data=st.data())
def test_a_further_box_on_a_perfectly_matched_truth_never_raises_the_total(name: str, data: st.DataObject) -> None:
    """Where neither the perfect box nor the further one has φ > 0 for another truth (docs/decisions/0001)."""
    scene = data.draw(scenes(name, least_true=1, points=False))
    true, label = data.draw(st.sampled_from(scene.truths))
    extra = data.draw(st.one_of(near(true, scene.frame), st.just(true)))
    assume(len(scene.touched(true, label)) == 1 and len(scene.touched(extra, label)) <= 1)
    boxes, labels = [*scene.boxes, true], (*scene.labels, label)
    assert scene.total([*boxes, extra], (*labels, label)) <= scene.total(boxes, labels) + ROUNDING


@pytest.mark.parametrize("name", BOX_TASKS)
@given(data=st.data())
def test_removing_a_perfect_box_never_raises_the_total(name: str, data: st.DataObject) -> None:
    """Where no other predicted box has φ > 0 for its truth: else the box is a duplicate of that one (docs/decisions/0001)."""
    scene = data.draw(scenes(name, least_true=1, points=False))
    m = data.draw(st.integers(0, len(scene.truths) - 1))
    true, label = scene.truths[m]
    if name == "grounding":
        others: list[int] = []
    else:
        others = [n for n, box in enumerate(scene.boxes) if m not in scene.touched(box, scene.labels[n])]
    boxes, labels = [scene.boxes[n] for n in others], tuple(scene.labels[n] for n in others)
    assert scene.total(boxes, labels) <= scene.total([*boxes, true], (*labels, label)) + ROUNDING


@pytest.mark.parametrize("name", LISTS)
@given(data=st.data())
def test_removing_any_part_of_the_written_truth_lowers_the_total(name: str, data: st.DataObject) -> None:
    scene = data.draw(scenes(name, least_true=1, points=False))
    kept = data.draw(st.lists(st.sampled_from(range(len(scene.truths))), unique=True, max_size=len(scene.truths) - 1))
    part = scene.total([scene.truths[m][0] for m in kept], tuple(scene.truths[m][1] for m in kept))
    assert part < scene.task.bounds()[1] - ROUNDING


# --- moving a box towards its truth --------------------------------------------------------------------------------------
def best_pairs(value: list[list[float]]) -> list[tuple[int, int]]:
    """The pairs with φ > 0 of an assignment with the greatest Σφ, by trying all."""
    n, m = len(value), len(value[0]) if value else 0
    tried = [list(zip(rows, range(m), strict=True)) for rows in itertools.permutations(range(n), m)] if m <= n else []
    tried += [list(zip(range(n), columns, strict=True)) for columns in itertools.permutations(range(m), n)] if n < m else []
    greatest = max(tried, key=lambda pairs: sum(value[n][m] for n, m in pairs))
    return [(n, m) for n, m in greatest if value[n][m] > 0]


@pytest.mark.parametrize("name", BOX_TASKS)
@given(data=st.data(), share=st.floats(0, 1))
def test_moving_a_matched_box_towards_its_truth_never_lowers_the_sum(name: str, data: st.DataObject, share: float) -> None:
    """All four edges move by the same share of their way; N and M stay, so S and its term rise and fall together."""
    scene = data.draw(scenes(name, least_true=1, points=False))
    truths = scene.truths
    assume(scene.boxes)
    pairs = best_pairs([[scene.phi(box, label, truth) for truth in truths] for box, label in zip(scene.boxes, scene.labels, strict=True)])
    assume(pairs)
    n, m = data.draw(st.sampled_from(pairs))
    moved = tuple((1 - share) * edge + share * goal for edge, goal in zip(scene.boxes[n], truths[m][0], strict=True))
    term = {"grounding": "iou", "counting": "distance", "detection": "location"}[name]
    after = [*scene.boxes[:n], moved, *scene.boxes[n + 1 :]]
    assert scene.score(after, scene.labels)[term] >= scene.score(scene.boxes, scene.labels)[term] - ROUNDING


# --- nothing there -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BOX_TASKS)
@given(data=st.data())
def test_an_empty_truth_wants_the_written_empty_answer_and_no_box(name: str, data: st.DataObject) -> None:
    scene = data.draw(scenes(name, most_true=0, answers=1))
    empty = Sample(id="s", task=name, image="", width=scene.frame.width, height=scene.frame.height, query="dog", truth=Truth(boxes=np.zeros((0, 4))))
    scene = Scene(task=scene.task, sample=empty, frame=scene.frame, boxes=[data.draw(a_box(scene.frame))], labels=("dog",))
    assert scene.total([], ()) == scene.task.bounds()[1]
    assert scene.task.write(empty, scene.frame).count(scene.task.dialect.nothing) == 1
    assert scene.total(scene.boxes, scene.labels) < scene.total([], ()) - 0.5
    assert scene.task.score("", empty, scene.frame).total == scene.task.bounds()[0]


@pytest.mark.parametrize("name", BOX_TASKS)
@given(data=st.data())
def test_the_empty_answer_to_a_full_scene_earns_format_only(name: str, data: st.DataObject) -> None:
    scene = data.draw(scenes(name, least_true=1))
    terms = scene.score([], ())
    assert terms.pop("format") == 1
    assert list(terms.values()) == [least for term, (least, _) in scene.task.TERMS.items() if term != "format"]


# --- the reward is the formula -------------------------------------------------------------------------------------------
@given(data=st.data())
def test_detection_terms_are_the_formulas_of_the_design_by_brute_force(data: st.DataObject) -> None:
    scene = data.draw(scenes("detection", least_true=1))
    n, m = len(scene.boxes), len(scene.truths)
    value = [[scene.phi(box, label, truth) for truth in scene.truths] for box, label in zip(scene.boxes, scene.labels, strict=True)]
    assume(not any(abs(phi - 0.5) < 1e-9 for row in value for phi in row))  # numbers in text are rounded in the last bit
    total = sum(value[n][m] for n, m in best_pairs(value)) if n else 0.0
    hit = [[float(phi >= 0.5) for phi in row] for row in value]
    hits = len(best_pairs(hit)) if n else 0
    expected = {"format": 1, "number": 2 * hits / (n + m), "location": total / max(n, m), "class": hits / max(n, m), "missing": -(m - hits) / m}
    assert scene.score(scene.boxes, scene.labels) == pytest.approx(expected, abs=1e-7)


def test_hits_are_the_most_of_any_assignment_and_not_of_the_one_with_the_greatest_sum() -> None:
    """Values 1 and 0.54, 0.6 and 0.23: the greatest sum is 1 + 0.23 with one hit, but 0.54 and 0.6 are two."""
    task = make_task("detection", dialect="plain")
    dogs = Truth(boxes=np.array([[0.0, 0, 100, 100], [30, 0, 130, 100]]), labels=("dog", "dog"))
    sample = Sample(id="s", task="detection", image="", width=400, height=400, query="", truth=dogs)
    terms = task.score("dog: [0, 0, 100, 100]\ndog: [0, 0, 60, 100]", sample, frame_of(400, 400, task.dialect)).terms
    assert terms == pytest.approx({"format": 1, "number": 1, "location": (1 + 30 / 130) / 2, "class": 1, "missing": 0})


@given(data=st.data())
def test_the_counting_term_is_the_formula_of_the_design_by_brute_force(data: st.DataObject) -> None:
    scene = data.draw(scenes("counting", least_true=1))
    value = [[scene.phi(box, "", truth) for truth in scene.truths] for box in scene.boxes]
    total = sum(value[n][m] for n, m in best_pairs(value)) if value else 0.0
    assert scene.score(scene.boxes, scene.labels)["distance"] == pytest.approx(total / max(len(value), len(scene.truths)), abs=1e-7)


@given(data=st.data())
def test_the_grounding_term_is_iou(data: st.DataObject) -> None:
    scene = data.draw(scenes("grounding", least_true=1))
    assert scene.score(scene.boxes, scene.labels)["iou"] == pytest.approx(scene.phi(scene.boxes[0], "", scene.truths[0]), abs=1e-7)


# --- settings: weights, matchings, broken truths ---------------------------------------------------------------------------
ABLATION = {
    "format": {"location": 0, "class": 0, "number": 0, "missing": 0},
    "+ location": {"class": 0, "number": 0, "missing": 0},
    "+ class": {"number": 0, "missing": 0},
    "+ number": {"missing": 0},
    "+ missing": {},
}
"""The rows of the paper's table of detection reward terms, each the weights of one setting."""

DOG, CAT = [100.0, 100, 200, 200], [300.0, 100, 500, 300]


def detect(boxes: list[list[float]], labels: tuple[str, ...], **settings: object) -> dict[str, float]:
    """Terms of a detection answer where a dog and a cat are."""
    task = make_task("detection", dialect="plain", **settings)
    sample = Sample(
        id="s", task="detection", image="", width=640, height=480, query="", truth=Truth(boxes=np.array([DOG, CAT]), labels=("dog", "cat"))
    )
    frame = frame_of(640, 480, task.dialect)
    return dict(task.score(task.dialect.write(np.array(boxes), labels, frame), sample, frame).terms)


def test_the_papers_five_ablation_rows_are_five_weight_settings() -> None:
    rows = [detect([DOG, CAT], ("dog", "cat"), weights=weights) for weights in ABLATION.values()]
    assert [set(row) for row in rows] == [
        {"format"},
        {"format", "location"},
        {"format", "location", "class"},
        {"format", "location", "class", "number"},
        {"format", "location", "class", "number", "missing"},
    ]
    assert [sum(row.values()) for row in rows] == [1, 2, 3, 4, 4]


@given(st.sets(st.sampled_from(["format", "number", "location", "class", "missing"])), st.sampled_from(["", "cat: [1, 2, 3, 4]", "none"]))
def test_a_term_of_weight_zero_vanishes_and_the_others_do_not(removed: set[str], text: str) -> None:
    task = make_task("detection", dialect="plain", weights=dict.fromkeys(removed, 0.0))
    sample = Sample(id="s", task="detection", image="", width=9, height=9, query="", truth=Truth(boxes=np.array([[1.0, 2, 3, 4]]), labels=("cat",)))
    assert set(task.score(text, sample, frame_of(9, 9, task.dialect)).terms) == set(task.TERMS) - removed


def test_a_weight_multiplies_its_term() -> None:
    plain, weighted = (detect([DOG], ("dog",), weights=weights) for weights in ({}, {"location": 2.5, "missing": 10}))
    assert weighted == plain | {"location": 2.5 * plain["location"], "missing": 10 * plain["missing"]}


def test_without_the_class_term_labels_are_ignored() -> None:
    right, swapped = ("dog", "cat"), ("cat", "dog")
    location_only = {"class": 0}
    assert detect([DOG, CAT], swapped, weights=location_only) == detect([DOG, CAT], right, weights=location_only)
    assert detect([DOG, CAT], swapped)["location"] == 0
    assert detect([DOG, CAT], swapped)["class"] == 0


def test_sequential_pairs_the_kth_box_with_the_kth_truth_in_the_order_written() -> None:
    assert detect([DOG, CAT], ("dog", "cat"), matching="sequential")["location"] == 1
    assert detect([CAT, DOG], ("cat", "dog"), matching="sequential") == pytest.approx(
        {"format": 1, "number": 0, "location": 0, "class": 0, "missing": -1}
    )
    assert detect([CAT, DOG], ("cat", "dog"), matching="hungarian")["location"] == 1


def test_best_lets_every_prediction_use_a_truth_again() -> None:
    assert detect([DOG, DOG], ("dog", "dog"), matching="best")["location"] == 1
    assert detect([DOG, DOG], ("dog", "dog"), matching="hungarian")["location"] == 0.5


def test_greedy_takes_the_best_pair_first_where_hungarian_takes_the_best_sum() -> None:
    """The first box is nearest to truth A and within reach of B, the second reaches A only: greedy spends A on the first."""
    task_of = {matching: make_task("counting", dialect="plain", matching=matching) for matching in ("greedy", "hungarian")}
    truth = Truth(points=np.array([[100.0, 100], [120, 100]]), labels=("", ""))
    sample = Sample(id="s", task="counting", image="", width=640, height=480, query="dog", truth=truth)
    frame = frame_of(640, 480, task_of["greedy"].dialect)
    text = "[99, 90, 105, 110]\n[80, 90, 90, 110]"  # centres 102 and 85; r = 0.05 × 800 = 40
    terms = {matching: task.score(text, sample, frame).terms["distance"] for matching, task in task_of.items()}
    assert terms["greedy"] == pytest.approx((1 - 2 / 40 + 1 - 35 / 40) / 2)
    assert terms["hungarian"] == pytest.approx((1 - 18 / 40 + 1 - 15 / 40) / 2)


def test_a_broken_truth_is_an_error_whatever_the_model_wrote() -> None:
    two = Sample(
        id="s7", task="grounding", image="", width=640, height=480, query="dog", truth=Truth(boxes=np.array([DOG, CAT]), labels=("dog", "cat"))
    )
    page = Sample(id="s8", task="ocr", image="", width=640, height=480, query="", truth=Truth(text="  "))
    for name, sample, words in (
        ("grounding", two, "s7.*one true box"),
        ("ocr", page, "s8.*blank"),
        ("ocr", two, "s7.*text"),
        ("detection", page, "s8.*boxes or points"),
    ):
        task = make_task(name, dialect="plain")
        for completion in ("", "dog: [1, 2, 3, 4]", "x"):
            with pytest.raises(BadData, match=words):
                task.score(completion, sample, frame_of(640, 480, task.dialect))


# --- pages of text -----------------------------------------------------------------------------------------------------------
PAGES = st.text(alphabet="abc de\n.é漢", min_size=1, max_size=60).filter(lambda text: text.strip())


def ocr(text: str, truth: str, thinking: bool) -> float:
    task = make_task("ocr", thinking=thinking)
    sample = Sample(id="s", task="ocr", image="", width=640, height=480, query="", truth=Truth(text=truth))
    return task.score(f"<think>I read.</think><answer>{text}</answer>" if thinking else text, sample, frame_of(640, 480, task.dialect)).total


@given(PAGES, st.text(max_size=60), st.booleans())
def test_the_pages_text_earns_the_greatest_and_nothing_the_least(truth: str, other: str, thinking: bool) -> None:
    assert ocr(truth, truth, thinking) == ocr(f"\n {truth} \n", truth, thinking) == 2
    assert ocr("", truth, thinking) == ocr(" \n", truth, thinking) == 0
    assert 0 <= ocr(other, truth, thinking) <= 2
    assert (ocr(other, truth, thinking) == 2) == (other.strip() == truth.strip())


@given(PAGES, st.integers(2, 5), st.booleans())
def test_a_page_repeated_earns_one_over_its_number_of_copies(truth: str, copies: int, thinking: bool) -> None:
    assert ocr(truth.strip() * copies, truth, thinking) == pytest.approx(1 + 1 / copies)


@given(PAGES, st.data(), st.booleans())
def test_reading_more_of_the_page_never_lowers_the_total(truth: str, data: st.DataObject, thinking: bool) -> None:
    page = truth.strip()
    short, long = sorted(data.draw(st.integers(1, len(page))) for _ in range(2))
    assert ocr(page[:short], truth, thinking) <= ocr(page[:long], truth, thinking) + ROUNDING


@given(PAGES, st.text(alphabet="xyz", min_size=1, max_size=30), st.booleans())
def test_words_that_are_not_on_the_page_lower_the_total(truth: str, extra: str, thinking: bool) -> None:
    assert ocr(truth.strip() + extra, truth, thinking) < 2 - ROUNDING
    assert ocr(extra + truth.strip(), truth, thinking) < 2 - ROUNDING
