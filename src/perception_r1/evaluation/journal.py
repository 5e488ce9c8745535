"""The answers of a run while they come, in its folder, so that a run that was killed goes on and asks nothing twice.

`answers.jsonl` has one line an answer: `{"id", "completion", "finish", "seen": [width, height]}`, the last being the size of the
image as the model saw it, which its coordinates may refer to; null where nobody knows and they do not. `run.json` says what was
asked, of which model and how: answers to something else are never mixed with them. Each of several processes writes a file of its
own until all are done.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..data.samples import json_line, replacing
from ..frames import stated_size
from ..records import BadData, Frame, Sample
from .asking import Processes, Reply
from .predictions import FINISHES

ANSWERS = "answers.jsonl"
RUN = "run.json"
SYNC_SECONDS = 1.0
"""A line is the system's as soon as it is written, so a killed process loses nothing; a power cut costs at most this much."""


def has_answers(folder: Path) -> bool:
    """Whether a folder holds answers of a model, finished or not."""
    return (folder / RUN).is_file()


class Journal:
    """The replies to a run's samples, those of an interrupted run included. Use it in a `with` block, and `add` what comes.

    `identity` is everything that the replies depend on. Raises BadData where the folder holds answers that depend on something
    else, unless `overwrite`, which deletes them. `needs_size`: an answer must say what size was seen.
    """

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Sample],
        identity: Mapping[str, Any],
        *,
        overwrite: bool = False,
        processes: Processes | None = None,
        needs_size: bool = False,
    ) -> None:
        self.folder, self.samples, self.processes = folder, samples, processes or Processes()
        self.needs_size = needs_size
        self.replies: dict[str, Reply] = {}
        own = ANSWERS if not self.processes.index else f"answers-{self.processes.index}.jsonl"
        self.path = folder / own
        if not overwrite:
            _check(folder, identity)
        self.processes.wait()
        if not self.processes.index:
            _prepare(folder, identity, overwrite)
        self.processes.wait()
        self._read()
        self.processes.wait()

    def __enter__(self) -> "Journal":
        _drop_torn_line(self.path)
        self._file: BinaryIO = self.path.open("ab", buffering=0)
        self._synced = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def missing(self) -> list[Sample]:
        """Those of the samples without a reply that are this process's to ask."""
        left = [sample for sample in self.samples if sample.id not in self.replies]
        return left[self.processes.index :: self.processes.count]

    def add(self, sample: Sample, reply: Reply) -> None:
        """Writes a reply as one line, in one piece."""
        self._file.write(_line(sample.id, reply))
        self.replies[sample.id] = reply
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def finish(self) -> list[Reply]:
        """When every process has added all of its replies: those to all samples, in order, and `answers.jsonl` in that order.

        Only the first process may call it, after `wait`.
        """
        self._read()
        replies = [self.replies[sample.id] for sample in self.samples]
        with replacing(self.folder / ANSWERS) as part, part.open("wb") as file:
            file.writelines(_line(sample.id, reply) for sample, reply in zip(self.samples, replies, strict=True))
            file.flush()
            os.fsync(file.fileno())
        for path in _parts(self.folder):
            path.unlink()
        return replies

    def _read(self) -> None:
        samples = {sample.id: sample for sample in self.samples}
        for path in (self.folder / ANSWERS, *_parts(self.folder)):
            for where, row in _whole_lines(path):
                name = row["id"]
                if name not in samples:
                    raise BadData(f"{where}: found an answer for {name!r}, which is none of the samples: {REMEDY}")
                self.replies[name] = self._reply(row, samples[name], f"{where}: sample {name!r}")

    def _reply(self, row: Mapping[str, Any], sample: Sample, where: str) -> Reply:
        seen = stated_size(row["seen"], where)
        if seen is None and self.needs_size:
            expected = "[width, height] of the image as the model saw it"
            raise BadData(f"{where}: found seen None, expected {expected}: {REMEDY}")
        width, height = seen or (sample.width, sample.height)
        own = {"width": sample.width, "height": sample.height}
        frame = Frame(**own, seen_width=width, seen_height=height)
        return Reply(row["completion"], row["finish"], frame, seen is not None)


REMEDY = "name another folder with -o, or give --overwrite to ask everything again"


def _line(name: str, reply: Reply) -> bytes:
    seen = [reply.frame.seen_width, reply.frame.seen_height] if reply.sized else None
    return json_line({"id": name, "completion": reply.completion, "finish": reply.finish, "seen": seen}).encode()


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("answers-*.jsonl"))


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file and line, row); a last line without an end is one that a killed process did not finish."""
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise BadData(f"{path}:{number}: found {line[:60]!r}, expected an answer that a run has written: {REMEDY}") from problem
        if not _is_answer(row):
            raise BadData(f"{path}:{number}: found {line[:60]!r}, expected id, completion, finish and seen: {REMEDY}")
        yield f"{path}:{number}", row


def _is_answer(row: Any) -> bool:
    if not isinstance(row, dict) or {"id", "completion", "finish", "seen"} - set(row):
        return False
    texts = isinstance(row["id"], str) and isinstance(row["completion"], str)
    return texts and row["finish"] in FINISHES


def _drop_torn_line(path: Path) -> None:
    if path.is_file() and not (text := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)


def _check(folder: Path, identity: Mapping[str, Any]) -> None:
    run = folder / RUN
    if not run.is_file():
        if (folder / ANSWERS).is_file() or _parts(folder):
            raise BadData(f"{folder}: found answers, but no {RUN} that says what they answer: {REMEDY}")
        return
    try:
        there = json.loads(run.read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise BadData(f"{run}: expected JSON, found {problem}: {REMEDY}") from problem
    now = json.loads(json.dumps(identity))
    if differing := list(_differences(there, now)):
        raise BadData(f"{folder} holds answers of another run: {'; '.join(differing[:3])}: {REMEDY}")


def _differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*there, *now]):
            yield from _differences(there.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif there != now:
        yield f"{name} was {there!r:.60}, now {now!r:.60}"


def _prepare(folder: Path, identity: Mapping[str, Any], overwrite: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for path in (folder / ANSWERS, folder / RUN, folder / "metrics.json", *_parts(folder)):
            path.unlink(missing_ok=True)
    with replacing(folder / RUN) as part:
        part.write_text(json.dumps(identity, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
