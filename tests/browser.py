"""A headless Chromium for the tests of pages, and a record of what a page did in it: errors, and whom it asked for what.

The machine's own Chromium is used (`make browser`): no browser is downloaded by a test. Without one the tests of pages fail
and say so; `PERCEPTION_R1_BROWSER` names another program, or is `none` where somebody knowingly leaves these tests out.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    *("--disable-gpu", "--disable-quic", "--disable-sync", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),  # else it looks up hosts of its own at every start
)


def browser_program() -> str:
    """The path of a Chromium. Fails the test, with the remedy, where there is none; skips it where that was asked for."""
    named = os.environ.get("PERCEPTION_R1_BROWSER", "")
    if named == "none":
        pytest.skip("PERCEPTION_R1_BROWSER is none: pages were not opened in a browser")
    found = next((path for name in ([named] if named else NAMES) if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(f"found no browser named {named or ', '.join(NAMES)}: run `make browser`, or name one with PERCEPTION_R1_BROWSER", pytrace=False)
    return found


PATIENCE = 120_000
"""Milliseconds that a start or a step may take: a machine that runs other tests as well is slow."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium with a fresh profile of its own; closed at the end, whatever happened."""
    program = browser_program()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, chromium_sandbox=False, args=list(QUIET), timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(kw_only=True)
class Watched:
    """A page, what went wrong on it (console errors and warnings, exceptions, failed requests), and every address it asked for."""

    page: Page
    problems: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self._note(message.type in ("error", "warning"), f"console {message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self._note(True, f"exception: {error}"))
        self.page.on("requestfailed", lambda request: self._note(True, f"request failed: {request.url[:200]}"))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _note(self, wrong: bool, what: str) -> None:
        if wrong:
            self.problems.append(what)

    def open_file(self, path: Path) -> None:
        """Opens a file from disk, as a double click would, and waits until it has loaded."""
        self.page.goto(path.resolve().as_uri(), wait_until="load")

    def broken_images(self) -> list[str]:
        """The first characters of the address of every image that did not load, after scrolling to each."""
        script = """async () => { const bad = [];
            for (const image of document.images) { image.scrollIntoView(); await image.decode().catch(() => {});
                if (!image.complete || !image.naturalWidth) bad.push(image.src.slice(0, 80)); } return bad; }"""
        return self.page.evaluate(script)


@contextmanager
def watched_page(browser: Browser, width: int = 1280, height: int = 900) -> Iterator[Watched]:
    """A fresh page that is watched from its first request on."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(PATIENCE)
    try:
        yield Watched(page=context.new_page())
    finally:
        context.close()
