"""Drawn scenes for the four tasks: coloured shapes on a light ground, and short printed texts. No download, no hub.

Every scene follows from (seed, split, index) alone. What is drawn (a scene's objects, see layouts.py; a page's words, their places
and its ground) decides, by its hash, which split may hold it, so train, validation and test never share one, whatever the seeds.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..records import BadData, Sample, Truth
from . import layouts
from .layouts import COLOURS, SHAPES, SPLITS, Layout, SceneOptions, Shape, in_split, is_kind, phrases, random_kind, random_layout, told
from .samples import replacing

WORDS = tuple(
    "apple bird blue boat book cake cloud door fish five fox game gold green hand home horse house jump lamp leaf lion milk moon nine "
    "open park rain red ring river road seven ship six snow star sun ten tree two water white wind wood zero".split()
)
_SUPERSAMPLING = 4

Ground = tuple[int, ...]
"""Red, green and blue of what lies behind the objects, 0 to 255."""


def draw(layout: Layout, side: int, ground: Ground) -> Image.Image:
    """The picture of a layout, anti-aliased; each object's ink fills its box exactly."""
    scale = _SUPERSAMPLING
    image = Image.new("RGB", (side * scale, side * scale), ground)
    pen = ImageDraw.Draw(image)
    for it in layout:
        x1, y1, x2, y2 = (value * scale for value in it.box)
        edge, ink = (x1, y1, x2 - 1, y2 - 1), COLOURS[it.colour]
        if it.shape == "circle":
            pen.ellipse(edge, fill=ink)
        elif it.shape == "square":
            pen.rectangle(edge, fill=ink)
        elif it.shape == "triangle":
            pen.polygon([((x1 + x2) / 2, y1), (x1, y2 - 1), (x2 - 1, y2 - 1)], fill=ink)
        else:
            third, fourth = (x2 - x1) // 3, (y2 - y1) // 3
            pen.rectangle((x1 + third, y1, x2 - third - 1, y2 - 1), fill=ink)
            pen.rectangle((x1, y1 + fourth, x2 - 1, y2 - fourth - 1), fill=ink)
    return image.resize((side, side), Image.Resampling.BOX)


Line = tuple[str, int, int]
"""A printed word and the place of its top left corner, x and y in pixels."""


def random_page(side: int, ground: Ground, split: str, rng: np.random.Generator) -> tuple[Line, ...]:
    """Words for a page that this split may hold."""
    while True:
        words, top = rng.choice(WORDS, rng.integers(1, 4)), int(rng.integers(0, side // 8))
        lines = tuple((str(word), int(rng.integers(side // 32, side // 8)), top + k * side * 9 // 32) for k, word in enumerate(words))
        if in_split((lines, ground), split):
            return lines


def word_boxes(lines: Sequence[Line], side: int) -> np.ndarray:
    """Where the ink of each word lies: xyxy (words, 4) in pixels."""
    font = _font(side)
    return np.array([(x, y, x, y) for _, x, y in lines], dtype=float) + np.array([font.getbbox(word) for word, _, _ in lines])


def _font(side: int, scale: int = 100) -> Any:
    return ImageFont.load_default(size=side * 0.2 * scale / 100)


def draw_page(lines: Sequence[Line], side: int, ground: Ground, scale: int = 100) -> Image.Image:
    """The picture of a page; `scale` is the size of its letters, in per cent."""
    image = Image.new("RGB", (side, side), ground)
    pen, font = ImageDraw.Draw(image), _font(side, scale)
    for word, x, y in lines:
        pen.text((x, y), word, fill="#202020", font=font)
    return image


Question = tuple[str, str, Truth, tuple[str, ...] | None]
"""Task, query, truth, categories."""


def _ask(tasks: Sequence[str], options: SceneOptions, split: str, rng: np.random.Generator) -> tuple[Image.Image, list[Question]]:
    """One scene and its questions."""
    ground: Ground = tuple(rng.integers(225, 256, 3).tolist())
    if tasks == ("ocr",):
        lines = random_page(options.side, ground, split, rng)
        return draw_page(lines, options.side, ground, options.scale), [("ocr", "", Truth(text="\n".join(word for word, _, _ in lines)), None)]
    if tasks == ("counting",):
        label, layout = layouts.counting_layout(options, split, rng)
        return draw(layout, options.side, ground), [_count(label, told(layout, options, rng))]
    layout = random_layout(options, split, rng)
    asked: list[Question] = []
    if "detection" in tasks:
        asked.append(_list(told(layout, options, rng), options.names, rng))
    if "grounding" in tasks:
        named = phrases(layout)
        for name in _choose_phrases(named, 1 if len(tasks) == 1 else options.max_phrases, rng):
            asked.append(("grounding", name, _truth([named[name]], name), None))
    if "counting" in tasks:
        asked.append(_count(str(rng.choice(_countable(layout, options))), told(layout, options, rng)))
    # In random order: after a full list of boxes, the other answers could be copied from it without looking.
    return draw(layout, options.side, ground), [asked[int(k)] for k in rng.permutation(len(asked))]


def _list(layout: Layout, names: str, rng: np.random.Generator) -> Question:
    """Every object of the scene, by the asked sort of name."""
    if names == "any":
        names = ("shape", "colour", "kind")[int(rng.integers(3))]
    labels = tuple(str(getattr(it, names)) for it in layout)
    categories = {"shape": SHAPES, "colour": tuple(COLOURS)}.get(names)
    if categories is None:  # the kinds that are there among two others
        asked = sorted({*labels, *(" ".join(random_kind(rng)) for _ in range(2))})
        categories = tuple(asked[int(k)] for k in rng.permutation(len(asked)))
    return "detection", "", Truth(boxes=_boxes(layout), labels=labels), categories


def _count(label: str, layout: Layout) -> Question:
    return "counting", label, _truth([it for it in layout if is_kind(label, it.colour, it.shape)], label), None


def _choose_phrases(named: dict[str, Shape], most: int, rng: np.random.Generator) -> list[str]:
    """Up to `most` phrases of different objects, one in three a relation where there is one: relations would else crowd out the rest."""
    left, chosen = dict(named), []
    while left and len(chosen) < most:
        groups = [[name for name in left if (" the " in name) == relation] for relation in (False, True)]
        if all(groups):
            group = groups[int(rng.random() < 1 / 3)]
            chosen.append(group[int(rng.integers(len(group)))])
        else:
            chosen.append(str(rng.permutation([*groups[0], *groups[1]])[0]))
        left = {name: it for name, it in left.items() if it is not left[chosen[-1]]}
    return chosen


def _countable(layout: Layout, options: SceneOptions) -> list[str]:
    """Labels whose number in this scene lies in the options' range, present ones three times as often as absent ones."""
    every = [*SHAPES, *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)]
    number = {label: sum(is_kind(label, it.colour, it.shape) for it in layout) for label in every}
    allowed = [label for label in every if options.min_count <= number[label] <= options.max_count]
    present = [label for label in allowed if number[label]]
    return allowed + present * (3 * len(allowed) // max(len(present), 1)) or every


def _boxes(layout: Sequence[Shape]) -> np.ndarray:
    return np.array([it.box for it in layout], dtype=np.float64).reshape(-1, 4)


def _truth(objects: Sequence[Shape], label: str) -> Truth:
    return Truth(boxes=_boxes(objects), labels=(label,) * len(objects))


def scenes(
    tasks: Sequence[str], *, n: int, seed: int = 0, split: str = "train", options: SceneOptions | None = None
) -> Iterator[tuple[Image.Image, list[Sample]]]:
    """Yields `n` pictures, each with its samples. `tasks` are asked of the same picture; ocr and counting draw their own.

    Sample images are named `{split}-{seed}-{index}.png`, relative to wherever the caller saves them.
    """
    if split not in SPLITS:
        raise BadData(f"scenes: split {split!r} is not known: expected one of {', '.join(SPLITS)}")
    if unknown := [task for task in tasks if task not in ("grounding", "counting", "detection", "ocr")]:
        raise BadData(f"scenes: task {unknown[0]!r} is not known: expected grounding, counting, detection or ocr")
    tasks, options = tuple(tasks), options or SceneOptions()
    made = index = 0
    while made < n:
        rng = np.random.default_rng([seed, SPLITS[split].start, sum(map(ord, "".join(tasks))), index])
        image, asked = _ask(tasks, options, split, rng)
        index += 1
        if not asked:  # a scene of which no phrase is true of exactly one object
            continue
        name = f"{'-'.join(tasks)}-{split}-{seed}-{index:06d}"
        yield image, [_sample(f"{name}-{k}", f"{name}.png", image.size, *question) for k, question in enumerate(asked)]
        made += 1


def _sample(name: str, file: str, size: tuple[int, int], task: str, query: str, truth: Truth, categories: tuple[str, ...] | None) -> Sample:
    return Sample(
        id=name, task=task, image=file, width=size[0], height=size[1], query=query, truth=truth, source="scenes", categories=categories
    )


def scene_samples(tasks: str, *, folder: Path | str, n: int, seed: int = 0, split: str = "train", **options: Any) -> list[Sample]:
    """Draws `n` scenes for `tasks` (one, or several joined by `+`) into `folder` and returns their samples."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = []
    for image, asked in scenes(tasks.split("+"), n=n, seed=seed, split=split, options=SceneOptions(**options)):
        with replacing(root / asked[0].image) as part:  # whole for others that read the same folder
            image.save(part, format="PNG")
        samples += [Sample(**{**sample.__dict__, "root": root}) for sample in asked]
    return samples
