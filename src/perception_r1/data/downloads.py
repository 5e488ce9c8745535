"""Images from the web into a folder, one file an image, named by the SHA-256 that the data set states.

A run goes on where the last one stopped: what lies in the folder is not fetched again. What could not be had is written to
`dead_links.jsonl` beside the images, and nothing ever takes its place.
"""

import hashlib
import http.client
import io
import json
import random
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from ..records import BadData
from .regular import expect_file
from .samples import replacing, stored_image

T = TypeVar("T")
R = TypeVar("R")
Track = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""Shows how far a long loop is: given the items, a title and their number, passes the items on."""

DEAD_LINKS = "dead_links.jsonl"
PROBLEMS = ("dead", "unreachable", "wrong_hash", "too_large", "no_image")
"""Why an image could not be had: the server has none or refuses; no answer in all tries; other bytes; too many bytes; not an image."""
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers of a server that another try may better."""
NO_NETWORK = 50
"""So many links in a row at the start without any answer mean that there is no network."""
CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """How images are fetched."""

    workers: int = 8
    """Downloads at a time, at most."""
    tries: int = 4
    """Tries for one link, at most."""
    pause: float = 1.0
    """Seconds before the second try; it doubles for each further one, and a server's Retry-After lengthens it."""
    longest_pause: float = 60.0
    """Seconds between two tries, at most."""
    timeout: float = 20.0
    """Seconds without a byte after which a try is given up."""
    deadline: float = 120.0
    """Seconds after which a try is given up, however the bytes trickle."""
    max_bytes: int = 50_000_000
    """Bytes of one image, at most."""
    check_hash: bool = True
    """Whether an image must have the stated SHA-256."""

    def __post_init__(self) -> None:
        if min(self.workers, self.tries, self.max_bytes) < 1 or min(self.timeout, self.deadline) <= 0 or min(self.pause, self.longest_pause) < 0:
            raise BadData(f"download: expected workers, tries and bytes of at least 1 and times above 0, found {self}")


@dataclass(frozen=True, kw_only=True, order=True)
class Link:
    """Where an image is, and the SHA-256 of its bytes in 64 small hexadecimal digits."""

    sha256: str
    url: str


@dataclass(frozen=True, kw_only=True)
class DeadLink:
    """A link whose image could not be had."""

    link: Link
    kind: str
    """One of PROBLEMS."""
    problem: str
    tries: int

    def row(self) -> dict[str, Any]:
        return {"url": self.link.url, "sha256": self.link.sha256, "kind": self.kind, "problem": self.problem, "tries": self.tries}


@dataclass(frozen=True, kw_only=True)
class Download:
    """What became of the links of a data set."""

    report: Mapping[str, int]
    """Numbers of `links`, of those `there` already and `downloaded`, and of each of PROBLEMS."""
    dead: tuple[DeadLink, ...]
    dead_links: Path
    """The file that lists `dead`, one JSON object a line."""


class _Lost(Exception):
    """One try failed: of which kind, and how long to wait before another may help (None: none will)."""

    def __init__(self, kind: str, problem: str, pause: float | None = None) -> None:
        super().__init__(problem)
        self.kind, self.pause = kind, pause


def as_they_are(items: Iterable[Any], title: str, total: int | None) -> Iterable[Any]:
    return items


def download_images(links: Iterable[Link], folder: Path | str, settings: DownloadSettings | None = None, *, track: Track = as_they_are) -> Download:
    """Fetches the images of `links` into `folder` as `<sha256>.<jpg, png, …>`, several at a time, each link once.

    Raises BadData where no link answers at all, and OSError where the folder cannot be written. Whatever ends the run, the
    images that came are whole and stay, and the links found dead so far are in the file.
    """
    settings, folder = settings or DownloadSettings(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wanted, there = sorted(set(links)), local_images(folder)
    counts = Counter[str](links=len(wanted))
    dead: list[DeadLink] = []

    def fetch(link: Link) -> str | DeadLink:
        return "there" if matching(there.get(link.sha256, []), link.sha256, settings.check_hash) else _fetch(link, folder, settings)

    try:
        for outcome in track(in_parallel(fetch, wanted, settings.workers), "downloading", len(wanted)):
            counts[outcome.kind if isinstance(outcome, DeadLink) else outcome] += 1
            if isinstance(outcome, DeadLink):
                dead.append(outcome)
            if counts["unreachable"] == counts.total() - counts["links"] == NO_NETWORK:
                raise BadData(f"download: none of the first {NO_NETWORK} links answers ({dead[-1].problem}), expected a network: run again with one")
    finally:
        dead.sort(key=lambda item: item.link)
        with replacing(folder / DEAD_LINKS) as part:
            part.write_text("".join(json.dumps(item.row(), ensure_ascii=False) + "\n" for item in dead), encoding="utf-8")
    report = {name: counts[name] for name in ("links", "there", "downloaded", *PROBLEMS)}
    return Download(report=report, dead=tuple(dead), dead_links=folder / DEAD_LINKS)


def in_parallel(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """What `function` gives for each item, in the order of completion; no more than twice `workers` items are under way."""
    with ThreadPoolExecutor(workers) as pool:
        pending: set[Future[R]] = set()
        try:
            for item in items:
                if len(pending) >= 2 * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
                pending.add(pool.submit(function, item))
            yield from (future.result() for future in wait(pending).done)
        finally:
            for future in pending:
                future.cancel()


def local_images(folder: Path) -> dict[str, list[Path]]:
    """The files below `folder` whose name, without its suffix, is a SHA-256, by that name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if is_sha256(path.stem.lower()) and path.is_file():
            found.setdefault(path.stem.lower(), []).append(path)
    return found


def is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def matching(paths: Iterable[Path], sha256: str, check_hash: bool = True) -> Path | None:
    """The first of the files that has this SHA-256; the first at all without `check_hash`."""
    return next((path for path in paths if not check_hash or file_sha256(path) == sha256), None)


def file_sha256(path: Path) -> str:
    expect_file(path, "a file to take the SHA-256 of")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(link: Link, folder: Path, settings: DownloadSettings) -> str | DeadLink:
    """Tries until the image has come (`downloaded`) or no further try can help."""
    for number in range(1, settings.tries + 1):
        try:
            _save(link, _get(link.url, settings), folder, settings.check_hash)
            return "downloaded"
        except _Lost as problem:
            if problem.pause is None or number == settings.tries:
                return DeadLink(link=link, kind=problem.kind, problem=str(problem), tries=number)
            doubled = settings.pause * 2 ** (number - 1) * random.uniform(1, 1.5)  # not all workers at once
            time.sleep(min(max(doubled, problem.pause), settings.longest_pause))
    raise AssertionError("unreachable: the last try returns")


def _get(url: str, settings: DownloadSettings) -> bytes:
    """The bytes that a web address answers with. Raises _Lost."""
    address = _address(url)
    ends = time.monotonic() + settings.deadline
    try:
        with urllib.request.urlopen(_request(address), timeout=min(settings.timeout, settings.deadline)) as answer:
            return _read(answer, settings.max_bytes, ends)
    except urllib.error.HTTPError as problem:
        problem.close()
        if problem.code not in TRY_AGAIN:
            raise _Lost("dead", f"the server answers {problem.code} {problem.reason}") from problem
        after = problem.headers.get("Retry-After", "")
        raise _Lost("unreachable", f"the server answers {problem.code} {problem.reason}", float(after) if after.isdecimal() else 0.0) from problem
    except ValueError as problem:
        raise _Lost("dead", f"no web address: {problem}") from problem
    except (OSError, http.client.HTTPException) as problem:
        raise _Lost("unreachable", f"no answer: {str(problem) or type(problem).__name__}", 0.0) from problem


def _request(address: str) -> urllib.request.Request:
    return urllib.request.Request(address, headers={"User-Agent": "perception-r1", "Accept": "image/*,*/*;q=0.5"})


def _address(url: str) -> str:
    """The address in ASCII, as HTTP needs it. Raises _Lost for what is no web address: no other scheme is ever opened."""
    try:
        parts = urlsplit(url.strip())
        host = parts.netloc.encode("idna").decode() if not parts.netloc.isascii() else parts.netloc
        _ = parts.port  # raises when it is no number
    except ValueError as problem:
        raise _Lost("dead", f"no web address: {problem}") from problem
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _Lost("dead", "no web address: expected http://… or https://…")
    path, query = (quote(text, safe="/%:=&?~+!$,;'@()*[]") for text in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path, query, ""))


def _read(answer: http.client.HTTPResponse, most: int, ends: float) -> bytes:
    length = answer.headers.get("Content-Length", "")
    stated = int(length) if length.isdecimal() else None
    content = bytearray()
    while stated is None or stated <= most:
        if time.monotonic() > ends:
            raise _Lost("unreachable", f"too slow: {len(content)} bytes in the time given", 0.0)
        chunk = answer.read1(CHUNK)
        content += chunk
        if len(content) > most:
            break
        if not chunk:
            if stated is not None and len(content) < stated:
                raise _Lost("unreachable", f"broken off: {len(content)} of {stated} bytes", 0.0)
            return bytes(content)
    raise _Lost("too_large", f"more than {most} bytes")


def _save(link: Link, content: bytes, folder: Path, check_hash: bool) -> None:
    found = hashlib.sha256(content).hexdigest()
    if check_hash and found != link.sha256:
        raise _Lost("wrong_hash", f"found bytes of SHA-256 {found}, expected {link.sha256}")
    try:
        with stored_image(io.BytesIO(content), "an image") as file:
            suffix = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(file.format or "", (file.format or "img").lower())
    except BadData as problem:
        raise _Lost("no_image", f"{len(content)} bytes that are no image") from problem
    with replacing(folder / f"{link.sha256}.{suffix}") as part:
        part.write_bytes(content)
