"""(image, answer, truth) → picture: truth green, matches orange, what does not match dashed blue."""

import base64
import html
import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .primitives.matching import hungarian
from .records import Answer, Truth
from .tasks import TASKS, Task

TRUTH, MATCHED, UNMATCHED = "#12a150", "#f5820b", "#2563eb"
MATCHES, MATCHES_NOT = "answer that matches", "answer that does not (dashed)"
RULE = (
    "An answer's box matches one true object of IoU 0.5 or more; in counting, one whose centre is "
    "near enough to earn reward; in detection the labels are equal as well."
)
"""What the colours of an answer mean, in words."""
PNG_PIXELS = 120_000
"""Pictures up to this many pixels are embedded as PNG, larger ones as JPEG."""


def matched_pairs(
    truth: Truth, answer: Answer, size: tuple[int, int], task: str = ""
) -> list[tuple[int, int]]:
    """(prediction, truth) indices of the one-to-one pairs that match, as the task's reward says.

    `size`: the original image's, in pixels. Counting: a centre near enough to earn something.
    Detection: IoU ≥ 0.5 and the same label. Else, and without a `task`: IoU ≥ 0.5. A bare count has
    no places, so its pairs say only whether the number is right: all predictions match, or none.
    """
    if truth.count is not None:
        right = answer.count == len(answer.boxes) == truth.count
        return [(n, n) for n in range(truth.count)] if right else []
    if truth.text is not None:
        return []
    value_NM = TASKS.get(task, Task).pair_values(answer, truth, size)
    pairs = zip(*hungarian(value_NM), strict=True)
    return [(int(n), int(m)) for n, m in pairs if value_NM[n, m] > 0]


def draw(
    image: Image.Image,
    *,
    truth: Truth | None,
    answer: Answer | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    scale_to: int = 320,
    caption: str = "",
    names: bool = True,
    task: str = "",
) -> Image.Image:
    """The image with the truth and an answer drawn on it.

    Coordinates of both are pixels of `image`. A smaller image is enlarged until its longer side is `scale_to` pixels, so
    that lines and words can be read. `pairs` overrides which predictions match, which else
    `matched_pairs` finds for the `task`. `names=False` leaves the words out; `caption` is written
    below.
    """
    scale = max(1.0, scale_to / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC) if scale > 1 else image.convert("RGB")
    pen = _Pen(ImageDraw.Draw(picture), scale, max(2, round(max(size) / 220)), names)
    if truth is not None:
        pen.truth(truth)
    if answer is not None:
        if pairs is None and truth is not None:
            pairs = matched_pairs(truth, answer, image.size, task)
        pen.answer(answer, {n for n, _ in pairs or ()})
    return _with_caption(picture, caption) if caption else picture


@dataclass(frozen=True)
class _Pen:
    """Draws in original pixels on a picture that is `scale` times as large, with lines `line` picture pixels wide."""

    on: ImageDraw.ImageDraw
    scale: float
    line: int
    names: bool

    def truth(self, truth: Truth) -> None:
        if truth.boxes is not None:
            for box, label in zip(truth.boxes * self.scale, truth.labels, strict=True):
                self.box(box, TRUTH, label)
        elif truth.points is not None:
            for (x, y), label in zip(truth.points * self.scale, truth.labels, strict=True):
                arm = 4 * self.line
                self.on.line((x - arm, y, x + arm, y), fill=TRUTH, width=self.line)
                self.on.line((x, y - arm, x, y + arm), fill=TRUTH, width=self.line)
                self.word(x + arm, y, TRUTH, label)

    def answer(self, answer: Answer, matched: set[int]) -> None:
        labels = answer.labels or ("",) * len(answer.boxes)
        for n, (box, label) in enumerate(zip(answer.boxes * self.scale, labels, strict=True)):
            self.box(box, MATCHED if n in matched else UNMATCHED, label, dashed=n not in matched, below=True)

    def box(self, box_4: np.ndarray, colour: str, label: str, *, dashed: bool = False, below: bool = False) -> None:
        x1, y1, x2, y2 = (float(value) for value in box_4)
        if dashed:
            for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
                self.dashes(np.array(start), np.array(end), colour)
        else:
            self.on.rectangle((x1, y1, x2, y2), outline=colour, width=self.line)
        self.word(x1, y2 if below else y1, colour, label)

    def dashes(self, start_2: np.ndarray, end_2: np.ndarray, colour: str) -> None:
        length, dash = float(np.linalg.norm(end_2 - start_2)), 4.0 * self.line
        step_2 = (end_2 - start_2) / max(length, 1e-9)
        for at in np.arange(0, length, 2 * dash):
            piece = (start_2 + at * step_2, start_2 + min(at + dash, length) * step_2)
            self.on.line([tuple(map(float, point)) for point in piece], fill=colour, width=self.line)

    def word(self, x: float, y: float, colour: str, label: str) -> None:
        if not (self.names and label):
            return
        font = ImageFont.load_default(size=6 * self.line)
        left, top, right, bottom = self.on.textbbox((0, 0), label[:40], font=font)
        width, height = self.on.im.size
        x, y = max(0.0, min(x, width - (right - left) - 2)), max(0.0, min(y, height - (bottom - top) - 2))
        self.on.rectangle((x, y, x + right - left + 2, y + bottom - top + 2), fill=colour)
        self.on.text((x + 1 - left, y + 1 - top), label[:40], fill="white", font=font)


def _with_caption(picture: Image.Image, caption: str) -> Image.Image:
    font, height = ImageFont.load_default(size=13), 17
    lines = [piece for line in caption.splitlines() for piece in textwrap.wrap(line, max(10, picture.width // 7)) or [""]]
    whole = Image.new("RGB", (picture.width, picture.height + height * len(lines) + 4), "white")
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    for row, line in enumerate(lines):
        pen.text((2, picture.height + 2 + row * height), line, fill="black", font=font)
    return whole


def picture_to_data_uri(picture: Image.Image) -> str:
    """The picture as a `data:` address, so that an HTML file needs no other file."""
    small = picture.width * picture.height <= PNG_PIXELS
    kind, options = ("PNG", {"optimize": True}) if small else ("JPEG", {"quality": 88})
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body{{font:14px system-ui,sans-serif;margin:1.5em}}main{{display:flex;flex-wrap:wrap;gap:1em}}figure{{margin:0;max-width:340px}}
img{{max-width:100%;border:1px solid #ccc}}figcaption{{white-space:pre-wrap;overflow-wrap:anywhere}}</style>
<h1>{title}</h1><p><b style="color:{truth}">truth</b> · <b style="color:{matched}">{matches}</b> ·
<b style="color:{unmatched}">{matches_not}</b>. {rule}</p><main>
"""


def gallery(pictures: Iterable[tuple[Image.Image, str]], title: str) -> Iterable[str]:
    """Yields the pieces of an HTML page with these (picture, caption) pairs; nothing in a caption is read as HTML."""
    colours = {"truth": TRUTH, "matched": MATCHED, "unmatched": UNMATCHED}
    words = {"matches": MATCHES, "matches_not": MATCHES_NOT, "rule": RULE}
    yield _PAGE.format(title=html.escape(title), **colours, **words)
    for picture, caption in pictures:
        first = html.escape(caption.partition("\n")[0][:200])
        yield f'<figure><img src="{picture_to_data_uri(picture)}" alt="{first}"><figcaption>{html.escape(caption)}</figcaption></figure>\n'
    yield "</main></html>\n"
