"""What the page knows and shows of one visitor: the question, the marks drawn by hand, and what each reply says and earns."""

import html
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..records import Answer, BadData, Malformed, Sample, Score, Truth
from ..tasks import Task
from ..visualize import TRUTH, draw
from .forms import TaskForm, form_for
from .policies import Policy

SIDE = 1024
"""Longer side, in pixels, at which the page shows every picture."""
CAPTIONED = 480
"""The same for one with text below it."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What the user drew, in pixels of the picture: boxes with labels, points, and the first corner of a box not finished yet."""

    boxes: tuple[tuple[float, float, float, float], ...] = ()
    labels: tuple[str, ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    corner: tuple[float, float] | None = None

    def click(self, x: float, y: float, label: str) -> "Marks":
        """The marks after a click of box drawing: a first corner, or the opposite one. Raises BadData for a box without area."""
        if self.corner is None:
            return replace(self, corner=(x, y))
        (x1, x2), (y1, y2) = sorted((self.corner[0], x)), sorted((self.corner[1], y))
        if x1 == x2 or y1 == y2:
            raise BadData("that box has no area: click the opposite corner")
        return replace(self, boxes=(*self.boxes, (x1, y1, x2, y2)), labels=(*self.labels, label), corner=None)

    def undo(self, as_points: bool) -> "Marks":
        if as_points:
            return replace(self, points=self.points[:-1])
        return replace(self, corner=None) if self.corner else replace(self, boxes=self.boxes[:-1], labels=self.labels[:-1])


@dataclass(frozen=True)
class Form:
    """What is filled in on the page, in the order of its fields."""

    task: str
    query: str
    kind: str
    label: str
    nothing: bool
    text: str

    @property
    def of_task(self) -> TaskForm:
        return form_for(self.task)

    @property
    def drawn(self) -> str:
        """What a click on the picture draws: boxes or points; '' where it draws nothing."""
        return self.of_task.mark(self.kind)

    @property
    def as_points(self) -> bool:
        return self.drawn == "points"

    def truth(self, marks: Marks) -> Truth | None:
        """What the user says is really there, or None where they said nothing."""
        if self.of_task.text and self.text.strip():
            return Truth(text=self.text)
        if not self.drawn:
            return None
        if self.nothing:
            return _nothing(self.of_task, self.drawn)
        if self.as_points:
            return Truth(points=marks.points, labels=(self.query.strip(),) * len(marks.points)) if marks.points else None  # type: ignore[arg-type]
        named = (self.query.strip(),) * len(marks.boxes)
        labels = marks.labels if self.of_task.categories else named
        return Truth(boxes=marks.boxes, labels=labels) if marks.boxes else None  # type: ignore[arg-type]

    def sample(self, image: Image.Image, truth: Truth | None = None) -> Sample:
        """The question as a sample. Raises BadData where it does not say what to find."""
        query, categories = self.query.strip() if self.of_task.query else "", None
        if self.of_task.categories:
            query, categories = "", tuple(name.strip() for name in query.split(",") if name.strip()) or None
        elif self.of_task.query and not query:
            raise BadData("type what to find first")
        width, height = image.size
        truth = _nothing(self.of_task, self.drawn) if truth is None else truth
        return Sample(id="page", task=self.task, image="", width=width, height=height, query=query, categories=categories, truth=truth)


def _nothing(form: TaskForm, drawn: str) -> Truth:
    """A truth of the task which says that nothing is there."""
    if drawn == "points":
        return Truth(points=np.zeros((0, 2)))
    return Truth(boxes=np.zeros((0, 4))) if drawn or not form.text else Truth(text="")


@dataclass(frozen=True, kw_only=True)
class View:
    """What one visitor sees: the picture as uploaded, and the marks on it."""

    image: Image.Image | None = None
    marks: Marks = field(default_factory=Marks)

    def picture(self) -> Image.Image:
        if self.image is None:
            raise BadData("drop a picture first, or let one be drawn")
        return self.image


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The last question with its replies. Apart from the view, which the visitor may change while a model answers."""

    form: Form | None = None
    image: Image.Image | None = None
    replies: tuple[Any, ...] = ()

    def about(self, view: View, form: Form) -> bool:
        """Whether it is about the picture and the task that are on the page now."""
        return self.form is not None and self.image is view.image and self.form.task == form.task


def canvas(view: View, form: Form) -> Image.Image | None:
    """The picture at the page's size, with the truth so far."""
    if view.image is None:
        return None
    truth = form.truth(view.marks) if form.drawn else None
    picture = shown(view.image, truth=truth, names=form.of_task.categories)
    if view.marks.corner and form.drawn == "boxes":
        x, y = (SIDE / max(view.image.size) * side for side in view.marks.corner)
        ImageDraw.Draw(picture).ellipse((x - 7, y - 7, x + 7, y + 7), outline="white", fill=TRUTH, width=2)
    return picture


def shown(image: Image.Image, caption: str = "", **drawn: Any) -> Image.Image:
    """A picture with what is drawn on it, its longer side SIDE pixels; smaller above a caption, so that its words can be read."""
    picture = draw(image, scale_to=SIDE, **drawn)
    side = CAPTIONED if caption else SIDE  # large ones shrink after drawing, so that lines keep their place; small ones grew before it
    picture.thumbnail((side, side))
    return draw(picture, truth=None, scale_to=1, caption=caption)


def judge(policy: Policy, reply: Any, sample: Sample, truth: Truth | None, image: Image.Image) -> tuple[Image.Image, str, str]:
    """A reply as the page shows it: drawn on the picture, in HTML what it says and earns, and the raw completion."""
    task, answer, problem = policy.task(sample.task), None, ""
    try:
        answer = task.read(reply.completion, reply.frame)
    except Malformed as malformed:
        problem = str(malformed)
    score = task.score(reply.completion, sample, reply.frame) if truth is not None else None
    count = len(answer.boxes) if answer else 0
    pairs = [(n, n) for n in range(count)] if truth is None else None  # without a truth nothing is wrong yet
    drawn = {"truth": truth, "answer": answer, "pairs": pairs, "task": sample.task}
    drawn |= {"names": form_for(sample.task).categories}
    picture = shown(image, caption=answer.text[:1500] if answer else "", **drawn)
    cut = "" if reply.finish == "stop" else f" · cut off after {policy.max_new_tokens} tokens"
    return picture, card(in_words(answer, problem) + cut, task, score, bool(problem)), reply.completion


def in_words(answer: Answer | None, problem: str) -> str:
    if answer is None:
        return f"cannot be read: {problem}"
    if answer.text:
        said = f"{len(answer.text):,} characters"
    else:
        said = f"{answer.count} box{'' if answer.count == 1 else 'es'}" if answer.count else "says that nothing is there"
        said += f", {answer.bad} of them broken" if answer.bad else ""
    return f"{said} · {'exactly' if answer.exact else 'not'} the demanded format"


def card(words: str, task: Task, score: Score | None, bad: bool) -> str:
    """HTML: what was answered, and a bar for each reward term from its least to its greatest."""
    head = f'<p class="said{" bad" if bad else ""}">{html.escape(words)}</p>'
    if score is None:
        return f'<div class="card">{head}<p class="hint">Give the truth to see what this answer earns.</p></div>'
    limits = {**task.all_terms(), "total": task.bounds()}
    rows = "".join(term(name, value, *limits[name]) for name, value in {**score.terms, "total": score.total}.items())
    return f'<div class="card">{head}<table class="terms">{rows}</table></div>'


def term(name: str, value: float, least: float, greatest: float) -> str:
    share = 100 * (value - least) / (greatest - least)
    bar = f'<div class="bar"><i style="width:{share:.1f}%"></i></div>'
    return f'<tr class="{name}"><th>{name}</th><td>{bar}</td><td class="value">{value:.3f}</td><td class="of">of {greatest:g}</td></tr>'
