"""Downloads against a server on this machine: what comes is whole and the right bytes, what does not come is listed, once each."""

import hashlib
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from perception_r1.data.downloads import DEAD_LINKS, PROBLEMS, Download, DownloadSettings, Link, download_images, in_parallel
from perception_r1.records import BadData

QUICK = {"pause": 0.01, "timeout": 10.0, "deadline": 20.0}


def picture(colour: str, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(file, kind)
    return file.getvalue()


RED = picture("red")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers a path with what `answers` holds for it: bytes, or a function of the handler. Counts what was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, bytes | Callable[[Any], None]] = {}
        self.asked: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def link(self, path: str, content: bytes, answer: bytes | Callable[[Any], None] | None = None) -> Link:
        """A link whose data set states `content`; the server gives `answer`, by default that content."""
        self.answers[path] = content if answer is None else answer
        return Link(url=self.url(path), sha256=sha256(content))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path, server = unquote(self.path), self.server
        with server.lock:
            server.asked[path] += 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            answer = server.answers.get(path)
            if answer is None:
                self.send_error(404)
            elif isinstance(answer, bytes):
                self.give(answer)
            else:
                answer(self)
        except OSError:  # the client hung up, as some tests want it to
            pass
        finally:
            with server.lock:
                server.at_once -= 1

    def give(self, content: bytes, *, length: int | None = None, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetched(links: Iterable[Link], folder: Path, **settings: Any) -> Download:
    found = download_images(links, folder, DownloadSettings(**QUICK | settings))
    assert found.report["links"] == sum(number for name, number in found.report.items() if name != "links")
    assert len(found.dead) == sum(found.report[kind] for kind in PROBLEMS)
    assert [json.loads(line) for line in found.dead_links.read_text().splitlines()] == [item.row() for item in found.dead]
    assert not list(folder.glob(".*"))  # no half-written file
    return found


def test_every_image_arrives_with_its_bytes_under_its_hash(server: Server, tmp_path: Path) -> None:
    kinds = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
    contents = {suffix: picture("green", kind) for suffix, kind in kinds.items()}
    links = [server.link(f"/{suffix}", content) for suffix, content in contents.items()]
    found = fetched(links * 2, tmp_path / "new" / "folder")
    assert found.report == {"links": 6, "there": 0, "downloaded": 6} | dict.fromkeys(PROBLEMS, 0)
    for suffix, content in contents.items():
        assert (tmp_path / "new" / "folder" / f"{sha256(content)}.{suffix}").read_bytes() == content
    assert set(server.asked.values()) == {1}


def test_an_address_may_have_spaces_queries_and_letters_beyond_ascii(server: Server, tmp_path: Path) -> None:
    links = [server.link(path, picture(colour)) for path, colour in (("/a b/ü.png", "red"), ("/图.png?x=1&y=é", "blue"), ("/a%b", "lime"))]
    assert fetched(links, tmp_path).report["downloaded"] == 3


def html(handler: Any) -> None:
    handler.give(b"<html>gone</html>")


def slowly(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for byte in RED * 20:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.02)


def in_silence(handler: Any) -> None:
    time.sleep(0.8)


def redirected(place: str) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", place)
        handler.end_headers()

    return answer


def without_end(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(RED * 20)


LOST: dict[str, tuple[Any, str, int, str]] = {
    "gone": (lambda it: it.send_error(410), "dead", 1, "410"),
    "forbidden": (lambda it: it.send_error(403), "dead", 1, "403"),
    "an error page in its place": (html, "wrong_hash", 1, "expected " + sha256(RED)),
    "another image in its place": (picture("blue"), "wrong_hash", 1, sha256(picture("blue"))),
    "always busy": (lambda it: it.send_error(503), "unreachable", 2, "503"),
    "broken off": (lambda it: it.give(RED[:40], length=len(RED)), "unreachable", 2, f"40 of {len(RED)} bytes"),
    "no answer": (in_silence, "unreachable", 2, "no answer"),
    "hangs up": (lambda it: it.connection.close(), "unreachable", 2, "no answer"),
    "too large as stated": (lambda it: it.give(RED, length=10**12), "too_large", 1, "more than 5000 bytes"),
    "too large without saying so": (without_end, "too_large", 1, "more than 5000 bytes"),
    "redirected to a file": (redirected("file:///etc/hostname"), "dead", 1, "302"),
    "redirected in a circle": (redirected("/lost"), "dead", 1, "302"),
}


@pytest.mark.parametrize("answer, kind, tries, words", LOST.values(), ids=LOST)
def test_a_lost_image_is_listed_with_its_reason_and_leaves_no_file(
    answer: Any, kind: str, tries: int, words: str, server: Server, tmp_path: Path
) -> None:
    link = server.link("/lost", RED, answer)
    found = fetched([link], tmp_path, tries=2, timeout=0.4, deadline=5, max_bytes=5000)
    assert [(item.link, item.kind, item.tries) for item in found.dead] == [(link, kind, tries)]
    assert words in found.dead[0].problem
    assert [path.name for path in tmp_path.iterdir()] == [DEAD_LINKS]


def test_a_trickle_is_given_up_at_the_deadline(server: Server, tmp_path: Path) -> None:
    start = time.monotonic()
    found = fetched([server.link("/slow", RED, slowly)], tmp_path, tries=1, timeout=0.8, deadline=0.8)
    assert 0.8 < time.monotonic() - start < 10  # the server would take half a minute
    assert [item.kind for item in found.dead] == ["unreachable"]
    assert "too slow" in found.dead[0].problem


def test_bytes_with_the_stated_hash_that_are_no_image_are_not_kept(server: Server, tmp_path: Path) -> None:
    found = fetched([server.link("/page", b"<html>gone</html>")], tmp_path)
    assert [item.kind for item in found.dead] == ["no_image"]
    assert [path.name for path in tmp_path.iterdir()] == [DEAD_LINKS]


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/a", "data:image/png;base64,AAAA", "a.png", "", "http://", "http://[::1", "http://a:b/"]
)
def test_what_is_no_web_address_is_dead_and_never_opened(url: str, tmp_path: Path) -> None:
    found = fetched([Link(url=url, sha256=sha256(RED))], tmp_path)
    assert [(item.kind, item.tries) for item in found.dead] == [("dead", 1)]
    assert "no web address" in found.dead[0].problem


def test_another_try_is_made_where_it_can_help_and_only_there(server: Server, tmp_path: Path) -> None:
    def at_the_third(handler: Any) -> None:
        if server.asked["/flaky"] < 3:
            handler.send_error(429)
        else:
            handler.give(RED)

    found = fetched([server.link("/flaky", RED, at_the_third), Link(url=server.url("/none"), sha256=sha256(b""))], tmp_path, tries=3)
    assert found.report["downloaded"] == 1
    assert server.asked == {"/flaky": 3, "/none": 1}


@pytest.mark.parametrize("after, least", [("1", 1.0), ("3600", 0.2), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.01)])
def test_a_server_that_says_when_to_come_back_is_heard_up_to_the_longest_pause(after: str, least: float, server: Server, tmp_path: Path) -> None:
    times = []

    def later(handler: Any) -> None:
        times.append(time.monotonic())
        if len(times) == 2:
            return handler.give(RED)
        handler.send_response(429)
        handler.send_header("Retry-After", after)
        handler.end_headers()

    assert fetched([server.link("/later", RED, later)], tmp_path, longest_pause=0.2 if after == "3600" else 5.0).report["downloaded"] == 1
    assert least <= times[1] - times[0] < 60


def test_pauses_double(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("perception_r1.data.downloads.time.sleep", pauses.append)
    fetched([server.link("/busy", RED, lambda it: it.send_error(500))], tmp_path, tries=5, pause=1.0, longest_pause=6.0)
    assert len(pauses) == 4
    for pause, shortest in zip(pauses, (1, 2, 4, 6), strict=True):
        assert shortest <= pause <= min(1.5 * shortest, 6)


def test_a_second_run_fetches_only_what_is_not_there(server: Server, tmp_path: Path) -> None:
    links = [server.link(f"/{colour}", picture(colour)) for colour in ("red", "green", "blue")]
    dead = Link(url=server.url("/dead"), sha256=sha256(picture("black")))
    assert fetched([*links, dead], tmp_path).report["dead"] == 1
    (tmp_path / f"{links[1].sha256}.png").unlink()
    (tmp_path / f"{links[2].sha256}.png").write_bytes(b"cut")
    server.link("/dead", picture("black"))
    again = fetched([*links, dead], tmp_path)
    assert again.report == {"links": 4, "there": 1, "downloaded": 3} | dict.fromkeys(PROBLEMS, 0)
    assert server.asked == {"/red": 1, "/green": 2, "/blue": 2, "/dead": 2}
    assert sha256((tmp_path / f"{links[2].sha256}.png").read_bytes()) == links[2].sha256
    assert fetched([*links, dead], tmp_path).report["there"] == 4


def test_a_run_that_is_stopped_keeps_what_it_has_and_goes_on(server: Server, tmp_path: Path) -> None:
    links = [server.link(f"/{k}", picture(f"#0000{k:02x}")) for k in range(40)]
    dead = [Link(url=server.url(f"/none{k}"), sha256=sha256(bytes([k]))) for k in range(5)]

    def stop(items: Iterable[Any], title: str, total: int | None) -> Iterator[Any]:
        assert (title, total) == ("downloading", 45)
        for number, item in enumerate(items):
            if number == 20:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        download_images([*links, *dead], tmp_path, DownloadSettings(workers=2, **QUICK), track=stop)
    there = {path.stem for path in tmp_path.glob("*.png")}
    assert 10 <= len(there) < 40
    assert all(sha256((tmp_path / f"{name}.png").read_bytes()) == name for name in there)
    assert (tmp_path / DEAD_LINKS).is_file()
    found = fetched([*links, *dead], tmp_path)
    assert found.report["there"] == len(there)
    assert found.report["there"] + found.report["downloaded"] == 40


def test_no_more_downloads_at_once_than_workers(server: Server, tmp_path: Path) -> None:
    def slow(colour: str) -> Callable[[Any], None]:
        def answer(handler: Any) -> None:
            time.sleep(0.05)
            handler.give(picture(colour))

        return answer

    links = [server.link(f"/{k}", picture(f"#0000{k:02x}"), slow(f"#0000{k:02x}")) for k in range(24)]
    assert fetched(links, tmp_path, workers=3).report["downloaded"] == 24
    assert 1 < server.most_at_once <= 3


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_parallel(lambda number: number * 2, items(), workers=2)
    first = next(results)
    assert len(taken) == 5
    assert sorted([first, *results]) == list(range(0, 2000, 2))


def test_bytes_that_changed_are_taken_only_when_asked(server: Server, tmp_path: Path) -> None:
    link = server.link("/re-encoded", RED, picture("red", "JPEG"))
    assert fetched([link], tmp_path).report["wrong_hash"] == 1
    assert fetched([link], tmp_path, check_hash=False).report["downloaded"] == 1
    assert (tmp_path / f"{link.sha256}.jpg").is_file()
    assert fetched([link], tmp_path, check_hash=False).report["there"] == 1
    assert fetched([link], tmp_path).report["wrong_hash"] == 1  # and it does not pass for the stated image later


def test_without_a_network_the_run_ends_at_once_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    links = [Link(url=f"http://127.0.0.1:9/{k}", sha256=sha256(str(k).encode())) for k in range(400)]
    with pytest.raises(BadData, match=r"none of the first 50 links answers .*expected a network"):
        download_images(links, tmp_path, DownloadSettings(tries=1, **QUICK))
    assert len((tmp_path / DEAD_LINKS).read_text().splitlines()) == 50


def test_one_server_that_is_down_does_not_end_the_run(tmp_path: Path, server: Server) -> None:
    down = [Link(url=f"http://127.0.0.1:9/{k}", sha256=sha256(str(k).encode())) for k in range(60)]
    alive = [server.link(f"/{k}", picture(f"#0000{k:02x}")) for k in range(60)]
    report = fetched([*down, *alive], tmp_path, tries=1).report
    assert (report["downloaded"], report["unreachable"]) == (60, 60)


@pytest.mark.parametrize("setting", [{"workers": 0}, {"tries": 0}, {"max_bytes": 0}, {"timeout": 0}, {"deadline": -1}, {"pause": -1}])
def test_settings_that_cannot_work_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(BadData, match="expected workers, tries and bytes of at least 1"):
        DownloadSettings(**setting)
