"""A sample file as one HTML page beside a folder of thumbnails, which opens from disk: truth drawn, filters, quick on 100,000 samples.

The page holds the samples as JSON and makes the figures that are looked at, a screenful at a time. What comes from the data goes
into the page as JSON alone, and from there into text and attributes, never into HTML.
"""

import html
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from .data.rows import sample_to_row
from .data.samples import as_rgb, open_image, read_rows, replacing, stored_image
from .records import BadData, Sample
from .visualize import TRUTH

LONGEST = 256
"""Pixels of a thumbnail's longer side, on disk and on the page."""
TEXT = 400
"""Characters of a page's text that are shown."""
AHEAD = 64
"""Thumbnails that are made before the page needs them."""


def has_completions(file: Path) -> bool:
    """Whether any line of a sample file also holds an answer. Streams; what is wrong with a line is left to whoever reads it."""
    return any(not isinstance(row, BadData) and isinstance(row, Mapping) and row.get("completion") is not None for _, row in read_rows(file))


def thumbnail_folder(page: Path) -> Path:
    """The folder beside a page that holds its thumbnails."""
    return page.with_name(f"{page.stem}_thumbnails")


def write_gallery(samples: Iterable[Sample], page: Path, *, title: str) -> int:
    """Writes the page of these samples and the thumbnails that are not there yet; returns how many samples it shows.

    Streams: memory does not grow with the images. Raises BadData for a missing or corrupt image, OSError for a full disk;
    the page then stays as it was.
    """
    folder, count, labels = thumbnail_folder(page), 0, {}
    head, tail = _PAGE.split("@ROWS@")
    rows_end, tail = tail.split("@LABELS@")
    with replacing(page) as part, part.open("w", encoding="utf-8") as file:
        file.write(head.replace("@TRUTH@", TRUTH).replace("@LONGEST@", str(LONGEST)).replace("@TITLE@", html.escape(title)))
        for sample, thumbnail in _with_thumbnails(samples, folder):
            row = _row(sample, page.parent, labels) | {"thumbnail": f"{folder.name}/{thumbnail}"}
            file.write(f"{',' if count else ''}\n{_json(row)}")
            count += 1
        file.write(rows_end + _json(list(labels)) + tail.replace("@LONGEST@", str(LONGEST)))
    return count


def _json(value: Any) -> str:
    """JSON that ends no script element and opens no comment."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _row(sample: Sample, folder: Path, labels: dict[str, int]) -> dict[str, Any]:
    """What the page needs of a sample; its labels are numbers in `labels`, which grows."""
    row = sample_to_row(sample, folder)
    truth = sample.truth
    kept = {name: row[name] for name in ("id", "task", "image", "width", "height", "query", "source") if name in row}
    if truth.text is not None:
        return kept | {"text": truth.text[:TEXT] + ("…" if len(truth.text) > TEXT else "")}
    if truth.count is not None:
        return kept | {"number": truth.count}
    objects = truth.boxes if truth.boxes is not None else truth.points
    places = [] if objects is None else np.round(objects, 1).tolist()
    found = kept | {"objects": places, "labels": [labels.setdefault(label, len(labels)) for label in truth.labels]}
    return found | ({"crowd": [int(crowd) for crowd in sample.crowd]} if sample.crowd and any(sample.crowd) else {})


def _with_thumbnails(samples: Iterable[Sample], folder: Path) -> Iterator[tuple[Sample, str]]:
    """Yields each sample with the name of its thumbnail, in order; threads work ahead, since decoding lets go of Python's lock."""
    waiting: deque[tuple[Sample, str, Future[None]]] = deque()
    flying: dict[str, Future[None]] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for sample in samples:
                name = _name(sample)
                future = flying[name] = flying.get(name) or pool.submit(_make, sample, folder / name)
                waiting.append((sample, name, future))
                if len(waiting) > AHEAD:
                    yield _finished(*waiting.popleft(), flying)
            while waiting:
                yield _finished(*waiting.popleft(), flying)
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(sample: Sample, name: str, future: Future[None], flying: dict[str, Future[None]]) -> tuple[Sample, str]:
    future.result()
    flying.pop(name, None)
    return sample, name


def _name(sample: Sample) -> str:
    """A name that changes with the image file and with the size it is said to have, so that one that is there is right."""
    path = sample.image_path
    if not path.is_file():
        open_image(sample)  # raises, naming it
    state = path.stat()
    what = f"{os.path.realpath(path)}\n{state.st_mtime_ns}\n{state.st_size}\n{sample.width}x{sample.height}"
    return sha256(os.fsencode(what)).hexdigest()[:32] + ".jpg"


def _make(sample: Sample, path: Path) -> None:
    if path.is_file():
        return
    scale = min(1.0, LONGEST / max(sample.width, sample.height))
    size = (max(1, round(sample.width * scale)), max(1, round(sample.height * scale)))
    with stored_image(sample.image_path, f"the image of sample {sample.id!r}") as file:
        if file.size != (sample.width, sample.height):
            open_image(sample)  # raises, naming both sizes
        file.draft("RGB", size)  # a JPEG is decoded no larger than needed
        small = as_rgb(file).resize(size, reducing_gap=2.0)
    with replacing(path) as part:
        small.save(part, "JPEG", quality=85)


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>@TITLE@</title>
<style>
body{font:14px system-ui,sans-serif;margin:0}
header{position:sticky;top:0;z-index:1;background:#fff;padding:.6em 1.2em;border-bottom:1px solid #ccc;display:flex;flex-wrap:wrap;gap:.6em 1em}
h1{font-size:1em;margin:0;flex-basis:100%}input[type=number]{width:4.5em}
main{display:flex;flex-wrap:wrap;gap:1em;padding:1.2em;align-items:flex-start}
figure{margin:0;width:@LONGEST@px}figcaption{overflow-wrap:anywhere;white-space:pre-wrap}
.frame{position:relative;display:block;background:#eee}.frame img,.frame svg{position:absolute;inset:0;width:100%;height:100%}
svg{overflow:visible}rect,path{fill:none;stroke:@TRUTH@;stroke-width:2;vector-effect:non-scaling-stroke}.crowd{stroke-dasharray:5 4}
text{fill:#fff;stroke:#063;stroke-width:3px;paint-order:stroke;vector-effect:non-scaling-stroke}
body.bare svg{display:none}body.nameless text{display:none}
</style>
<header><h1>@TITLE@</h1><b id="count"></b>
<label>task <select id="task"><option value="">all</option></select></label>
<label>label <select id="label"><option value="">all</option></select></label>
<label>objects <input id="least" type="number" min="0" placeholder="from"> – <input id="most" type="number" min="0" placeholder="to"></label>
<label>search <input id="words" type="search" placeholder="id, query, source, text"></label>
<label><input id="truth" type="checkbox" checked> truth</label><label><input id="names" type="checkbox" checked> names</label>
</header><noscript>This page needs JavaScript, which it holds itself.</noscript><main id="figures"></main><div id="end"></div>
<script type="application/json" id="rows">[@ROWS@
]</script>
<script type="application/json" id="labels">@LABELS@</script>
<script>
"use strict";
const LONGEST = @LONGEST@, CHUNK = 60;
const count = row => row.number ?? (row.objects || []).length - (row.crowd || []).reduce((a, b) => a + b, 0);
// An empty filter lets everything through. A question about a label that the image does not show belongs to the label too.
function matches(row, labels, wanted) {
  const number = count(row);
  return (!wanted.task || row.task === wanted.task)
    && (!wanted.label || row.query === wanted.label || (row.labels || []).some(index => labels[index] === wanted.label))
    && (wanted.least === "" || number >= Number(wanted.least)) && (wanted.most === "" || number <= Number(wanted.most))
    && (!wanted.words || [row.id, row.query, row.source, row.text].join("\\n").toLowerCase().includes(wanted.words.toLowerCase()));
}
function element(name, attributes, ...inside) {
  const svg = ["svg", "rect", "path", "text", "title"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}
function shape(place, crowd, arm) {
  const kind = crowd ? "crowd" : "", [x, y, right, bottom] = place;
  if (place.length === 4) return element("rect", {x, y, width: right - x, height: bottom - y, class: kind});
  return element("path", {d: `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}`, class: kind});
}
function figure(row, labels) {
  const scale = LONGEST / Math.max(row.width, row.height), letters = 11 / scale;
  const drawn = element("svg", {viewBox: `0 0 ${row.width} ${row.height}`, preserveAspectRatio: "none"});
  (row.objects || []).forEach((place, k) => {
    const name = labels[row.labels[k]], object = shape(place, row.crowd && row.crowd[k], letters / 2);
    object.append(element("title", {}, name));
    drawn.append(object, element("text", {x: place[0], y: Math.max(place[1], letters), "font-size": letters}, name));
  });
  const image = element("img", {src: row.thumbnail, loading: "lazy", decoding: "async", alt: row.id});
  const href = row.image.split("/").map(encodeURIComponent).join("/");
  const link = element("a", {class: "frame", href, target: "_blank", rel: "noopener"}, image, drawn);
  link.style.width = Math.max(1, row.width * scale) + "px";
  link.style.height = Math.max(1, row.height * scale) + "px";
  const crowds = (row.crowd || []).reduce((a, b) => a + b, 0), about = [row.task, row.query, row.source].filter(Boolean).join(" · ");
  const several = (number, name) => `${number} ${name}${number === 1 ? "" : "s"}`;
  const beside = row.number === undefined ? crowds ? ` and ${several(crowds, "crowd")}` : "" : ", counted without places";
  const objects = row.text === undefined ? several(count(row), "object") + beside : row.text;
  return element("figure", {}, link, element("figcaption", {}, element("b", {}, row.id), `\\n${about}\\n${objects}`));
}
function start() {
  const read = id => JSON.parse(document.getElementById(id).textContent), get = id => document.getElementById(id);
  const rows = read("rows"), labels = read("labels"), filters = ["task", "label", "least", "most", "words"];
  const option = name => element("option", {value: name}, name);
  get("task").append(...[...new Set(rows.map(row => row.task))].sort().map(option));
  get("label").append(...[...labels].sort().map(option));
  let found = [], shown = 0;
  function more() {
    get("figures").append(...found.slice(shown, shown + CHUNK).map(row => figure(row, labels)));
    shown = Math.min(found.length, shown + CHUNK);
  }
  function filter() {
    const wanted = Object.fromEntries(filters.map(id => [id, get(id).value]));
    found = rows.filter(row => matches(row, labels, wanted));
    get("count").textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} samples`;
    get("figures").replaceChildren();
    shown = 0;
    more();
  }
  const reaches = () => get("end").getBoundingClientRect().top < 2 * window.innerHeight;
  const fill = () => { while (shown < found.length && reaches()) more(); };
  for (const id of filters) get(id).addEventListener("input", () => { filter(); fill(); });
  get("truth").addEventListener("input", event => document.body.classList.toggle("bare", !event.target.checked));
  get("names").addEventListener("input", event => document.body.classList.toggle("nameless", !event.target.checked));
  for (const happening of ["scroll", "resize"]) window.addEventListener(happening, fill, {passive: true});
  filter();
  fill();
}
if (typeof document !== "undefined") start();
</script></html>
"""
