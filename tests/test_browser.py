"""The watch over pages does see what goes wrong: a page of errors is not a page without one."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser
from tests.browser import browser_program, watched_page

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def test_a_page_without_fault_has_no_problem_and_asks_for_itself_alone(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "good.html").write_text(f'<!doctype html><title>good</title><link rel="icon" href="data:,"><img src="{PIXEL}"><p>words</p>')
    with watched_page(browser) as watched:
        watched.open_file(tmp_path / "good.html")
        assert (watched.problems, watched.broken_images()) == ([], [])
        assert [address for address in watched.asked if not address.startswith("data:")] == [(tmp_path / "good.html").as_uri()]
        assert watched.page.inner_text("p") == "words"


@pytest.mark.parametrize(
    ("inside", "seen"),
    [
        ("<script>nothing.there()</script>", "exception: nothing is not defined"),
        ("<script>console.error('ouch')</script>", "console error: ouch"),
        ('<link rel="stylesheet" href="absent.css">', "request failed"),
        ('<img src="data:image/gif;base64,AAAA">', "data:image/gif;base64,AAAA"),
    ],
)
def test_a_fault_of_a_page_is_seen(inside: str, seen: str, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(f"<!doctype html><title>bad</title>{inside}")
    with watched_page(browser) as watched:
        watched.open_file(tmp_path / "bad.html")
        assert any(seen in problem for problem in [*watched.problems, *watched.broken_images()])


def test_without_a_browser_the_test_fails_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCEPTION_R1_BROWSER", "no-such-browser")
    with pytest.raises(pytest.fail.Exception, match="no-such-browser: run `make browser`"):
        browser_program()
    monkeypatch.setenv("PERCEPTION_R1_BROWSER", "none")
    with pytest.raises(pytest.skip.Exception, match="not opened"):
        browser_program()
