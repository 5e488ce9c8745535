"""Referring expressions → grounding samples: RefCOCO, RefCOCO+, RefCOCOg and RefCOCOS, in the layouts they are published in.

    refer  a folder with refs(unc).p, refs(google).p or refs(umd).p beside instances.json: one box and several sentences a reference
    rows   a .json, .jsonl or .parquet file, or a folder of Parquet shards (val-00000-of-00002.parquet): one box a row

Every sentence is a sample. How a row writes its box is declared, never guessed (references.py). A pickle is read for plain
containers only: it cannot run code.
"""

import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..records import BadData, Sample
from .annotations import Picture, read_pictures
from .categories import Id
from .instances import entries, read_instances
from .numbers import Fields, Unread, four, identity, shown
from .numbers import name as text
from .references import Maker, Reference, RefOptions, RowForm
from .regular import expect_file
from .samples import LeftOut, Skipped, read_json, read_rows, unique

T = TypeVar("T")

REFER_IMAGES = ("images", "train2014", "images/train2014", "../images/mscoco/images/train2014", "../images/train2014", "../train2014")
"""Where the images of the refer layout are looked for, below its folder."""

_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")


@dataclass(frozen=True, kw_only=True)
class References:
    """Samples of referring expressions, and what happened on the way."""

    samples: list[Sample]
    report: Mapping[str, int]
    """Numbers of `expressions` read, `images` used, expressions with `no_target`, boxes `clipped`, and `missing_images`."""
    files: tuple[Path, ...]
    """The files of references, boxes and rows that were read."""


def refcoco_samples(path: Path | str, options: RefOptions | None = None, *, skipped: Skipped | None = None) -> References:
    """Grounding samples of `path`, a folder in the refer layout or a file of rows; one for each sentence, in the data's order.

    Raises BadData at the first bad expression, and after the last one when images are missing, with their number. Given
    `skipped`, both are left out and counted there, by reason. A `source` is `name/split`.
    """
    options, path = options or RefOptions(), Path(path)
    entries, convert, folders, files = _refer(path, options) if path.is_dir() and list(path.glob("refs(*).p")) else _rows(path, options)
    maker, missing, splits, samples = Maker(options, folders, _name(path, options)), Skipped(keep=3), Counter[str](), list[Sample]()

    def attempt(function: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return function(*arguments)
        except BadData as problem:
            if skipped is not None:
                skipped.add(problem)
            elif isinstance(problem, LeftOut) and problem.reason == "missing_image":
                missing.add(problem)
            else:
                raise
        return None

    for entry in entries:
        if (reference := attempt(convert, *entry)) is None:
            continue
        splits[reference.split] += 1
        if not options.split and len(splits) > 1:
            raise BadData(f"{path}: found the splits {', '.join(splits)}: name one with --split, or all for every one")
        if options.split in ("", "all", reference.split):
            maker.report["expressions"] += len(reference.phrases)
            samples += [sample for phrase in reference.phrases if (sample := attempt(maker.sample, reference, *phrase))]
    report = maker.full_report(samples)
    if missing.count:
        looked = ", ".join(map(str, folders))
        raise BadData(
            f"{path}: {missing.count:,} of {report['expressions']:,} expressions have no image: {report['missing_images']:,} images were not found "
            f"in {looked}; the first: {missing.problems[0]}; expected all: name their folder with --images, or leave them out with --skip-bad"
        )
    if not samples:
        there = ", ".join(f"{split or 'no name'} ({count:,})" for split, count in splits.items()) or "none"
        left_out = f"; left out: {', '.join(f'{reason} {count:,}' for reason, count in skipped.reasons.items())}" if skipped else ""
        raise BadData(f"{path}: found no sample of split {options.split or 'any'!r}; splits that are there: {there}{left_out}; expected at least one")
    return References(samples=list(unique(samples, str(path))), report=report, files=files)


def _name(path: Path, options: RefOptions) -> str:
    folder = path.resolve()
    folder = folder.parent if folder.is_dir() and folder.name == "data" else folder
    return options.name or (folder.name if path.is_dir() else path.stem)


_Entries = tuple[Iterator[tuple[Any, ...]], Callable[..., Reference], tuple[Path, ...], tuple[Path, ...]]
"""What is read, one after the other; what makes a reference of each; the folders of images; the files read."""


# --- the refer layout ------------------------------------------------------------------------------------------------
class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers. Whatever names a class or a function is refused before it is looked up."""

    def find_class(self, module: str, name: str, /) -> Any:
        raise BadData(f"found {module}.{name} inside, expected lists, dicts, texts and numbers alone: it may be an attack, do not open it elsewhere")


def read_plain_pickle(file: Path) -> Any:
    """The content of a pickle of plain containers. Raises BadData for one that names a class or a function, and runs neither."""
    expect_file(file, "the references of the refer layout")
    try:
        with file.open("rb") as opened:
            return _PlainUnpickler(opened, encoding="utf-8").load()
    except BadData as problem:
        raise BadData(f"{file}: {problem}") from problem
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError) as problem:
        found = " ".join(f"{type(problem).__name__} {problem}".split())
        raise BadData(f"{file}: found no readable pickle ({found}), expected the references of the refer layout") from problem


def _refer(root: Path, options: RefOptions) -> _Entries:
    if options != replace(options, form="rows", boxes="", columns={}, template="", null_is_empty=False):
        raise BadData(f"refcoco: {root}: found the refer layout, which says itself how it is written: expected no form, boxes, columns or template")
    file, name = _refs_file(root, options.by), _name(root, options)
    references = read_plain_pickle(file)
    if not isinstance(references, list):
        raise BadData(f"{file}: found {shown(references)}, expected a list of references")
    pictures, notes = _instances(root / "instances.json")

    def convert(where: str, reference: Any) -> Reference:
        fields = Fields(reference, where)
        fields = Fields(reference, f"{where} (ref_id {fields.take('ref_id', identity)})")
        found = notes.get(fields.take("ann_id", identity))
        if found is None:
            raise BadData(
                fields.problem("ann_id", f"the id of an annotation of {root / 'instances.json'}")
            )
        note, image = found
        if fields.take("image_id", identity) != image:
            raise BadData(
                fields.problem("image_id", f"{image!r}: its object lies in image {image}")
            )
        picture = pictures.get(image)
        if picture is None:
            raise BadData(
                note.problem("image_id", f"the id of one of the file's {len(pictures):,} images")
            )
        return Reference(
            where=fields.where,
            split=fields.take("split", text),
            phrases=_sentences(name, fields),
            image=picture.file,
            size=(picture.width, picture.height),
            box=note.take("bbox", four),
            boxes="xywh",
            declared=False,
        )

    told = (
        (f"{file}: reference {number}", reference) for number, reference in enumerate(references, 1)
    )
    return told, convert, _folders(options, root, REFER_IMAGES), (file, root / "instances.json")


def _sentences(name: str, fields: Fields) -> list[tuple[str, Any]]:
    """Ids and phrases of a reference. Raises BadData."""
    written = fields.get("sentences")
    if not isinstance(written, list):
        raise BadData(fields.problem("sentences", "a list of sentences"))
    sentences = [
        Fields(sentence, f"{fields.where}: sentence {place}")
        for place, sentence in enumerate(written, 1)
    ]
    return [
        (f"{name}-{sentence.take('sent_id', identity)}", sentence.take("sent", _there))
        for sentence in sentences
    ]


def _there(value: Any) -> Any:
    if value is None:
        raise Unread("a sentence")
    return value


def _instances(file: Path) -> tuple[dict[Id, Picture], dict[Id, tuple[Fields, Id]]]:
    """The images, and the annotations with the ids of their images, of the refer layout by id.
    Raises BadData.
    """
    content = read_instances(file)
    notes: dict[Id, tuple[Fields, Id]] = {}
    for fields in entries(file, content, "annotations"):
        number = fields.take("id", identity)
        if number in notes:
            raise BadData(f"{file}: found the annotation id {number!r} twice, expected each once")
        notes[number] = fields, fields.take("image_id", identity)
    return read_pictures(file, content), notes


def _refs_file(root: Path, by: Sequence[str]) -> Path:
    there = {file.name[5:-3]: file for file in sorted(root.glob("refs(*).p"))}
    chosen = [file for name, file in there.items() if name in by or not by]
    if len(chosen) != 1:
        raise BadData(f"{root}: found the splits of {', '.join(there)}, expected one of them to be named: --by {next(iter(there))}")
    return chosen[0]


def _folders(options: RefOptions, root: Path, usual: Sequence[str]) -> tuple[Path, ...]:
    for folder in options.images:
        if not Path(folder).is_dir():
            raise BadData(f"refcoco: images {folder}: found no such folder, expected the folder of the images")
    return tuple(map(Path, options.images)) or tuple(root / folder for folder in usual)


# --- rows ------------------------------------------------------------------------------------------------------------
def _rows(path: Path, options: RefOptions) -> _Entries:
    form, name, numbers = options.row_form(), _name(path, options), Counter[str]()

    def convert(where: str, shard: str, row: Any) -> Reference:
        numbers[shard] += 1
        if isinstance(row, BadData):
            raise row
        if not isinstance(row, Mapping):
            raise BadData(
                f"{where}: found {shown(row)}, expected an object with the columns "
                f"{form.image}, {form.text} and {form.box}"
            )
        if lacking := [column for column in (form.image, form.text, form.box, form.id) if column and column not in row]:
            raise BadData(f"{where}: found the columns {', '.join(map(str, row))}, expected {lacking[0]!r}: name the columns with --columns")
        number = (
            Fields(row, where).take(form.id, identity)
            if form.id
            else "-".join(filter(None, (shard, str(numbers[shard]))))
        )
        box = _written_box(row[form.box], where)
        empty = isinstance(row.get("categories"), Mapping) and row["categories"].get("empty_case") is True
        if box is None and not (empty or options.null_is_empty):
            raise BadData(f"{where}: column {form.box}: found no box, expected one; if it means that nothing matches, say so with --null-is-empty")
        if box is not None and empty:
            raise BadData(f"{where}: found a box and empty_case true, expected one or the other")
        return Reference(
            where=where,
            split=str(row.get(form.split) or shard),
            phrases=list(_phrases(f"{name}-{number}", row[form.text], form, where)),
            image=row[form.image],
            stated=(row.get("width"), row.get("height")),
            box=box,
            boxes=form.boxes,
            thousandths=row.get(form.thousandths),
        )

    shards, folder = _shards(path, options.split), path if path.is_dir() else path.parent
    files = tuple(file for _, file in shards)
    return _file_rows(path, shards), convert, _folders(options, folder, (".", "images")), files


def _file_rows(path: Path, shards: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, str, Any]]:
    """Where it stands, the shard's split, and the row."""
    if path.suffix == ".json" and path.is_file():
        content = read_json(path, "a list of rows")
        if not isinstance(content, list):
            raise BadData(
                f"{path}: found {shown(content)}, expected a list of rows; "
                "name a file with a row on each line .jsonl"
            )
        yield from ((f"{path}: entry {number}", "", row) for number, row in enumerate(content, 1))
        return
    for shard, file in shards:
        yield from ((where, shard, row) for where, row in read_rows(file))


def _shards(path: Path, split: str) -> list[tuple[str, Path]]:
    """The files of rows, each with the split that its name says: those of `split`, or all."""
    files = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]) if path.is_dir() else [path]
    if not files:
        raise BadData(f"{path}: found neither refs(*).p nor *.parquet, expected the refer layout or Parquet shards: or name a file of rows")
    shards = [(match[1] if (match := _SHARD.fullmatch(file.stem)) else "", file) for file in files]
    return [pair for pair in shards if pair[0] == split] or shards


def _written_box(value: Any, where: str) -> Any:
    """A box that may be written as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as problem:
        raise BadData(
            f"{where}: found the box {shown(value)}, expected four numbers or a JSON list of them"
        ) from problem


def _phrases(name: str, value: Any, form: RowForm, where: str) -> Iterator[tuple[str, Any]]:
    """Ids and phrases of a row's text, freed of the sentence around them."""
    before, _, after = (form.template or "{}").partition("{}")
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        text = item.get("sent") if isinstance(item, Mapping) else item
        if not isinstance(text, str):
            raise BadData(
                f"{where}: column {form.text}: found {shown(value)}, "
                "expected a text, a list of texts, or of objects with `sent`"
            )
        if not (text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)):
            raise BadData(f"{where}: column {form.text}: found {text[:80]!r}, expected {form.template!r}: name the sentence with --template")
        if not form.template and "bounding box" in text.lower():
            raise BadData(f"{where}: column {form.text}: found {text[:80]!r}, expected the phrase alone: name the sentence around it with --template")
        yield f"{name}-{number}" if isinstance(value, list) else name, text[len(before) : len(text) - len(after)]
