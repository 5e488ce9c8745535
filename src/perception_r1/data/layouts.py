"""What is in a drawn scene: which objects, of which kinds, where, and the phrases that name exactly one of them.

What is drawn decides, by its hash, which split may hold it, so train, validation and test never share a scene, whatever the seeds.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..primitives.boxes import area, pairwise_iou
from ..records import BadData

COLOURS = {"red": "#d62728", "green": "#2ca02c", "blue": "#1f5fd0", "yellow": "#f0c000", "purple": "#8e44ad", "black": "#202020"}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": (0.12, 0.17), "large": (0.23, 0.32)}
"""Side of an object as a share of the scene's side."""
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
"""Which tenths of all layouts, by hash, a split may hold."""
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """How scenes are drawn."""

    side: int = 128
    """Width and height of a scene, in pixels."""
    min_objects: int = 1
    max_objects: int = 6
    """Objects in a grounding or detection scene; for counting, distractors come on top of the counted ones."""
    min_count: int = 0
    max_count: int = 12
    """Objects of the asked kind in a counting scene."""
    max_distractors: int = 3
    """Objects of other kinds in a counting scene, at most."""
    ask: str = "any"
    """What a counting question names: `shape`, `colour` (and shape), or `any` of the two."""
    names: str = "shape"
    """What a list of all objects calls them: `shape`, `colour`, `kind` (both; the list then names its own categories), or `any`."""
    max_phrases: int = 2
    """Phrases asked of one scene that is asked other things too, at most; each names another object."""
    scale: int = 100
    """Sides of all objects, in per cent of SIZES, and size of a page's letters: what is small is harder to see, and more of it fits."""
    overlap: int = 0
    """Per cent of the smaller box that a pair may share; above 0 objects hide parts of others. A truth is always the whole object."""
    alike: bool = False
    """Look-alikes: a scene's objects are of two kinds that share colour or shape, and so does what is not counted with what is."""
    order: str = "place"
    """Order of the true objects: `place`, by their left edges, or `any`, at random, as people annotate."""

    def __post_init__(self) -> None:
        for low, high in ((self.min_objects, self.max_objects), (self.min_count, self.max_count)):
            if not 0 <= low <= high <= 12:
                raise BadData(f"scenes: expected 0 <= min <= max <= 12 objects, found {low} and {high}")
        if self.side < 64 or self.ask not in ("shape", "colour", "any"):
            raise BadData(f"scenes: expected side >= 64 and ask one of shape, colour, any; found {self.side} and {self.ask!r}")
        if self.names not in ("shape", "colour", "kind", "any") or self.max_phrases < 1:
            raise BadData(f"scenes: expected names one of shape, colour, kind, any and max_phrases >= 1; found {self.names!r} and {self.max_phrases}")
        if not (30 <= self.scale <= 100 and 0 <= self.overlap <= 90 and self.order in ("place", "any")):
            found = f"{self.scale}, {self.overlap} and {self.order!r}"
            raise BadData(f"scenes: expected scale 30 to 100, overlap 0 to 90 and order place or any; found {found}")


@dataclass(frozen=True)
class Shape:
    """One drawn object: box xyxy in even pixels, colour, shape and size words."""

    box: tuple[int, int, int, int]
    colour: str
    shape: str
    size: str

    @property
    def kind(self) -> str:
        return f"{self.colour} {self.shape}"


Kind = tuple[str, str]
"""Colour and shape."""
Layout = tuple[Shape, ...]


def _place(kinds: Sequence[Kind], options: SceneOptions, rng: np.random.Generator) -> Layout | None:
    """Objects of these kinds where none touches another, or overlaps it more than it may; None when they did not fit."""
    side = options.side
    placed: list[Shape] = []
    for colour, shape in kinds:
        for _ in range(60):
            size = "small" if len(kinds) > 6 or rng.random() < 0.5 else "large"
            low, high = SIZES[size]
            width, height = (2 * round(side * options.scale / 100 * share / 2) for share in rng.uniform(low, high, 2))
            x, y = 2 * int(rng.integers(0, (side - width) // 2 + 1)), 2 * int(rng.integers(0, (side - height) // 2 + 1))
            box = (x, y, x + width, y + height)
            if not placed or _free(box, np.array([other.box for other in placed], dtype=float), options.overlap):
                placed.append(Shape(box, colour, shape, size))
                break
        else:
            return None
    return tuple(sorted(placed, key=lambda object: object.box))


def _free(box: Sequence[int], others_N4: np.ndarray, overlap: int) -> bool:
    """Whether a box keeps its distance from the others, or shares no more with any than `overlap` per cent of the smaller one."""
    box_14 = np.array([box], dtype=float)
    if not overlap:
        return pairwise_iou(box_14 + np.array([-2, -2, 2, 2]), others_N4).max() == 0
    iou_N, own, other_N = pairwise_iou(box_14, others_N4)[0], area(box_14), area(others_N4)
    shared_N = iou_N * (own + other_N) / (1 + iou_N)  # the intersection, from what defines IoU
    return bool((shared_N <= overlap / 100 * np.minimum(own, other_N)).all())


def random_kind(rng: np.random.Generator) -> Kind:
    return str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))


def _look_alike(kind: Kind, rng: np.random.Generator) -> Kind:
    """A kind that shares either the colour or the shape."""
    colour, shape = kind
    if rng.random() < 0.5:
        return str(rng.choice([other for other in COLOURS if other != colour])), shape
    return colour, str(rng.choice([other for other in SHAPES if other != shape]))


def in_split(content: object, split: str) -> bool:
    digest = hashlib.blake2b(repr(content).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 10 in SPLITS[split]


def random_layout(options: SceneOptions, split: str, rng: np.random.Generator) -> Layout:
    """Objects for a grounding or detection scene that this split may hold."""
    while True:
        kinds = [random_kind(rng) for _ in range(rng.integers(options.min_objects, options.max_objects + 1))]
        if len(kinds) > 1 and rng.random() < 0.5:  # look-alikes, so that a size or a relation is needed to tell them apart
            kinds[1] = kinds[0]
        if options.alike and kinds:
            pair = kinds[0], _look_alike(kinds[0], rng)
            kinds = [pair[int(rng.integers(2))] for _ in kinds]
        layout = _place(kinds, options, rng)
        if layout is not None and in_split(layout, split):
            return layout


def counting_layout(options: SceneOptions, split: str, rng: np.random.Generator) -> tuple[str, Layout]:
    """A question's label and a scene with a number of such objects drawn evenly from the options' range."""
    while True:
        colour, shape = random_kind(rng)
        by_colour = options.ask == "colour" or (options.ask == "any" and rng.random() < 0.5)
        label = f"{colour} {shape}" if by_colour else shape
        count = rng.integers(options.min_count, options.max_count + 1)
        wanted = [(colour if by_colour else str(rng.choice(list(COLOURS))), shape) for _ in range(count)]
        others = range(rng.integers(0, options.max_distractors + 1))
        drawn = [_look_alike((colour, shape), rng) if options.alike else random_kind(rng) for _ in others]
        kinds = wanted + [kind for kind in drawn if not is_kind(label, *kind)]
        layout = _place([kinds[i] for i in rng.permutation(len(kinds))], options, rng)
        if layout is not None and in_split(layout, split):
            return label, layout


def is_kind(label: str, colour: str, shape: str) -> bool:
    return label in (shape, f"{colour} {shape}")


def phrases(layout: Layout) -> dict[str, Shape]:
    """Referring phrases of a scene, each true of exactly one object."""
    found: dict[str, list[Shape]] = {}
    for it in layout:
        others = [other for other in layout if other is not it]
        names = [it.shape, it.kind, f"{it.size} {it.shape}", f"{it.size} {it.kind}"]
        for other in others:
            for word, (axis, sign) in RELATIONS.items():
                if sign * (it.box[axis] + it.box[axis + 2] - other.box[axis] - other.box[axis + 2]) > 8:
                    names.append(f"{it.kind} {word} the {other.kind}")
        for name in dict.fromkeys(names):
            found.setdefault(name, []).append(it)
    kinds = [it.kind for it in layout]
    unique = {name: group[0] for name, group in found.items() if len(group) == 1}
    return {name: it for name, it in unique.items() if " the " not in name or kinds.count(name.split(" the ")[1]) == 1}


def told(layout: Layout, options: SceneOptions, rng: np.random.Generator) -> Layout:
    """The objects in the order in which the truth tells them."""
    return layout if options.order == "place" else tuple(layout[int(k)] for k in rng.permutation(len(layout)))
