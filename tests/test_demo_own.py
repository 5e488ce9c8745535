"""The page for tasks of one's own, and whose name a request must say: any task of the book, any route, one's own names alone."""

import http.client
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from PIL import Image
from starlette.datastructures import Headers
from tests.pages import Parrot, colour_share, free_port, parrot

from perception_r1.cli import main
from perception_r1.data.rows import KINDS
from perception_r1.demo.forms import FORMS, form_for
from perception_r1.demo.page import Page, drawn_scene
from perception_r1.demo.policies import Policy
from perception_r1.demo.uploads import foreign, is_loopback, own_names
from perception_r1.demo.view import Form, Marks, View, canvas
from perception_r1.records import BadData, Sample
from perception_r1.tasks import TASKS
from perception_r1.tasks.counting import Counting
from perception_r1.tasks.detection import Detection
from perception_r1.tasks.ocr import Ocr
from perception_r1.visualize import MATCHED, UNMATCHED

ROOT = Path(__file__).parents[1]
FORM = Form(task="", query="dog", kind="boxes", label="", nothing=False, text="")
WHITE = Image.new("RGB", (100, 80), "white")


class Naming(Detection):
    """Asks about categories, and has another name."""

    name: ClassVar[str] = "naming"


class Dots(Counting):
    """Its truth is points alone."""

    name: ClassVar[str] = "dots"


class Reading(Ocr):
    """A page's text under another question, which names something."""

    name: ClassVar[str] = "reading"

    def question(self, sample: Sample) -> str:
        return f"Read the {sample.query}."


class Anything(Counting):
    """A bare count alone, of nothing that is named."""

    name: ClassVar[str] = "anything"

    def question(self, sample: Sample) -> str:
        return "Output all the bounding boxes."


OWN = {
    "naming": (Naming, ("boxes",)),
    "dots": (Dots, ("points",)),
    "reading": (Reading, ("text",)),
    "anything": (Anything, ("count",)),
}


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worked example of docs/task.md, and others, in the book for one test."""
    before = dict(TASKS), dict(KINDS)
    example = runpy.run_path(str(ROOT / "examples" / "new_task.py"))
    for book, kept in zip((TASKS, KINDS), before, strict=True):
        book.clear()
        book.update(kept)
    monkeypatch.setitem(TASKS, "pointing", example["Pointing"])
    monkeypatch.setitem(KINDS, "pointing", ("boxes",))
    for name, (task, kinds) in OWN.items():
        monkeypatch.setitem(TASKS, name, task)
        monkeypatch.setitem(KINDS, name, kinds)


def asked(task: str, completion: str, **form: Any) -> list[Any]:
    """What the page shows of an answer about a drawn scene: view, canvas, picture, card, raw."""
    page = Page([Policy(title="Policy", name="parrot", backend=Parrot([completion]))])
    view, filled = drawn_scene(replace(FORM, task=task, **form))
    return page.outputs(view, page.ask(view, filled), filled)


@pytest.mark.parametrize("task", ["pointing", *OWN])
def test_a_task_of_ones_own_is_asked_about_a_drawn_scene_and_judged(task: str) -> None:
    shown = asked(task, "none")
    terms = all(f"<th>{name}</th>" in shown[3] for name in TASKS[task].TERMS)
    assert terms == (task != "anything")  # a bare count earns nothing
    assert shown[4] == "none"


@pytest.mark.parametrize("task", ["pointing", *OWN])
def test_the_page_opens_for_a_task_of_ones_own(task: str) -> None:
    import httpx

    with parrot(free_port(), task=task) as url:
        assert httpx.get(url).status_code == 200


def test_a_form_is_what_the_prompt_names_and_the_truth_may_hold() -> None:
    assert {name: form_for(name) for name in FORMS} == FORMS
    forms = {name: form_for(name) for name in ("pointing", *OWN)}
    assert [forms[name].query for name in forms] == [
        "What to find",
        "Categories",
        "What to find",
        "What to find",
        "",
    ]
    assert [forms[name].categories for name in forms] == [False, True, False, False, False]
    assert [forms[name].kinds for name in forms] == [
        ("boxes",),
        ("boxes",),
        ("points",),
        ("text",),
        (),
    ]
    assert forms["pointing"].example == "Point to a {query}."
    assert forms["anything"].hint.startswith("The truth of this task cannot be drawn")


def test_the_truth_of_a_task_of_ones_own_is_drawn_as_it_takes_it() -> None:
    marks = Marks(boxes=((1, 2, 30, 40),), labels=("cat",), points=((5, 6),))
    for task, kind, label in (
        ("pointing", "boxes", "dog"),
        ("naming", "boxes", "cat"),
        ("dots", "points", "dog"),
    ):
        truth = replace(FORM, task=task, query="dog").truth(marks)
        assert truth is not None
        assert (truth.kind, truth.labels) == (kind, (label,))
    assert replace(FORM, task="reading", text="words").truth(marks).text == "words"  # type: ignore[union-attr]
    assert replace(FORM, task="anything").truth(marks) is None
    nothing = replace(FORM, task="dots", nothing=True).truth(marks)
    assert nothing is not None
    assert (nothing.kind, len(nothing)) == ("points", 0)
    page, view = Page([]), View(image=WHITE)
    assert page.mark(view, replace(FORM, task="dots"), 100, 100).marks.points
    for task in ("reading", "anything"):
        with pytest.raises(BadData, match="type it below|cannot be drawn"):
            page.mark(view, replace(FORM, task=task), 1, 1)
        assert canvas(view, replace(FORM, task=task)) is not None
    with pytest.raises(BadData, match="type what to find first"):
        replace(FORM, task="pointing", query=" ").sample(WHITE)
    assert replace(FORM, task="anything", query=" ").sample(WHITE).query == ""


def test_the_command_takes_a_task_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(
        "perception_r1.demo.policies.load_policies",
        lambda *_, **__: [Policy(title="Policy", name="p", backend=Parrot(["none"]))],
    )
    monkeypatch.setattr(
        "perception_r1.demo.page.threading.Event",
        lambda: opened.append("open") or (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(SystemExit) as left:
        main(["demo", "--model", "tiny", "--task", "pointing", "--port", str(free_port())])
    assert not left.value.code
    assert opened


def test_what_earns_reward_is_drawn_as_a_match_in_a_task_of_ones_own() -> None:
    """A small box whose centre lies in a true one: IoU near 0, full marks."""
    page = Page([Policy(title="Policy", name="parrot", backend=Parrot(["dog: [45, 35, 55, 45]"]))])
    form = replace(FORM, task="pointing")
    view = View(image=WHITE, marks=Marks(boxes=((5, 5, 95, 75),), labels=("dog",)))
    picture = page.outputs(view, page.ask(view, form), form)[2]
    assert colour_share(picture, MATCHED) > 0.001
    assert colour_share(picture, UNMATCHED) == 0


# --- whose name a request says ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with parrot(free_port()) as url:
        yield url.rstrip("/")


ROUTES = [
    *(
        ("GET", path)
        for path in (
            "/",
            "/config",
            "/gradio_api/info",
            "/theme.css",
            "/gradio_api/file=/etc/passwd",
            "/nowhere",
        )
    ),
    *(
        ("GET", path)
        for path in (
            "/gradio_api/queue/data?session_hash=x",
            "/gradio_api/heartbeat/x",
            "/gradio_api/startup-events",
        )
    ),
    *(
        ("POST", path)
        for path in (
            "/gradio_api/upload",
            "/gradio_api/queue/join",
            "/gradio_api/run/predict",
            "/login",
        )
    ),
    *(("OPTIONS", "/gradio_api/queue/join"), ("HEAD", "/"), ("PUT", "/"), ("DELETE", "/config")),
]
FOREIGN = [
    "evil.example",
    "evil.example:PORT",
    "localhost.evil.example:PORT",
    "127.0.0.1.evil.example:PORT",
    "localhost",
    "127.0.0.1",
]
FOREIGN += [
    "127.0.0.1:1",
    "localhost.:PORT",
    "user@localhost:PORT",
    "0.0.0.0:PORT",
    "192.168.0.7:PORT",
    "[::]:PORT",
    "localhost:PORT@evil.example",
    "",
]


def status_of(url: str, host: str, path: str = "/", method: str = "GET", **headers: str) -> int:
    port = urlsplit(url).port
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host.replace("PORT", str(port)))
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_answers_to_another_hosts_name(method: str, path: str, site: str) -> None:
    asks = {
        "Origin": "http://evil.example",
        "Access_Control_Request_Method": "POST",
        "Content_Length": "0",
    }
    assert status_of(site, "evil.example:PORT", path, method, **asks) == 403


@pytest.mark.parametrize("host", FOREIGN)
def test_a_name_that_is_not_the_pages_own_is_refused(host: str, site: str) -> None:
    assert status_of(site, host) == 403


@pytest.mark.parametrize(
    "host", ["127.0.0.1:PORT", "localhost:PORT", "LocalHost:PORT", "[::1]:PORT"]
)
def test_the_pages_own_names_are_answered(host: str, site: str) -> None:
    assert status_of(site, host) == 200


def test_a_websocket_in_another_hosts_name_is_refused() -> None:
    """Straight to the middleware: Gradio has none, and a server without a library for them says 404."""
    import asyncio

    from perception_r1.demo.uploads import Gate

    sent: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        sent.append("through")

    async def send(message: Any) -> None:
        sent.append(message)

    gate = Gate(inner, own_names("127.0.0.1", 7860))
    for host in (b"evil.example:7860", b"localhost:7860"):
        scope = {"type": "websocket", "path": "/ws", "headers": [(b"host", host)]}
        asyncio.run(gate(scope, None, send))  # type: ignore[arg-type]
    asyncio.run(gate({"type": "lifespan"}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}, "through", "through"]


def test_a_page_for_other_machines_has_no_names_of_its_own() -> None:
    assert own_names("0.0.0.0", 7860) is None
    assert own_names("192.168.0.7", 7860) is None
    assert foreign(Headers({"host": "gpu.example"}), None) is None
    assert foreign(Headers({}), own_names("localhost", 7860))
    assert "localhost" in (own_names("127.0.0.1", 80) or ())
    assert "127.8.0.1:9" in (own_names("127.8.0.1", 9) or ())
    assert [
        is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "gpu")
    ] == [True] * 3 + [False] * 3


def test_two_hosts_in_one_request_are_refused() -> None:
    headers = Headers(raw=[(b"host", b"localhost:7860"), (b"host", b"evil.example")])
    assert foreign(headers, own_names("localhost", 7860))
