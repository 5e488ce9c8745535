"""Answers from any server that speaks OpenAI's chat completions: vLLM, SGLang, `transformers serve`, LM Studio, a cloud's. No torch.

The image is sent as PNG, its pixels as stored: nothing is lost, and there is no EXIF note by which a server might turn it. Decoding
is greedy. The text is asked for with its special tokens; a server that does not know that field strips them, which is recorded.
Retries, their waits and time-outs are those of the `openai` client.
"""

import base64
import io
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from time import sleep
from typing import Any
from urllib.parse import urlsplit

import openai
from PIL import Image

from ..dialects import DIALECTS, Dialect, dialect_named
from ..endings import without_ends
from ..frames import PixelLimits
from ..records import BadData
from .asking import Question, Reach, Reply

KEY = "OPENAI_API_KEY"
UNSTRIPPED = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
"""Fields by which vLLM and SGLang leave special tokens in the text. They are not OpenAI's, so others may refuse them."""


class ServerBackend:
    """A model behind `url`. `name` is what the server calls it; without one, the server must have exactly one.

    A server says neither how its model writes boxes nor to what it resizes images: `dialect` names the first, for every task but
    ocr, and `max_pixels` the second where the dialect's numbers depend on it. Raises BadData where they are missing.
    """

    settings: Mapping[str, Any] = {}

    def __init__(
        self,
        url: str,
        name: str | None = None,
        *,
        task: str,
        dialect: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        reach: Reach | None = None,
    ) -> None:
        self.url, self.reach = base_url(url), reach or Reach()
        self.dialect = _declared_dialect(task, dialect)
        self._pixels = PixelLimits(min_pixels=min_pixels, max_pixels=max_pixels)
        self.limits = _declared_limits(task, self.dialect, self._pixels)
        self._client = openai.OpenAI(
            base_url=self.url, api_key=os.environ.get(KEY) or "none", timeout=self.reach.timeout, max_retries=self.reach.retries
        )
        self.name = name or self._only_model()
        self._optional: dict[str, Any] = dict(UNSTRIPPED)
        self._length = "max_tokens"
        self._learn()

    def about(self, max_new_tokens: int) -> dict[str, Any]:
        """What metrics.json records: all that is known from outside. The key is no part of it."""
        special = "kept" if self._optional else "stripped by the server"
        decoding = {"greedy": True, "max_new_tokens": max_new_tokens, "ends": "the server's own", "special_tokens": special}
        return {"name": self.name, "revision": None, "backend": "server", "server": self.url, "image": self.limits, "decoding": decoding}

    def as_sent(self, prompt: str) -> None:
        """The chat template is the server's."""
        return None

    def replies(self, questions: Sequence[Question], *, max_new_tokens: int, batch_size: int = 0) -> Iterator[tuple[Question, Reply]]:
        """Yields the questions with their replies as these come, at most `reach.parallel` being asked at a time.

        Raises OSError, in one line, when a question fails for good; replies to those under way are yielded before.
        """
        left, failure = iter(questions), None
        with ThreadPoolExecutor(self.reach.parallel) as pool:
            asked = {pool.submit(self._ask, question, max_new_tokens) for question in islice(left, self.reach.parallel)}
            try:
                while asked:
                    done, asked = wait(asked, return_when=FIRST_COMPLETED)
                    for future in done:
                        if problem := future.exception():
                            failure = failure or problem
                        else:
                            yield future.result()
                    if failure is None:
                        asked |= {pool.submit(self._ask, question, max_new_tokens) for question in islice(left, len(done))}
            except (KeyboardInterrupt, GeneratorExit):
                self._client.close()  # else the pool would wait for what nobody wants any more
                raise
        if failure:
            raise failure

    def _ask(self, question: Question, max_new_tokens: int) -> tuple[Question, Reply]:
        content = [{"type": "image_url", "image_url": {"url": data_url(question.image())}}, {"type": "text", "text": question.prompt}]
        completion, finish = self._complete(content, max_new_tokens)
        sample, seen = question.sample, question.sample.seen
        if seen is None and self.limits["needed"]:
            seen = self._pixels.size(sample, self.dialect)
        frame = self._pixels.frame(sample, self.dialect, seen, "")
        return question, Reply(without_ends(completion), finish, frame, seen is not None)

    def _complete(self, content: Any, max_new_tokens: int) -> tuple[str, str]:
        """Text and finish of the reply to one message. Raises OSError in one line."""
        body: dict[str, Any] = {"model": self.name, "messages": [{"role": "user", "content": content}], "temperature": 0.0}
        body[self._length], found, broken = max_new_tokens, None, ""
        for attempt in range(self.reach.retries + 1):
            if attempt:
                sleep(min(8.0, 0.5 * 2**attempt) * random.uniform(0.75, 1))
            try:
                found = self._client.chat.completions.create(**body, extra_body=self._optional)
            except json.JSONDecodeError as problem:  # a reply with status 200 that was cut off: the client does not ask again
                broken = str(problem)
                continue
            except openai.OpenAIError as problem:
                raise _explained(self.url, self.reach, problem) from problem
            if choices := getattr(found, "choices", None):
                text = (choices[0].message.content or "").encode(errors="replace").decode()
                return text, "length" if choices[0].finish_reason == "length" else "stop"
            broken = f"{found!r:.200}"
        raise OSError(f"server {self.url}: expected a chat completion, found {broken}, {self.reach.retries + 1} times")

    def _learn(self) -> None:
        """Asks for one token: whether the server and its model are there, and which optional fields it refuses."""
        for _ in range(2):
            try:
                self._complete("Hello", 1)
                return
            except OSError as problem:
                if not self._refused(problem.__cause__):
                    raise
        self._complete("Hello", 1)

    def _refused(self, problem: BaseException | None) -> bool:
        """Whether it was an optional field that was refused, which is then left out, or OpenAI's older name of the length."""
        said = problem.response.text if isinstance(problem, openai.BadRequestError | openai.UnprocessableEntityError) else ""
        if self._optional and any(field in said for field in UNSTRIPPED):
            self._optional = {}
            return True
        if self._length == "max_tokens" and "max_completion_tokens" in said:
            self._length = "max_completion_tokens"
            return True
        return False

    def _only_model(self) -> str:
        try:
            names = [model.id for model in self._client.models.list().data]
        except openai.OpenAIError as problem:
            raise _explained(self.url, self.reach, problem) from problem
        if len(names) != 1:
            some = f"{len(names)}, {', '.join(names[:5])}" if names else "none"
            raise BadData(f"server {self.url}: expected one model, found {some}: name one with --model")
        return names[0]


def _declared_dialect(task: str, named: str | None) -> Dialect:
    if named is None and task != "ocr":
        raise BadData(f"a server does not say how its model writes boxes: name it with --dialect ({', '.join(DIALECTS)})")
    return dialect_named(named or "plain")


def _declared_limits(task: str, dialect: Dialect, limits: PixelLimits) -> dict[str, Any]:
    if task == "ocr" or not dialect.reads_size_seen:
        return {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels, "needed": False}
    if limits.max_pixels is None:
        raise BadData(
            f"{dialect.name} writes pixels of the resized image, and a server does not say to what it resizes: "
            "give its limit with --max-pixels (and --min-pixels)"
        )
    return {"min_pixels": limits.least, "max_pixels": limits.max_pixels, "needed": True}


def base_url(url: str) -> str:
    """The address of a server's API: as given, with `/v1` where it has no path.

    >>> base_url("http://localhost:8000"), base_url("https://example.org/openai/v1/")
    ('http://localhost:8000/v1', 'https://example.org/openai/v1')
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise BadData(f"server {url!r}: expected an address such as http://localhost:8000; a key belongs into {KEY}")
    return url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def data_url(image: Image.Image) -> str:
    """The image's pixels, lossless, as a data URL."""
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _explained(url: str, reach: Reach, problem: openai.OpenAIError) -> OSError:
    """What went wrong for good, with the remedy, as an error of one line."""
    tries = f"{reach.retries + 1} times"
    if isinstance(problem, openai.APITimeoutError):
        return OSError(f"server {url}: found no reply within {reach.timeout:g} s, {tries}: raise --timeout, or lower --parallel")
    if isinstance(problem, openai.APIConnectionError):
        return OSError(f"server {url}: found no connection, {tries} ({problem.__cause__ or problem}): is it running there?")
    if not isinstance(problem, openai.APIStatusError):
        return OSError(f"server {url}: {problem}")
    said = f"server {url}: answered {problem.status_code}: {' '.join(problem.response.text.split())[:300]}"
    if problem.status_code in (401, 403):
        return OSError(f"{said}: set {KEY} to its key")
    if problem.status_code in (408, 409, 429) or problem.status_code >= 500:
        return OSError(f"{said}, {tries}: run the same command again to go on from the answers that are there")
    return OSError(said)
