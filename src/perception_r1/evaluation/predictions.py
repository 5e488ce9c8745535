"""Answers from files: our JSONL, COCO results JSON with scores, or a folder with one text a page. No model, no torch.

    answers.jsonl   {"id": "coco-42", "completion": "…", "finish": "stop"}     text, read by the dialect that is named; "seen" where known
    results.json    [{"image_id": 42, "category_id": 18, "bbox": [x, y, width, height], "score": 0.236}, …]   COCO's own
    folder          ID.txt for the sample ID                                   a page's text
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.categories import category_names
from ..data.coco import coco_image
from ..data.instances import read_instances
from ..data.numbers import Fields, Unread, four, identity, number, shown
from ..data.regular import expect_file
from ..data.samples import read_json, read_rows
from ..dialects import Dialect
from ..endings import without_ends
from ..frames import PixelLimits, Size, Sizes, stated_size, unknown_size
from ..records import Answer, BadData, Sample
from ..tasks.detection import COCO_NAMES

FINISHES = ("stop", "length")
COCO_RESULTS = "coco-results"
"""What metrics.json names as the dialect of answers that are no text."""
COCO_IDS = tuple(number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""The category ids of COCO_NAMES, in order: ten of COCO's ninety were never used."""


class Written(NamedTuple):
    """What a model wrote: the completion, and whether it stopped ("stop") or was cut off ("length")."""

    completion: str
    finish: str
    seen: Size | None = None
    """Width and height of the image as the model saw it, where the file says."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Answers by sample id. `answers` is None where they are text that a dialect reads."""

    path: str
    sha256: str
    written: Mapping[str, Written]
    answers: Mapping[str, Answer] | None = None
    """Of every sample, where the format itself says what the boxes are."""

    def sizes(self, samples: Sequence[Sample], dialect: Dialect, limits: PixelLimits) -> Sizes:
        """How many answers state at what size the model saw their image, where that matters.

        Raises BadData where one does not and `limits` have no largest size.
        """
        found = Sizes(limits=limits)
        for sample in samples:
            if answer := self.written.get(sample.id):
                found.count(sample, dialect, without_ends(answer.completion), answer.seen)
        if found.computed and limits.max_pixels is None:
            some = f"{found.computed:,} of {len(self.written):,} answers"
            first = f"first that to {found.first!r}"
            raise BadData(f"{self.path}: {some}, {first}: {unknown_size(dialect)}")
        return found

    def notes(self, samples: Sequence[Sample]) -> list[str]:
        """What a reader must know about the samples that the file does not answer."""
        missing = sum(sample.id not in self.written for sample in samples)
        if not missing:
            return []
        of = f"{missing:,} of {len(samples):,}"
        if self.answers is not None:
            return [f"{of} images have no detection in {self.path}: nothing was found there, and they count"]
        return [f"{of} samples have no answer in {self.path}: each counts as wrong"]


def read_predictions(path: str | Path, samples: Sequence[Sample], categories: str | Path | None = None) -> Predictions:
    """The answers of a file to `samples`: a folder holds texts, a name that ends in .json COCO results, any other lines of ours.

    `categories` is an instances JSON that says what COCO results mean by their category ids, for samples with a label set of
    their own. Raises BadData for an answer that belongs to no sample, and for what is not of its form.
    """
    path = Path(path)
    if categories is not None and path.suffix != ".json":
        raise BadData(f"{path}: found categories named for it, expected that for COCO results (.json) alone")
    if path.is_dir():
        return Predictions(path=str(path), sha256=_folder_hash(path), written=read_texts(path, samples))
    if path.suffix == ".json":
        written, answers = read_coco_results(path, samples, categories)
        return Predictions(path=str(path), sha256=file_hash(path), written=written, answers=answers)
    return Predictions(path=str(path), sha256=file_hash(path), written=read_completions(path, samples))


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file. Raises OSError, BadData for what is no file."""
    expect_file(path, "a file")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.txt")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()


# --- lines of ours ---------------------------------------------------------------------------------------------------
def read_completions(path: Path, samples: Sequence[Sample]) -> dict[str, Written]:
    """Answers by sample id from an answers file. Samples may lack one; raises BadData, naming the line, for an id that is no
    sample's or occurs twice, and for a row that is not `{"id", "completion", "finish", "seen"}` (`finish` may be absent: "stop"; and
    so may `seen`, the size of the image as the model saw it).
    """
    wanted, found = {sample.id for sample in samples}, {}
    for where, row in read_rows(path):
        if isinstance(row, BadData):
            raise row
        if not isinstance(row, Mapping) or not isinstance(row.get("id"), str) or not isinstance(row.get("completion"), str):
            raise BadData(f'{where}: found {row!r:.80}, expected {{"id": text, "completion": text, "finish": "stop" or "length"}}')
        name, finish = row["id"], row.get("finish") or "stop"
        if finish not in FINISHES:
            raise BadData(f"{where}: sample {name!r}: found finish {finish!r}, expected stop or length")
        if name in found:
            raise BadData(f"{where}: sample {name!r} is answered twice, expected one answer for each id")
        if name not in wanted:
            raise BadData(f"{where}: found an answer for {name!r}, which is not among the {len(wanted)} samples: name the sample file it belongs to")
        seen = stated_size(row.get("seen"), f"{where}: sample {name!r}")
        found[name] = Written(row["completion"], finish, seen)
    return found


# --- one text a page -------------------------------------------------------------------------------------------------
def read_texts(folder: Path, samples: Sequence[Sample]) -> dict[str, Written]:
    """Answers by sample id from files `ID.txt` of a folder, UTF-8. Samples may lack one; raises BadData for a file of no sample."""
    if other := next((sample for sample in samples if sample.task != "ocr"), None):
        raise BadData(f"{folder}: found a folder of texts for sample {other.id!r} of task {other.task}, expected that for ocr: name answers.jsonl")
    wanted, found = {sample.id for sample in samples}, {}
    for path in sorted(folder.rglob("*.txt")):
        name = path.relative_to(folder).as_posix().removesuffix(".txt")
        if name not in wanted:
            raise BadData(f"{path}: found a text for {name!r}, which is not among the {len(wanted)} samples: expected ID.txt with the id of a sample")
        expect_file(path, "a page's text")
        try:
            found[name] = Written(path.read_text(encoding="utf-8"), "stop")
        except UnicodeDecodeError as problem:
            raise BadData(f"{path}: found bytes that are not UTF-8 ({problem.reason}), expected a page's text") from problem
    return found


# --- COCO results ----------------------------------------------------------------------------------------------------
def read_coco_results(
    path: Path, samples: Sequence[Sample], categories: str | Path | None = None
) -> tuple[dict[str, Written], dict[str, Answer]]:
    """Detections by sample id, as text (the image's rows) for those that have some, and as an answer with scores for every sample.

    A row belongs to the sample whose id is its image_id, or its image_id after the sample's source
    or `coco` and a hyphen, as our COCO reader names it. An image without a row is one where nothing
    was found. Boxes are x, y, width, height in original pixels. Raises BadData.
    """
    if other := next((sample for sample in samples if sample.task != "detection"), None):
        raise BadData(f"{path}: found COCO results for sample {other.id!r} of task {other.task}, expected detection samples: name answers.jsonl")
    rows, names = read_json(path, "COCO results"), _category_names(samples, categories)
    if not isinstance(rows, list):
        raise BadData(f'{path}: found {str(rows)[:60]}, expected a list of {{"image_id", "category_id", "bbox", "score"}}')
    wanted = {coco_image(sample): sample.id for sample in samples}
    if len(wanted) < len(samples):
        raise BadData(f"{path}: found two samples whose ids name the same image of it, expected one sample an image")
    written: dict[str, list[Any]] = defaultdict(list)
    read: dict[str, list[_Detection]] = defaultdict(list)
    for index, row in enumerate(rows):
        image, detection = _detection(Fields(row, f"{path}: row {index}"), wanted, names)
        written[wanted[image]].append(row)
        read[wanted[image]].append(detection)
    answers = {sample.id: _answer(read.get(sample.id, [])) for sample in samples}
    return {
        name: Written(json.dumps(found, ensure_ascii=False), "stop")
        for name, found in written.items()
    }, answers


def _category_names(
    samples: Sequence[Sample], categories: str | Path | None
) -> dict[int | str, str]:
    if categories is not None:
        return category_names(Path(categories), read_instances(Path(categories)))
    if own := next((sample for sample in samples if sample.categories is not None), None):
        raise BadData(
            f"sample {own.id!r} has categories of its own, whose ids COCO results do not tell: "
            "name the instances JSON that has them with --categories"
        )
    return dict(zip(COCO_IDS, COCO_NAMES, strict=True))


class _Detection(NamedTuple):
    """One row of COCO results, read."""

    xywh: list[float]
    label: str
    score: float


def _detection(
    row: Fields, wanted: Mapping[int | str, str], names: Mapping[int | str, str]
) -> tuple[int | str, _Detection]:
    """The image that a row is about, and what it says of it. Raises BadData."""
    if (
        not isinstance(row.entry, Mapping)
        or not {"image_id", "category_id", "bbox", "score"} <= row.entry.keys()
    ):
        raise BadData(
            f"{row.where}: found {str(row.entry)[:80]}, "
            'expected {"image_id", "category_id", "bbox", "score"}'
        )
    box, score = row.take("bbox", _sized), row.take("score", number)
    category, image = row.take("category_id", identity), row.take("image_id", identity)
    if category not in names:
        raise BadData(
            row.problem("category_id", f"one of {', '.join(map(str, list(names)[:5]))}, …")
        )
    if image not in wanted:
        of = f"which is not among the {len(wanted)} samples"
        found = f"found image_id {shown(row.get('image_id'))}, {of}"
        raise BadData(f"{row.where}: {found}: name their sample file")
    return image, _Detection(box, names[category], score)


def _sized(value: Any) -> list[float]:
    """A box x, y, width, height. Raises Unread."""
    expected = "[x, y, width, height], finite, sizes of at least 0"
    try:
        box = four(value)
    except Unread as problem:
        raise Unread(expected) from problem
    if min(box[2:]) < 0:
        raise Unread(expected)
    return box


def _answer(found: Sequence[_Detection]) -> Answer:
    boxes_N4 = np.array([it.xywh for it in found], dtype=np.float64).reshape(-1, 4)
    boxes_N4[:, 2:] += boxes_N4[:, :2]
    scores_N = np.array([it.score for it in found], dtype=np.float64)
    return Answer(boxes=boxes_N4, labels=tuple(it.label for it in found), scores=scores_N)
