"""Pages and their text → OCR samples, from three forms: conversation JSON, a folder of images and texts, PDFs.

    conversation   [{"image": "en_1.png", "conversations": [{"from": "human", "value": "<image>\\nOCR:"}, {"from": "gpt", "value": "…"}]}]
    folder         a.png with a.txt, a.gold.txt or a.gt.txt beside it
    pdf            each page rendered to a PNG; its own text layer is the truth

Texts are UTF-8, in any language, and taken as they are, but for line ends, which become "\\n". A page without a text, or whose
text is not what its image shows, is left out, and counted by reason.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..records import BadData, Sample, Truth
from .downloads import Track, as_they_are
from .pdf import pdf_pages
from .regular import expect_file
from .samples import LeftOut, Skipped, as_rgb, read_json, replacing, stored_image

FORMS = ("conversation", "folder", "pdf")
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".pbm", ".pgm", ".ppm"})
TEXTS = (".gt.txt", ".gold.txt", ".txt")
"""How the text of `page.png` may be named after `page`: OCR tools mark a text that a human made with gt or gold."""
QUESTIONS = ("OCR", "OCR this image", "OCR the image", "OCR this page", "OCR this document", "Free OCR", "识别图中文字", "提取图中的文字")
"""Questions of a conversation that ask for the whole page's plain text; others ask for a region, a layout or a translation."""
REASONS = (
    "bad_row",
    "other_question",
    "no_image",
    "unreadable",
    "several_pages",
    "no_text",
    "blank",
    "not_utf8",
    "texts_differ",
    "same_stem",
    "unmapped",
    "not_drawn",
)
"""Why a page is left out. Of an entry: a field is broken; it does not ask for the page's text. Of an image: it is missing,
does not open, holds several pages. Of a text: there is none, it is empty, not UTF-8, there are several that differ, or
several images have it. Of a PDF's page: characters that its text layer does not name, or names but does not draw."""


@dataclass(frozen=True, kw_only=True)
class Pages:
    """Samples of a set of pages, and what happened to the pages on the way."""

    samples: list[Sample]
    report: Mapping[str, int]
    """Numbers of `pages`, of `exif_rotated` ones used, and of pages left out for each of REASONS."""
    problems: tuple[str, ...]
    """The first pages left out, in words."""
    files: tuple[Path, ...]
    """The files that state the texts: the conversations, the PDFs, or the images of a folder and their texts."""


@dataclass(frozen=True, kw_only=True)
class _Page:
    """A page that may become a sample; `image` may be missing."""

    id: str
    text: str
    image: Path


def page_samples(
    source: Path | str,
    *,
    form: str | None = None,
    images: Path | str | None = None,
    texts: str | None = None,
    questions: Sequence[str] = (),
    rendered: Path | str | None = None,
    dpi: int = 144,
    name: str | None = None,
    track: Track = as_they_are,
) -> Pages:
    """OCR samples of `source`: a conversation JSON file, a PDF, or a folder of images and texts or of PDFs; every image is opened.

    `form`, one of FORMS, where a folder holds both. conversation: `images` is the folder that image paths start from (that of
    the file); `questions` ask for a page's text too, besides QUESTIONS. folder: `texts` is the one suffix of texts (any of
    TEXTS). pdf: pages are rendered into the folder `rendered` at `dpi`. `name` begins every id and is the source, in place
    of `page` and `pages`. Raises BadData where nothing can be read.
    """
    source = Path(source)
    form = form or _form(source)
    if form not in FORMS:
        raise BadData(f"pages: found form {form!r}, expected one of {', '.join(FORMS)}")
    if form == "conversation":
        pages = _conversations(source, Path(images or source.parent), questions)
        return _collected(source, pages, (source,), name, track)
    if form == "folder":
        suffixes = (texts,) if texts else TEXTS
        named = [
            path
            for path in sorted(source.rglob("*"))
            if path.suffix.lower() in IMAGES or path.name.endswith(suffixes)
        ]
        files = tuple(path for path in named if path.is_file())
        return _collected(source, _folder(source, suffixes), files, name, track)
    if rendered is None:
        raise BadData(f"pages: {source}: found PDFs and no folder to render their pages into: name it with rendered=FOLDER")
    files = _pdf_files(source)
    return _collected(source, _pdfs(source, files, Path(rendered), dpi), files, name, track)


def _form(source: Path) -> str:
    """The form that the name of a file, or the contents of a folder, states."""
    if not source.exists():
        raise BadData(f"pages: {source}: found no such file or folder, expected a conversation JSON, a PDF, or a folder of pages")
    if not source.is_dir():
        forms = {".json": "conversation", ".pdf": "pdf"}
        if source.suffix.lower() not in forms:
            raise BadData(f"pages: {source}: found a file named *{source.suffix}, expected .json, .pdf or a folder: name its form with form=…")
        return forms[source.suffix.lower()]
    suffixes = {path.suffix.lower() for path in source.rglob("*")}
    if ".pdf" in suffixes and suffixes & IMAGES:
        raise BadData(f"pages: {source}: found images and PDFs, expected one of them: choose with form=folder or form=pdf")
    return "pdf" if ".pdf" in suffixes else "folder"


def _collected(source: Path, pages: Iterable[_Page | BadData], files: tuple[Path, ...], name: str | None, track: Track) -> Pages:
    """The samples of the pages. Raises BadData where there is none."""
    samples: dict[str, Sample] = {}
    skipped, rotated = Skipped(), 0
    for page in track(pages, "reading pages", None):
        try:
            if isinstance(page, BadData):
                raise page
            if page.id in samples:
                raise BadData(f"{source}: page {page.id!r} is there twice, expected it once")
            sample, turned = _sample(page, name)
        except BadData as problem:
            skipped.add(problem)
            continue
        samples[page.id], rotated = sample, rotated + turned
    report = {"pages": len(samples) + skipped.count, "exif_rotated": rotated} | {reason: skipped.reasons[reason] for reason in REASONS}
    if not samples:
        counted = ", ".join(f"{name} {number}" for name, number in report.items() if number) or "no page at all"
        first = f"; the first: {skipped.problems[0]}" if skipped.problems else ""
        raise BadData(f"{source}: found no page that can be used ({counted}), expected at least one{first}")
    return Pages(samples=list(samples.values()), report=report, problems=tuple(skipped.problems), files=files)


def _sample(page: _Page, name: str | None) -> tuple[Sample, bool]:
    """The page's sample, and whether its image asks to be shown rotated. Raises LeftOut."""
    text = page.text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise LeftOut("blank", f"page {page.id!r}: found an empty text, expected what the page says")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise LeftOut("not_utf8", f"page {page.id!r}: found half a character in its text, expected Unicode")
    (width, height), turned = _stored(page.image)
    truth = Truth(text=text)
    number = page.id if name is None else f"{name}-{page.id.removeprefix('page-')}"
    sample = Sample(
        id=number,
        task="ocr",
        image=str(page.image.absolute()),
        width=width,
        height=height,
        query="",
        truth=truth,
        source=name or "pages",
    )
    return sample, turned


def _stored(path: Path) -> tuple[tuple[int, int], bool]:
    """Width and height as stored, and whether the image asks to be shown rotated. Raises LeftOut."""
    try:
        expect_file(path, "the image of a page")
    except BadData as problem:
        raise LeftOut("no_image", str(problem)) from problem
    try:
        with stored_image(path, "the image of a page") as file:
            number, size, turned = getattr(file, "n_frames", 1), file.size, file.getexif().get(0x0112, 1) != 1
            as_rgb(file)
    except BadData as problem:
        raise LeftOut("unreadable", str(problem)) from problem
    if number > 1:
        raise LeftOut("several_pages", f"{path}: found {number} pages in one image, expected one: split it, with a text for each")
    return size, turned


def _conversations(source: Path, root: Path, questions: Sequence[str]) -> Iterator[_Page | BadData]:
    entries = read_json(source, "a list of conversations in JSON")
    if not isinstance(entries, list):
        raise BadData(f"{source}: found {type(entries).__name__}, expected a list of conversations")
    if not root.is_dir():
        raise BadData(f"pages: {root}: found no such folder, expected the one that the image paths of {source.name} start from")
    asked = {_plain(question) for question in (*QUESTIONS, *questions)}
    for number, entry in enumerate(entries, 1):
        try:
            image, text = _conversation(f"{source}: entry {number}", entry, asked)
        except BadData as problem:
            yield problem
        else:
            yield _Page(id=f"page-{image}", text=text, image=root / image)


def _conversation(where: str, entry: Any, asked: set[str]) -> tuple[str, str]:
    """Image path and text of one entry. Raises BadData, LeftOut where it asks for something else."""
    image, turns = (entry.get("image"), entry.get("conversations")) if isinstance(entry, dict) else (None, None)
    if isinstance(image, list) and len(image) > 1:
        raise LeftOut("several_pages", f"{where}: found {len(image)} images, expected one")
    image = image[0] if isinstance(image, list) and image else image
    if not isinstance(image, str) or not image.strip():
        raise BadData(f"{where}: field image: found {image!r:.80}, expected a path")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        raise BadData(f'{where}: field conversations: found {turns!r:.80}, expected [{{"from": "human", "value"}}, {{"from": "gpt", "value"}}]')
    speakers = [turn.get("from") for turn in turns]
    if speakers != ["human", "gpt"]:
        raise BadData(f"{where}: field conversations: found turns of {speakers!r:.80}, expected human and gpt, once each")
    if _plain(turns[0]["value"]) not in asked:
        raise LeftOut(
            "other_question", f"{where}: found the question {turns[0]['value']!r:.80}, expected one for the whole text: add it to questions"
        )
    return image, turns[1]["value"]


def _plain(question: str) -> str:
    """A question without its image mark, punctuation and letter case."""
    return " ".join(re.sub(r"[^\w]+", " ", question.replace("<image>", " ")).casefold().split())


def _folder(source: Path, suffixes: Sequence[str]) -> Iterator[_Page | BadData]:
    if not source.is_dir():
        raise BadData(f"pages: {source}: found no such folder, expected images with their texts beside them")
    found: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() in IMAGES:
            found[path.with_suffix("")].append(path)
        elif suffix := next((suffix for suffix in suffixes if path.name.endswith(suffix)), None):
            found.setdefault(path.with_name(path.name.removesuffix(suffix)), [])
    for stem, images in sorted(found.items()):
        name = stem.relative_to(source).as_posix()
        try:
            yield _Page(id=f"page-{name}", image=_only(stem, images), text=_text(stem, suffixes))
        except LeftOut as problem:
            yield problem


def _text(stem: Path, suffixes: Sequence[str]) -> str:
    """The text beside the image `stem`. Raises LeftOut where there is none, or no one text."""
    texts = {}
    for path in (stem.with_name(stem.name + suffix) for suffix in suffixes):
        if not path.exists():
            continue
        try:
            expect_file(path, "the text of a page")
            texts[path.name] = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as problem:
            raise LeftOut(
                "not_utf8",
                f"{path}: found bytes that are not UTF-8 (the first at {problem.start}): "
                "convert it",
            ) from problem
        except BadData as problem:
            raise LeftOut("no_text", str(problem)) from problem
    if not texts:
        raise LeftOut("no_text", f"{stem}: found no text named {stem.name} with {', '.join(suffixes)}, expected one beside the image")
    if len(set(texts.values())) > 1:
        raise LeftOut("texts_differ", f"{stem}: found {' and '.join(texts)} with different words, expected the same: choose with texts=SUFFIX")
    return next(iter(texts.values()))


def _only(stem: Path, images: Sequence[Path]) -> Path:
    if not images:
        raise LeftOut("no_image", f"{stem}: found a text and no image of that name, expected one beside it")
    if len(images) > 1:
        raise LeftOut("same_stem", f"{stem}: found {' and '.join(path.name for path in images)} for one text, expected one image")
    return images[0]


def _pdf_files(source: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in source.rglob("*") if path.suffix.lower() == ".pdf")) if source.is_dir() else (source,)


def _pdfs(source: Path, files: Sequence[Path], rendered: Path, dpi: int) -> Iterator[_Page | BadData]:
    """Renders the pages of the PDFs, of one or of all below a folder, to `<rendered>/<path of the PDF>-<number>.png`."""
    root = source if source.is_dir() else source.parent
    named: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(root).with_suffix("").as_posix()
        if named.setdefault(name, file) != file:
            yield LeftOut("same_stem", f"{file}: found {named[name].name} of the same name, expected each once: rename one")
            continue
        for page in pdf_pages(file, dpi):
            if isinstance(page, LeftOut):
                yield page
                continue
            image = rendered / f"{name}-{page.number:04d}.png"
            with replacing(image) as part:
                page.image.save(part, format="PNG")
            yield _Page(id=f"page-{name}-{page.number:04d}", text=page.text, image=image)
