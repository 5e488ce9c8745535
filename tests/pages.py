"""What tests of the web page share: a model that repeats itself, its page, and how much of a picture has a colour."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from perception_r1.demo.page import served
from perception_r1.demo.policies import Policy
from perception_r1.dialects import dialect_named, frame_of
from perception_r1.evaluation.asking import Reply


class Parrot:
    """A backend that gives the same replies in turn, after `seconds`, and notes what it was asked and how many asked at once."""

    def __init__(self, completions: Sequence[str], dialect: str = "plain", seconds: float = 0.0) -> None:
        self.completions, self.dialect, self.seconds = completions, dialect_named(dialect), seconds
        self.settings: dict[str, Any] = {}
        self.asked: list[str] = []
        self.at_once, self._now, self._lock = 0, 0, threading.Lock()

    def replies(self, questions: Sequence[Any], *, max_new_tokens: int, batch_size: int) -> Iterator[tuple[Any, Reply]]:
        with self._lock:
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        time.sleep(self.seconds)
        with self._lock:
            self._now -= 1
        for question in questions:
            self.asked.append(question.prompt)
            completion = self.completions[(len(self.asked) - 1) % len(self.completions)]
            yield question, Reply(completion, "stop", frame_of(*question.image().size, self.dialect))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def parrot(port: int, bird: Parrot | None = None, task: str = "grounding") -> Iterator[str]:
    """The address of a page over a parrot."""
    with served([Policy(title="Policy", name="parrot", backend=bird or Parrot(["none"]))], port=port, task=task) as url:
        yield url


def colour_share(picture: Image.Image, colour: str) -> float:
    """Which share of a picture's pixels has exactly this colour."""
    return float((np.asarray(picture.convert("RGB")) == ImageColor.getrgb(colour)).all(2).mean())
