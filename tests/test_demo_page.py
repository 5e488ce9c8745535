"""The web page in a real browser: upload, ask, see; draw the truth, see what was earned; be told what was wrong."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page
from tests.browser import Watched, watched_page
from tests.pages import Parrot, colour_share, free_port, parrot

from perception_r1.demo.page import served
from perception_r1.demo.policies import load_policies
from perception_r1.demo.view import SIDE
from perception_r1.visualize import MATCHED, TRUTH, UNMATCHED

BOX = "dog: [32, 32, 96, 96]"
SIZE = 128


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (SIZE, SIZE), "white").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Watched]:
    """The page in a browser; fails at the end if it had an error or asked another host for anything."""
    with watched_page(browser, 1400, 1100) as watched:
        watched.page.goto(url)
        watched.page.wait_for_selector("#ask")
        yield watched
        # the page itself closes the stream of answers once it has them; Gradio's own code warns that it lacks some method
        harmless = ("/queue/data", "console warning: Method not implemented")
        assert [problem for problem in watched.problems if not any(known in problem for known in harmless)] == []
        assert {urlsplit(address).hostname for address in watched.asked if not address.startswith(("data:", "blob:"))} == {"127.0.0.1"}


def drop(page: Page, path: Path) -> None:
    """Drops a picture and waits until the page shows it at its own size."""
    page.set_input_files("#canvas input[type=file]", path)
    page.wait_for_function("side => document.querySelector('#canvas img')?.naturalWidth == side", arg=SIDE)


def ask(page: Page, query: str) -> None:
    page.fill("#query textarea, #query input", query)
    page.click("#ask")
    page.wait_for_selector("#policy-card .said")


def click(page: Page, x: float, y: float) -> None:
    """Clicks the picture at (x, y), in its own pixels, wherever and however large the browser shows it."""
    left, top, scale = page.locator("#canvas img").evaluate(
        """image => { const at = image.getBoundingClientRect(), scale = Math.min(at.width / image.naturalWidth, at.height / image.naturalHeight);
            return [at.left + (at.width - scale * image.naturalWidth) / 2, at.top + (at.height - scale * image.naturalHeight) / 2,
                    scale * image.naturalWidth]; }"""
    )
    before = page.locator("#canvas img").get_attribute("src")
    page.mouse.click(left + x * scale / SIZE, top + y * scale / SIZE)
    page.wait_for_function("before => document.querySelector('#canvas img').src != before", arg=before)


def term(page: Page, name: str) -> float:
    return float(page.inner_text(f"#policy-card .terms tr.{name} .value"))


def picture(page: Page, where: str = "#policy-picture") -> Image.Image:
    return Image.open(io.BytesIO(httpx.get(str(page.locator(f"{where} img").evaluate("image => image.src"))).content))


def test_a_picture_is_dropped_asked_about_answered_and_judged_by_a_truth_drawn_by_hand(browser: Browser, photo: Path) -> None:
    with parrot(free_port(), Parrot([BOX])) as url, opened(browser, url) as watched:
        page = watched.page
        drop(page, photo)
        ask(page, "dog")
        assert colour_share(picture(page), MATCHED) > 0.002
        seen = Image.open(io.BytesIO(page.locator("#policy-picture").screenshot()))
        assert colour_share(seen, MATCHED) > 0.0005
        assert page.input_value("#policy-raw textarea") == BOX
        assert page.locator("#policy-card .terms").count() == 0
        click(page, 32, 32)
        click(page, 96, 96)
        page.wait_for_selector("#policy-card .terms")
        assert (term(page, "format"), term(page, "iou")) == (1, pytest.approx(1, abs=0.06))
        assert colour_share(picture(page, "#canvas"), TRUTH) > 0.002
        page.click("#clear")
        page.wait_for_selector("#policy-card .terms", state="detached")
        click(page, 100, 100)
        click(page, 127, 127)
        page.wait_for_selector("#policy-card .terms")
        assert term(page, "iou") == 0
        assert colour_share(picture(page), UNMATCHED) > 0.002
        page.click("#nothing input")
        page.wait_for_function("() => document.querySelector('#policy-card .terms tr.total .value').innerText == '1.000'")


def test_a_bad_file_is_told_on_the_page_and_the_next_one_works(browser: Browser, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("<b>no picture</b>")
    Image.new("1", (5000, 5000)).save(tmp_path / "huge.png")
    with parrot(free_port(), Parrot([BOX])) as url, opened(browser, url) as watched:
        page = watched.page
        page.click("#ask")
        page.wait_for_selector("text=drop a picture first")
        for name, reason in (("notes.png", "found no picture in that file"), ("huge.png", "has 5,000 × 5,000 pixels")):
            page.set_input_files("#canvas input[type=file]", tmp_path / name)
            page.wait_for_selector(f"text={reason}")
            page.wait_for_selector("#canvas input[type=file]", state="attached")
        drop(page, photo)
        page.click("#ask")
        page.wait_for_selector("text=type what to find first")
        ask(page, "dog")
        assert page.locator("text=cannot be read").count() == 0


def test_what_the_model_writes_is_shown_as_it_is(browser: Browser, photo: Path) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    with parrot(free_port(), Parrot([hostile])) as url, opened(browser, url) as watched:
        drop(watched.page, photo)
        ask(watched.page, "dog")
        assert watched.page.input_value("#policy-raw textarea") == hostile
        assert "<img src=x" in watched.page.inner_text("#policy-card .said")
        assert watched.page.locator("#policy-card img, #policy-card script").count() == 0


def test_points_and_a_true_text_are_truths_too(browser: Browser, photo: Path) -> None:
    with parrot(free_port(), Parrot([BOX, "some wards"]), task="counting") as url, opened(browser, url) as watched:
        page = watched.page
        drop(page, photo)
        ask(page, "dog")
        page.click("#kind label:has-text('points')")
        click(page, 64, 64)
        page.wait_for_selector("#policy-card .terms")
        assert term(page, "distance") == pytest.approx(1, abs=0.2)
        page.click("#task label:has-text('ocr')")
        page.wait_for_selector("#policy-card .said", state="detached")
        page.click("#ask")
        page.wait_for_selector("#policy-card .said")
        page.fill("#text textarea", "some words")
        page.wait_for_function("() => document.querySelector('#policy-card .terms tr.edit .value')?.innerText == '0.900'")


def test_one_question_is_answered_at_a_time(browser: Browser, photo: Path) -> None:
    bird = Parrot([BOX], seconds=0.7)
    with parrot(free_port(), bird) as url, opened(browser, url) as one, opened(browser, url) as two:
        for watched in (one, two):
            drop(watched.page, photo)
            watched.page.fill("#query textarea, #query input", "dog")
        one.page.click("#ask")
        two.page.click("#ask")
        for watched in (one, two):
            watched.page.wait_for_selector("#policy-card .said")
        assert len(bird.asked) == 2
        assert bird.at_once == 1


def test_the_bundled_policy_and_its_base_answer_about_a_drawn_scene_side_by_side(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perception_r1.demo.page.secrets", SimpleNamespace(randbelow=lambda _: 7))  # a scene whose truth is large enough to see
    policies = load_policies("tiny", "tiny", max_new_tokens=200, device="cpu")
    with served(policies, port=free_port(), task="detection") as url, opened(browser, url) as watched:
        page = watched.page
        page.click("#scene")
        page.wait_for_selector("#canvas img")
        page.click("#ask")
        page.wait_for_selector("#trained-card .terms")
        assert page.input_value("#base-raw textarea") == page.input_value("#trained-raw textarea") != ""
        for kind in ("base", "trained"):
            assert colour_share(picture(page, f"#{kind}-picture"), TRUTH) > 0.002
            assert page.locator(f"#{kind}-card tr").count() == 6
