"""What comes in from outside: pictures, bounded before they are decoded, and requests, bounded before they are read.

Whoever reaches the page can read no file of this machine but what the page itself made, nor make it fetch an address.
"""

import html
import ipaddress
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..data.samples import UNREADABLE, as_rgb
from ..records import BadData

MAX_BYTES = 20_000_000
"""Largest file that is taken, in bytes."""
MAX_BODY = MAX_BYTES + 100_000
"""Largest request, in bytes: a file of the largest size and what is written around it."""
MAX_PIXELS = 16_000_000
"""Largest picture that is decoded, in pixels."""
MAX_ASPECT = 200
"""Longer side over shorter side, beyond which Qwen processors refuse a picture."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def read_upload(path: str | Path, folder: str | Path) -> Image.Image:
    """The picture in a file that was uploaded to `folder`, in RGB and upright. Raises BadData for one that is too large or no picture.

    Sides are checked before anything is decoded: a file of a few kilobytes may claim a billion pixels.
    """
    if not Path(path).resolve().is_relative_to(Path(folder).resolve()):
        raise BadData("found a file that was not uploaded, expected an upload")
    try:
        with Image.open(path, formats=FORMATS) as file:
            check_sides(*file.size)
            return as_rgb(ImageOps.exif_transpose(file))
    except BadData:
        raise
    except Image.DecompressionBombError as problem:
        raise BadData(f"the picture is far too large: expected at most {MAX_PIXELS:,} pixels: make it smaller first") from problem
    except UNREADABLE as problem:
        raise BadData(f"found no picture in that file, or a damaged one: expected {', '.join(FORMATS)}") from problem


def check_sides(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadData(f"the picture has {width:,} × {height:,} pixels, expected at most {MAX_PIXELS:,} in all: make it smaller first")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadData(f"the picture has {width:,} × {height:,} pixels, expected sides of at most {MAX_ASPECT} to 1: crop it first")


def picture_input(**options: Any) -> gr.Image:
    """Gradio's image, for uploads alone: a crafted request that names an address instead is refused, where Gradio would fetch it.

    Set on the instance, because a subclass of a component writes a stub file beside its source when it is imported.
    """
    picture = gr.Image(**options)
    move = picture.async_move_resource_to_block_cache

    async def only_files(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise gr.Error("Expected an uploaded file, found an address.", print_exception=False)
        return await move(path)

    setattr(picture, "async_move_resource_to_block_cache", only_files)  # noqa: B010
    return picture


@contextmanager
def told() -> Iterator[None]:
    """Inside, a BadData is shown on the page, its words as they are: nothing in them is read as HTML."""
    try:
        yield
    except BadData as problem:
        raise gr.Error(html.escape(str(problem)), title="That did not work", print_exception=False) from problem


class Gate:
    """ASGI middleware that refuses what the page never asks: a request in another host's name, one
    without end or over MAX_BODY, and an address to fetch.

    A page of the internet whose name is made to lead to 127.0.0.1 (DNS rebinding) sends its own
    name as `Host`. Gradio answers to any; and it bounds each file, but not how many one request
    holds, nor its JSON; and it would fetch `file=http://…` for anybody. `names` are what `Host`
    may say, None for anything.
    """

    def __init__(self, app: ASGIApp, names: Container[str] | None = None) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = foreign(headers, self.names)
        if scope["type"] == "http":
            refusal = refusal or refused(scope["path"], headers)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403
        else:
            code, reason = refusal
            await PlainTextResponse(reason, status_code=code)(scope, receive, send)


def own_names(host: str, port: int) -> frozenset[str] | None:
    """What a browser on this machine says as `Host` to a page on a loopback address.

    None where the page listens on another address, and other machines may call it what they like.

    >>> sorted(own_names("127.0.0.1", 7860))
    ['127.0.0.1:7860', '[::1]:7860', 'localhost:7860']
    """
    if not is_loopback(host):
        return None
    address = f"[{host}]" if ":" in host else host
    names = {"localhost", "127.0.0.1", "[::1]", address.lower()}
    bare = names if port == 80 else set()  # a browser leaves the port of HTTP out
    return frozenset({f"{name}:{port}" for name in names} | bare)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host.lower() == "localhost"


def foreign(headers: Headers, names: Container[str] | None) -> tuple[int, str] | None:
    """Status and reason for which a request in another host's name is refused, or None.

    >>> foreign(Headers({"host": "evil.example:7860"}), own_names("127.0.0.1", 7860))
    (403, 'expected a name of this page as Host')
    """
    said = headers.getlist("host")
    if names is None or (len(said) == 1 and said[0].lower() in names):
        return None
    return 403, "expected a name of this page as Host"


def refused(path: str, headers: Headers) -> tuple[int, str] | None:
    """Status and reason for which a request to a decoded path is refused; None for one that is let through.

    >>> refused("/gradio_api/file=http://example.org/a.png", Headers({}))
    (403, 'this server fetches no address')
    """
    if "://" in path or "=http:" in path.lower() or "/proxy=" in path.lower():
        return 403, "this server fetches no address"
    if "transfer-encoding" in headers:
        return 411, "expected a request that states its length"
    if int(headers.get("content-length", 0)) > MAX_BODY:
        return 413, f"expected at most {MAX_BYTES:,} bytes"
    return None
