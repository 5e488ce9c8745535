"""What the page asks for and lets a visitor draw, by task: those of the book, and one's own."""

from dataclasses import dataclass
from functools import cache

from ..data.rows import KINDS
from ..tasks import TASKS, make_task

CORNERS = "Click two opposite corners of every true box."


@dataclass(frozen=True, kw_only=True)
class TaskForm:
    """How one task is asked about on the page, and what its truth may be."""

    query: str = ""
    """Label of the field for what to find; empty where the task asks for nothing in particular."""
    example: str = ""
    """What that field shows while it is empty."""
    categories: bool = False
    """Whether the field holds names with commas between them, and every box has its own label."""
    kinds: tuple[str, ...] = ("boxes",)
    """What a truth may be given as: some of boxes, points and text, the usual one first."""
    hint: str = ""
    """How the truth is given."""
    scene: str
    """The task whose drawn scenes serve this one."""

    @property
    def placed(self) -> tuple[str, ...]:
        """Those of the kinds that are drawn on the picture."""
        return tuple(kind for kind in self.kinds if kind != "text")

    @property
    def text(self) -> bool:
        """Whether the truth may be typed."""
        return "text" in self.kinds

    def mark(self, chosen: str) -> str:
        """What a click draws: the `chosen`, where the task takes it; '' where it draws nothing."""
        return chosen if chosen in self.placed else next(iter(self.placed), "")


FORMS = {
    "grounding": TaskForm(
        query="What to find",
        example="a phrase for one object, as: red circle left of the blue square",
        hint="Click two opposite corners of the true box on the picture.",
        scene="grounding",
    ),
    "counting": TaskForm(
        query="What to count",
        example="a kind of object, as: red circle",
        kinds=("boxes", "points"),
        hint="Click two opposite corners of every true box, or the centre of every object.",
        scene="counting",
    ),
    "detection": TaskForm(
        query="Categories",
        example="names with commas between them; COCO's 80 when empty",
        categories=True,
        hint="Type a label, then click two opposite corners of its box; and so for every object.",
        scene="detection",
    ),
    "ocr": TaskForm(kinds=("text",), hint="Type the text that is really on the page.", scene="ocr"),
}
HINTS = {
    "boxes": CORNERS,
    "points": "Click the centre of every true object.",
    "text": "Type the true text.",
    "": "The truth of this task cannot be drawn, so its answers are shown without what they earn.",
}


def form_for(task: str) -> TaskForm:
    """The form of a task. One of your own asks what its prompt names, and takes what KINDS has."""
    return FORMS.get(task) or _form_of(TASKS[task], KINDS.get(task, ("boxes",)))


@cache
def _form_of(task: type, kinds: tuple[str, ...]) -> TaskForm:
    prompt = make_task(task.name).template()
    categories, drawn = "{categories}" in prompt, tuple(kind for kind in HINTS if kind in kinds)
    if categories:
        asked, example = "Categories", "names with commas between them; COCO's 80 when empty"
    else:
        asked, example = ("What to find", prompt) if "{query}" in prompt else ("", "")
    scene = "ocr" if drawn == ("text",) else "detection" if categories else "counting"
    hint = " Or: ".join(HINTS[kind] for kind in drawn or ("",))
    return TaskForm(
        query=asked, example=example, categories=categories, kinds=drawn, hint=hint, scene=scene
    )
