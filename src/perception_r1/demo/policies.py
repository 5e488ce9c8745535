"""The models that the page asks: local checkpoints, or models behind a server; one, or one with its base before it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image

from ..evaluation.asking import Reach, Reply
from ..records import BadData, Sample
from ..rewards import RewardSettings
from ..tasks import Task

REACH = Reach(parallel=1, timeout=120, retries=2)
"""A visitor waits for the reply: give up sooner than an evaluation would."""


@dataclass(frozen=True)
class OnPage:
    """A question as backends take it, whose picture is in no file."""

    sample: Sample
    prompt: str
    picture: Image.Image

    def image(self) -> Image.Image:
        return self.picture


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A model, and how it is asked: in its own dialect, and thinking first where it was trained to."""

    title: str
    """What it is on the page: Policy, or Base and Trained."""
    name: str
    backend: Any
    """An `evaluation.asking.Backend`."""
    thinking: bool = False
    max_new_tokens: int = 1024
    reward: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the reward: matching, iou_shape, weights."""

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Every task as this model is asked it, by name."""
        reading = {"dialect": self.backend.dialect, "thinking": self.thinking}
        return RewardSettings(**reading, **self.reward).tasks

    def task(self, name: str) -> Task:
        return self.tasks[name]

    def reply(self, sample: Sample, image: Image.Image) -> Reply:
        """The reply to the sample's prompt about a picture in RGB. Raises BadData, in one line, where a server fails for good."""
        question = OnPage(sample, self.task(sample.task).prompt(sample), image)
        try:
            [(_, reply)] = list(self.backend.replies([question], max_new_tokens=self.max_new_tokens, batch_size=1))
        except OSError as problem:
            raise BadData(str(problem)) from problem
        return reply


def load_policies(
    model: str | None,
    base: str | None = None,
    *,
    server: str | None = None,
    thinking: bool | None = None,
    max_new_tokens: int = 1024,
    device: str | None = None,
    reward: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Policy]:
    """The policy called `model`, after its base where one is given: folders or hub ids, or with a `server` its own names.

    `reward` (matching, iou_shape, weights) says what an answer earns. `options` (dialect, min_pixels, max_pixels) are the
    backend's. Raises BadData, or OSError for a server that does not answer.
    """
    names = [base, model] if base else [model]
    backends: list[Any]
    if server:
        from ..evaluation.server import ServerBackend

        backends = [ServerBackend(server, name, task="grounding", reach=REACH, **options) for name in names]
    else:
        from ..evaluation.backends import TransformersBackend

        backends = [TransformersBackend(str(name), device=device, **options) for name in names]
    titles = ["Base", "Trained"] if base else ["Policy"]
    found = []
    for title, name, backend in zip(titles, names, backends, strict=True):
        thinks = bool(backend.settings.get("thinking")) if thinking is None else thinking
        asked = {"thinking": thinks, "max_new_tokens": max_new_tokens, "reward": reward or {}}
        found.append(Policy(title=title, name=name or backend.name, backend=backend, **asked))
    return found
