"""Pages of a PDF: a picture of each, and the text that the file itself states for it.

A text is a truth only where the picture shows it, so a page is refused whose text layer has characters without a name (a font
without a Unicode map), or whose characters are not drawn (a font that is neither in the file nor on this machine, hidden text).
What nobody can tell from the file is whether the text layer of a scan was itself guessed by a recogniser: leave such files out.
"""

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import not_installed
from ..records import BadData
from .regular import expect_file
from .samples import LeftOut

MOST_PIXELS = 25_000_000
"""A page is rendered at less than the asked resolution where it would have more pixels than this."""
MOST_HIDDEN = 0.05
"""Share of a page's characters that may leave no mark in the picture."""
LEAST_CONTRAST = 8
"""Difference in grey, of 255, that makes a mark."""
LINE_END_HYPHENS = ("\x02", "\ufffe")
"""What PDFium gives for a hyphen at the end of a line, in place of the hyphen and the line's end."""


@dataclass(frozen=True, kw_only=True)
class PdfPage:
    """One page: its number from 1, its text with "\\n" between lines, and its picture in RGB."""

    number: int
    text: str
    image: Image.Image


def pdfium() -> Any:
    """The library that renders. Raises BadData where it is not installed."""
    try:
        import pypdfium2
    except ModuleNotFoundError as problem:
        raise BadData(not_installed("pypdfium2, which reads PDFs,", "data")) from problem
    return pypdfium2


def pdf_pages(path: Path, dpi: int = 144) -> Iterator[PdfPage | LeftOut]:
    """Yields the pages of a PDF in their order, and a LeftOut (`unreadable`, `blank`, `unmapped`, `not_drawn`) for one that has no truth.

    A file that does not open, broken or locked by a password, is one LeftOut. Raises BadData without pypdfium2.
    """
    if dpi < 1:
        raise BadData(f"pdf: found dpi {dpi}, expected at least 1")
    library = pdfium()
    try:
        expect_file(path, "a PDF")
        document = library.PdfDocument(path)
    except BadData as problem:
        yield LeftOut("unreadable", str(problem))
        return
    except (library.PdfiumError, OSError) as problem:
        yield LeftOut("unreadable", f"{path}: found no readable PDF ({problem}), expected one without a password")
        return
    try:
        for number in range(1, len(document) + 1):
            try:
                yield _page(document, number, dpi, f"{path}: page {number}")
            except library.PdfiumError as problem:
                yield LeftOut("unreadable", f"{path}: page {number}: found no readable page ({problem})")
            except LeftOut as problem:
                yield problem
    finally:
        document.close()


def _page(document: Any, number: int, dpi: int, where: str) -> PdfPage:
    page = document[number - 1]
    letters = page.get_textpage()
    text = letters.get_text_bounded().replace("\r\n", "\n").replace("\r", "\n")
    for mark in LINE_END_HYPHENS:
        text = text.replace(mark, "-\n")
    if not text.strip():
        raise LeftOut("blank", f"{where}: found no text layer, expected one: a scan has none")
    if unknown := [letter for letter in text if letter not in "\n\t" and (unicodedata.category(letter) in ("Cc", "Cn", "Co") or letter == "\ufffd")]:
        raise LeftOut("unmapped", f"{where}: found {len(unknown)} characters without a name in its text layer, as {unknown[0]!r}")
    width, height = page.get_size()
    bitmap = page.render(scale=min(dpi / 72, math.sqrt(MOST_PIXELS / (width * height))), draw_annots=False)
    image = bitmap.to_pil().convert("RGB")
    if (share := _hidden_share(letters, bitmap.get_posconv(page), image)) > MOST_HIDDEN:
        raise LeftOut("not_drawn", f"{where}: {share:.0%} of the text layer's characters are not in the picture: install the font, or leave it out")
    return PdfPage(number=number, text=text, image=image)


def _hidden_share(letters: Any, placed: Any, image: Image.Image) -> float:
    """Share of the visible characters in the text layer that leave no mark in the picture, looked for at their places."""
    code_of, grey = pdfium().raw.FPDFText_GetUnicode, np.asarray(image.convert("L"))
    hidden = looked_at = 0
    for index in range(letters.count_chars()):
        code = code_of(letters.raw, index)
        if unicodedata.category(chr(code))[0] not in "LNPS":
            continue
        left, bottom, right, top = letters.get_charbox(index)
        (x1, y1), (x2, y2) = placed.to_bitmap(left, top), placed.to_bitmap(right, bottom)
        (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
        place = grey[max(y1 - 2, 0) : y2 + 3, max(x1 - 2, 0) : x2 + 3]  # two pixels more: a full stop fills its own box
        if place.size and right > left and top > bottom:
            looked_at += 1
            hidden += int(place.max()) - int(place.min()) < LEAST_CONTRAST
    return hidden / looked_at if looked_at else 0.0
