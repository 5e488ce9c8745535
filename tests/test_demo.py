"""The web page without a browser: marks and truths, what a card says, uploads, and what HTTP requests are refused."""

import base64
import http.client
import io
import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.chat_server import Act, prompt_of, said, serving
from tests.pages import Parrot, colour_share, free_port, parrot

from perception_r1.cli import main
from perception_r1.data.scenes import scenes
from perception_r1.demo.page import Page, drawn_scene, served
from perception_r1.demo.policies import Policy, load_policies
from perception_r1.demo.uploads import FORMATS, MAX_BYTES, MAX_PIXELS, read_upload, refused
from perception_r1.demo.view import CAPTIONED, SIDE, Form, Marks, View, canvas, judge
from perception_r1.dialects import frame_of
from perception_r1.records import BadData, Sample, Truth
from perception_r1.tasks import TASKS, make_task
from perception_r1.visualize import MATCHED, TRUTH, UNMATCHED

FORM = Form(task="grounding", query="dog", kind="boxes", label="", nothing=False, text="")
SIDES = st.floats(0, 100, allow_nan=False)


@given(SIDES, SIDES, SIDES, SIDES)
def test_two_corners_make_the_same_box_in_either_order(x1: float, y1: float, x2: float, y2: float) -> None:
    if x1 == x2 or y1 == y2:
        with pytest.raises(BadData, match="no area"):
            Marks().click(x1, y1, "").click(x2, y2, "")
        return
    made = [Marks().click(*first, "a").click(*second, "a") for first, second in (((x1, y1), (x2, y2)), ((x2, y1), (x1, y2)), ((x2, y2), (x1, y1)))]
    assert {marks.boxes for marks in made} == {((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)),)}


@pytest.mark.parametrize("size", [(64, 48), (1024, 300), (1500, 2000), (7, 901)])
def test_a_click_on_what_is_seen_marks_that_place_of_the_picture(size: tuple[int, int]) -> None:
    width, height = size
    spot = (0.7 * width, 0.2 * height)
    pixels = np.full((height, width, 3), 255, np.uint8)
    half_x, half_y = max(1, width // 40), max(1, height // 40)
    pixels[int(spot[1]) - half_y : int(spot[1]) + half_y, int(spot[0]) - half_x : int(spot[0]) + half_x] = 0
    image = Image.fromarray(pixels)
    seen = np.asarray(canvas(View(image=image), FORM)).astype(int)
    assert max(seen.shape) == SIDE
    rows, columns = np.nonzero(seen.sum(2) < 300)
    view = Page([]).mark(View(image=image), FORM, columns.mean() + 0.5, rows.mean() + 0.5)
    there = np.argwhere(pixels[:, :, 0] == 0).mean(0)[::-1] + 0.5
    assert view.marks.corner == pytest.approx(there, abs=1.5 * max(1, max(size) / SIDE))


def test_a_click_outside_the_picture_marks_its_edge() -> None:
    view = Page([]).mark(View(image=Image.new("RGB", (60, 30))), FORM, -5, 10 * SIDE)
    assert view.marks.corner == (0, 30)


def test_undo_takes_the_last_mark_back() -> None:
    marks = Marks().click(1, 1, "a").click(2, 2, "a").click(3, 3, "b")
    assert marks.undo(False) == Marks().click(1, 1, "a").click(2, 2, "a")
    assert marks.undo(False).undo(False) == Marks()
    assert Marks().undo(False) == Marks() == Marks().undo(True)
    assert Marks(points=((1, 2), (3, 4))).undo(True).points == ((1, 2),)


def test_what_was_not_drawn_is_no_truth_and_nothing_there_is_one() -> None:
    assert FORM.truth(Marks()) is None
    nothing = replace(FORM, nothing=True).truth(Marks())
    assert nothing is not None
    assert len(nothing) == 0
    assert replace(FORM, task="ocr", text=" ").truth(Marks()) is None


def asked(task: str, completion: str, truth: Truth | None, image: Image.Image, sample: Sample) -> tuple[Image.Image, str, str]:
    policy = Policy(title="Policy", name="parrot", backend=Parrot([completion]))
    return judge(policy, policy.reply(sample, image), sample, truth, image)


@pytest.mark.parametrize("task", list(TASKS))
def test_the_written_truth_fills_every_bar(task: str) -> None:
    image, samples = next(scenes((task,), n=1, seed=5))
    sample = samples[0]
    made = make_task(task, dialect="plain")
    _, card, raw = asked(task, made.write(sample, frame_of(*image.size, made.dialect)), sample.truth, image, sample)
    assert card.count('style="width:100.0%"') == len(made.TERMS) + 1
    assert all(f"<th>{name}</th>" in card for name in made.TERMS)
    assert raw


@pytest.mark.parametrize("task", list(TASKS))
def test_a_drawn_scene_brings_its_question_and_its_truth(task: str) -> None:
    view, form = drawn_scene(replace(FORM, task=task, query="", text=""))
    page = Page([Policy(title="Policy", name="parrot", backend=Parrot(["some words"]))])
    outputs = page.outputs(view, page.ask(view, form), form)
    assert "terms" in outputs[-2]
    assert form.truth(view.marks) is not None or task == "counting"


def test_without_a_truth_nothing_is_wrong_yet_and_no_term_is_shown() -> None:
    image = Image.new("RGB", (100, 100), "white")
    picture, card, _ = asked("grounding", "dog: [10, 10, 60, 60]", None, image, FORM.sample(image))
    assert colour_share(picture, MATCHED) > 0.002
    assert colour_share(picture, UNMATCHED) == colour_share(picture, TRUTH) == 0
    assert "terms" not in card


def test_an_answer_beside_the_truth_is_drawn_as_one_that_matches_nothing() -> None:
    image = Image.new("RGB", (100, 100), "white")
    truth = Truth(boxes=[[70, 70, 90, 90]], labels=("dog",))  # type: ignore[arg-type]
    picture, _, _ = asked("grounding", "dog: [10, 10, 60, 60]", truth, image, FORM.sample(image, truth))
    assert min(colour_share(picture, UNMATCHED), colour_share(picture, TRUTH)) > 0.002
    assert colour_share(picture, MATCHED) == 0


def test_what_a_model_writes_is_never_read_as_html() -> None:
    image = Image.new("RGB", (100, 100), "white")
    _, card, raw = asked("grounding", "<script>alert(1)</script>", None, image, FORM.sample(image))
    assert "<script" not in card
    assert "&lt;script" in card
    assert raw == "<script>alert(1)</script>"


def test_the_text_of_a_page_is_written_below_it() -> None:
    image = Image.new("RGB", (200, 100), "white")
    form = replace(FORM, task="ocr")
    picture, card, _ = asked("ocr", "some words", None, image, form.sample(image))
    assert picture.width == CAPTIONED
    assert np.asarray(picture)[CAPTIONED // 2 :].min() < 128
    assert "10 characters" in card


def test_answers_are_shown_with_their_own_picture_and_task_alone() -> None:
    page = Page([Policy(title="Policy", name="parrot", backend=Parrot(["dog: [1, 1, 5, 5]"]))])
    view = View(image=Image.new("RGB", (9, 9)))
    asked = page.ask(view, FORM)
    marked = replace(view, marks=Marks().click(1, 1, ""))
    counting = replace(FORM, task="counting")
    shown = [page.outputs(*now)[-1] for now in ((view, asked, FORM), (marked, asked, FORM), (view, asked, counting), (View(), asked, FORM))]
    assert shown == ["dog: [1, 1, 5, 5]"] * 2 + ["", ""]
    assert page.outputs(View(image=Image.new("RGB", (9, 9))), asked, FORM)[-1] == ""


def test_a_question_without_words_is_refused_where_it_needs_them() -> None:
    image = Image.new("RGB", (9, 9))
    for task in ("grounding", "counting"):
        with pytest.raises(BadData, match="what to find"):
            replace(FORM, task=task, query="  ").sample(image)
    assert replace(FORM, task="detection", query="cat, , dog").sample(image).categories == ("cat", "dog")
    assert replace(FORM, task="detection", query="").sample(image).categories is None


# --- servers ---------------------------------------------------------------------------------------------------------
def test_a_model_behind_a_server_is_asked_as_a_local_one_is() -> None:
    image = Image.new("RGB", (40, 30), "red")
    sample = FORM.sample(image)
    with serving(lambda body, before: Act(body=said(f"{body['model']}: [1, 2, 5, 6]")), models=("m", "n")) as heard:
        base, trained = load_policies("m", "n", server=heard.url, dialect="plain", max_new_tokens=9)
        for policy, name in ((base, "n"), (trained, "m"), (trained, "m")):
            assert policy.reply(sample, image)[:2] == (f"{name}: [1, 2, 5, 6]", "stop")
    assert (base.title, trained.title) == ("Base", "Trained")
    body = heard.bodies[-1]
    assert prompt_of(body) == make_task("grounding").prompt(sample)
    sent = body["messages"][0]["content"][0]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(sent.partition(",")[2]))).tobytes() == image.tobytes()


def test_a_server_that_refuses_is_told_on_the_page_in_one_line() -> None:
    image = Image.new("RGB", (40, 30), "red")
    refusal = Act(status=400, body={"error": {"message": "no images here"}})
    with serving(lambda body, before: refusal if prompt_of(body) else Act(body=said("Hi"))) as heard:
        [policy] = load_policies(None, server=heard.url, dialect="plain")
        assert policy.name == "m"
        with pytest.raises(BadData, match="no images here"):
            policy.reply(FORM.sample(image), image)
        with pytest.raises(BadData, match="--dialect"):
            load_policies(None, server=heard.url)


# --- uploads ---------------------------------------------------------------------------------------------------------
def png_claiming(width: int, height: int) -> bytes:
    """A PNG of 70 bytes whose header claims these sides."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


SQUARE = math.isqrt(MAX_PIXELS)
BAD_FILES = {
    "too many pixels": (png_claiming(SQUARE + 1, SQUARE), "expected at most"),
    "a decompression bomb": (png_claiming(60_000, 60_000), "far too large"),
    "too long": (png_claiming(4000, 10), "crop it first"),
    "text": (b"just words", "no picture"),
    "nothing": (b"", "no picture"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no picture"),
    "cut off": (png_claiming(100, 100), "no picture"),
    "tiff": (b"II*\0\x08\0\0\0", "no picture"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_upload_is_refused_with_its_reason(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, reason = BAD_FILES[name]
    (tmp_path / "upload.png").write_bytes(data)
    decoded: list[str] = []
    if name != "cut off":
        monkeypatch.setattr(Image, "_getdecoder", lambda *_: decoded.append("decoded"))
    with pytest.raises(BadData, match=reason):
        read_upload(tmp_path / "upload.png", tmp_path)
    assert not decoded


def test_a_picture_is_read_upright_in_rgb(tmp_path: Path) -> None:
    stored = Image.new("RGB", (40, 20), "white")
    stored.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90° clockwise
    stored.save(tmp_path / "turned.png", exif=exif)
    image = read_upload(tmp_path / "turned.png", tmp_path)
    assert (image.mode, image.size) == ("RGB", (20, 40))
    assert image.getpixel((19, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_is_named_is_read(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "blue").save(tmp_path / "picture", format=kind)
    assert read_upload(tmp_path / "picture", tmp_path).size == (30, 20)


def test_a_file_outside_the_folder_of_uploads_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    (tmp_path / "uploads" / "link.png").symlink_to(tmp_path / "secret.png")
    for path in (tmp_path / "secret.png", tmp_path / "uploads" / ".." / "secret.png", tmp_path / "uploads" / "link.png"):
        with pytest.raises(BadData, match="not uploaded"):
            read_upload(path, tmp_path / "uploads")


# --- HTTP ------------------------------------------------------------------------------------------------------------

class Site(NamedTuple):
    url: str
    model: Path
    parrot: Parrot


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A page over a model that says the same always; its `model` folder holds a picture that nobody uploaded."""
    model = tmp_path_factory.mktemp("model")
    (model / "config.json").write_text('{"secret": 1}')
    Image.new("RGB", (8, 8)).save(model / "picture.png")
    bird = Parrot(["dog: [1, 1, 5, 5]"])
    with served([Policy(title="Policy", name=str(model), backend=bird)], port=free_port()) as url:
        yield Site(url.rstrip("/"), model, bird)


def status_of(url: str, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Status and body of a request whose path is sent as it is: no client of ours may tidy it up."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        if body:
            connection.send(body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def upload(url: str, data: bytes, name: str = "a.png") -> str:
    response = httpx.post(f"{url}/gradio_api/upload", files={"files": (name, data)})
    assert response.status_code == 200
    return response.json()[0]


def test_an_upload_can_be_read_back_and_nothing_else_can(site: Site, tmp_path: Path) -> None:
    path = upload(site.url, png_claiming(5, 5))
    assert status_of(site.url, f"/gradio_api/file={quote(path)}") == (200, png_claiming(5, 5))
    folder = str(Path(path).parents[1])
    (tmp_path / "outside.txt").write_text("secret")
    hidden = [
        *("/etc/passwd", "etc/passwd", "../../../../../../etc/passwd", "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd"),
        *(f"{folder}/../../etc/passwd", f"{folder}/..%2f..%2fetc/passwd", f"{folder}%2f..%2f..%2f..%2fetc%2fpasswd", "//etc/passwd", "/etc/./passwd"),
        *(f"{site.model}/config.json", f"{site.model}/picture.png", f"{tmp_path}/outside.txt", f"{folder}/../{tmp_path}/outside.txt"),
        *("README.md", os.getcwd() + "/README.md", __file__, str(Path.home() / ".bashrc"), "/proc/self/environ", folder, "file:///etc/passwd"),
    ]
    for name in hidden:
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/gradio_api/custom_component/", "/svelte/"):
            status, body = status_of(site.url, prefix + name)
            assert status in (403, 404), (prefix, name)
            assert b"root:" not in body
            assert b"secret" not in body.replace(name.encode(), b"")


def test_an_answer_to_no_request_fetches_an_address(site: Site) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.5)
        address = f"http://127.0.0.1:{other.getsockname()[1]}/x.png"
        for path in (f"file={address}", f"proxy={address}", f"file={quote(address, safe='')}", f"file={address.upper()}"):
            assert status_of(site.url, f"/gradio_api/{path}")[0] == 403
        for payload in ({"path": address}, {"path": "/nowhere", "url": address}, {"path": "https://example.org/a.png"}):
            answer = call(site.url, "upload", {**payload, "meta": {"_type": "gradio.FileData"}})
            assert "error" in answer or answer["data"][1] is None, payload
        with pytest.raises(TimeoutError):
            heard.append(other.accept()[0].recv(9))
    assert not heard


def test_the_limit_of_a_request_is_the_limit_of_a_file(site: Site) -> None:
    head = {"Content_Type": "multipart/form-data; boundary=b"}
    assert status_of(site.url, "/gradio_api/upload", "POST", Content_Length=str(MAX_BYTES * 2), **head)[0] == 413
    assert status_of(site.url, "/gradio_api/queue/join", "POST", Content_Length=str(MAX_BYTES * 2), **head)[0] == 413
    assert status_of(site.url, "/gradio_api/upload", "POST", Transfer_Encoding="chunked", **head)[0] == 411
    response = httpx.post(f"{site.url}/gradio_api/upload", files={"files": ("a.png", b"\0" * (MAX_BYTES + 1))})
    assert response.status_code == 413


def test_what_the_page_asks_for_is_let_through() -> None:
    from starlette.datastructures import Headers

    for path in ("/", "/config", "/gradio_api/file=/tmp/a b.png", "/gradio_api/queue/join", "/gradio_api/upload"):
        assert refused(path, Headers({"content-length": "12"})) is None


def call(url: str, event: str, picture: Any = None) -> dict[str, Any]:
    """What the server says in the end about one event of the page, sent as a crafted client would."""
    config = httpx.get(f"{url}/config").json()
    number = next(k for k, made in enumerate(config["dependencies"]) if made["targets"] and made["targets"][0][1] == event)
    data = [None, None, "grounding", "dog", "boxes", "", False, "", *([picture] if event == "upload" else [])]
    session = os.urandom(6).hex()
    body = {"data": data, "fn_index": config["dependencies"][number]["id"], "session_hash": session, "event_data": None}
    assert httpx.post(f"{url}/gradio_api/queue/join", json=body).status_code == 200
    with httpx.stream("GET", f"{url}/gradio_api/queue/data", params={"session_hash": session}, timeout=30) as lines:
        for line in lines.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if message.get("msg") == "process_completed":
                return message["output"] if message["success"] else {"error": message["output"].get("error")}
    raise AssertionError("the stream ended before the answer")


def test_a_crafted_picture_opens_no_file_that_was_not_uploaded(site: Site) -> None:
    meta = {"meta": {"_type": "gradio.FileData"}}
    good = call(site.url, "upload", {"path": upload(site.url, Path(site.model / "picture.png").read_bytes()), **meta})
    assert good["data"][1]["path"]
    crafted = [{"path": f"{site.model}/picture.png", **meta}, {"path": f"{site.model}/picture.png"}, {"url": "data:image/png;base64,AAAA", **meta}]
    for payload in [*crafted, {"path": "/etc/passwd", **meta}, {"path": "../../etc/passwd", **meta}, f"{site.model}/picture.png"]:
        answer = call(site.url, "upload", payload)
        assert "error" in answer or answer["data"][1] is None, payload
        assert "root:" not in str(answer)


def test_no_event_runs_beside_the_queue(site: Site) -> None:
    config = httpx.get(f"{site.url}/config").json()
    assert config["dependencies"]
    for made in config["dependencies"]:
        body = {"data": [None, None, "grounding", "dog", "boxes", "", False, ""], "fn_index": made["id"], "session_hash": "s"}
        for path in ("run/predict", "api/predict", f"run/{made['api_name']}"):
            assert httpx.post(f"{site.url}/gradio_api/{path}", json=body).status_code == 404


def test_the_page_names_no_other_host_and_sends_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[Any] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        reached.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    port = free_port()
    with parrot(port) as url:
        page, theme = httpx.get(url).text, httpx.get(f"{url}theme.css").text
        threading.Event().wait(0.3)
    assert {address[0] for address in reached if isinstance(address, tuple)} == {"127.0.0.1"}
    assert "fonts.g" not in page + theme
    assert "@import" not in theme
    assert httpx.URL(url).host == "127.0.0.1"


def test_what_was_uploaded_is_gone_when_the_page_closes() -> None:
    with parrot(free_port()) as url:
        path = Path(upload(url.rstrip("/"), png_claiming(5, 5)))
        assert path.is_file()
    assert not path.parents[1].exists()


def test_a_taken_port_is_an_error_of_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(BadData, match="--port"), parrot(other.getsockname()[1]):
        pass


def test_the_command_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["demo"])
    assert exit.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_the_page_needs_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None\nimport perception_r1.demo.page, perception_r1.demo.policies"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
