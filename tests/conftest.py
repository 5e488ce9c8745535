"""Fixtures that several test files share: where the real data is, and how much hypothesis tries."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples on every machine and every run; a search with fresh ones is `HYPOTHESIS_PROFILE=search make test`.
settings.register_profile("steady", deadline=None, max_examples=100, derandomize=True, database=None)
settings.register_profile("search", deadline=None, max_examples=2000, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

DATA = Path(os.environ.get("PERCEPTION_R1_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def data_folder() -> Callable[[str], Path]:
    """`data_folder("coco_val206")` is that folder of the real data; the test is skipped with a message when it is absent."""

    def find(name: str) -> Path:
        if not (DATA / name).is_dir():
            pytest.skip(f"real data {name} not found in {DATA}: set PERCEPTION_R1_DATA to the folder that holds it")
        return DATA / name

    return find


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium for a module of tests, in which `tests.browser.watched_page` opens pages.

    Not for the session: while it is open, Playwright's event loop runs in this thread, and asyncio.run would be refused there.
    """
    from tests.browser import chromium

    with chromium() as started:
        yield started
