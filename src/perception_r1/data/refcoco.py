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
from reprlib import repr as short
from typing import Any, TypeVar

from ..records import BadData, Sample
from .coco import read_instances
from .references import Maker, Reference, RefOptions, RowForm
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
        raise BadData(f"{file}: found {short(references)}, expected a list of references")
    pictures, notes = _instances(root / "instances.json")

    def convert(where: str, reference: Any) -> Reference:
        try:
            image, box = notes[reference["ann_id"]]
            if image != reference["image_id"]:
                raise ValueError(f"its object lies in image {image}")
            sentences = [(f"{name}-{sentence['sent_id']}", sentence["sent"]) for sentence in reference["sentences"]]
            where = f"{where} (ref_id {reference['ref_id']})"
            picture, size = pictures[image]
            split = reference["split"]
            if not isinstance(split, str):
                raise TypeError(f"split {short(split)}")
            return Reference(where=where, split=split, phrases=sentences, image=picture, size=size, box=box, boxes="xywh")
        except (KeyError, TypeError, ValueError) as problem:
            expected = "ref_id, ann_id, image_id, split and sentences with sent_id and sent, its object and image in instances.json"
            raise BadData(f"{where}: {type(problem).__name__} {problem} in {short(reference)}, expected {expected}") from problem

    entries = ((f"{file}: reference {number}", reference) for number, reference in enumerate(references, 1))
    return entries, convert, _folders(options, root, REFER_IMAGES), (file, root / "instances.json")


def _instances(file: Path) -> tuple[dict[Any, tuple[str, tuple[int, int]]], dict[Any, tuple[Any, Any]]]:
    """Name and size of each image, and image and box of each annotation, by id. Raises BadData."""
    content, entry = read_instances(file), None
    pictures, notes = {}, {}
    try:
        for entry in content["images"]:
            pictures[entry["id"]] = str(entry["file_name"]), (int(entry["width"]), int(entry["height"]))
        for entry in content["annotations"]:
            notes[entry["id"]] = entry["image_id"], entry["bbox"]
    except (KeyError, TypeError, ValueError) as problem:
        raise BadData(
            f"{file}: {type(problem).__name__} {problem} in {short(entry)}, expected an image or annotation as COCO defines it"
        ) from problem
    if (len(pictures), len(notes)) != (len(content["images"]), len(content["annotations"])):
        raise BadData(f"{file}: found an image id or annotation id twice, expected each once")
    return pictures, notes


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
            raise BadData(f"{where}: found {short(row)}, expected an object with the columns {form.image}, {form.text} and {form.box}")
        if lacking := [column for column in (form.image, form.text, form.box, form.id) if column and column not in row]:
            raise BadData(f"{where}: found the columns {', '.join(map(str, row))}, expected {lacking[0]!r}: name the columns with --columns")
        number = row[form.id] if form.id else "-".join(filter(None, (shard, str(numbers[shard]))))
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
            raise BadData(f"{path}: found {short(content)}, expected a list of rows; name a file with a row on each line .jsonl")
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
        raise BadData(f"{where}: found the box {short(value)}, expected four numbers or a JSON list of them") from problem


def _phrases(name: str, value: Any, form: RowForm, where: str) -> Iterator[tuple[str, Any]]:
    """Ids and phrases of a row's text, freed of the sentence around them."""
    before, _, after = (form.template or "{}").partition("{}")
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        text = item.get("sent") if isinstance(item, Mapping) else item
        if not isinstance(text, str):
            raise BadData(f"{where}: column {form.text}: found {short(value)}, expected a text, a list of texts, or of objects with `sent`")
        if not (text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)):
            raise BadData(f"{where}: column {form.text}: found {text[:80]!r}, expected {form.template!r}: name the sentence with --template")
        if not form.template and "bounding box" in text.lower():
            raise BadData(f"{where}: column {form.text}: found {text[:80]!r}, expected the phrase alone: name the sentence around it with --template")
        yield f"{name}-{number}" if isinstance(value, list) else name, text[len(before) : len(text) - len(after)]
