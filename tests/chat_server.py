"""A chat-completions server inside a test: it answers what it is told, misbehaves as it is told, and counts what it was asked."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Act:
    """What the server does with one request: a status with a body, after some seconds, with headers, or only a part of the body."""

    status: int = 200
    body: Any = None
    after: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    keep: int | None = None
    """Bytes of the body that are sent, under a Content-Length that says the same."""
    hang_up: bool = False


def said(text: str | None, finish: str = "stop") -> Any:
    """The body of a chat completion."""
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
    }  # fmt: skip


@dataclass
class Heard:
    """The requests so far: bodies in order, and how often each prompt was asked about an image."""

    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0


def prompt_of(body: Any) -> str | None:
    """The text beside an image in a request; None for one without an image."""
    parts = body["messages"][0]["content"]
    return None if isinstance(parts, str) else next(part["text"] for part in parts if part["type"] == "text")


@contextmanager
def serving(answer: Callable[[Any, int], Act], models: tuple[str, ...] = ("m",)) -> Iterator[Heard]:
    """Serves on loopback: `answer(body, times asked before)` decides for each request with an image; without one it says "Hi"."""
    heard, lock = Heard(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(Act(body={"object": "list", "data": [{"id": name, "object": "model"} for name in models]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = prompt_of(body)
            with lock:
                heard.bodies.append(body)
                heard.headers.append({name.lower(): value for name, value in self.headers.items()})
                before = heard.asked[prompt or ""]
                heard.asked[prompt or ""] += 1
                heard.at_once += prompt is not None
                heard.most_at_once = max(heard.most_at_once, heard.at_once)
            try:
                self.send(answer(body, before))
            finally:
                with lock:
                    heard.at_once -= prompt is not None

        def send(self, act: Act) -> None:
            time.sleep(act.after)
            if act.hang_up:
                self.connection.close()
                return
            content = json.dumps(act.body).encode()[: act.keep]
            try:
                self.send_response(act.status)
                for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **act.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client has gone

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    heard.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield heard
    finally:
        server.shutdown()
        server.server_close()
