"""The gallery: nothing of the data is ever HTML, the filters let through what they say, and a thumbnail is its image."""

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perception_r1.cli import main
from perception_r1.data.coco import coco_samples
from perception_r1.data.samples import write_samples
from perception_r1.gallery import AHEAD, LONGEST, thumbnail_folder, write_gallery
from perception_r1.records import BadData, Sample, Truth


def made(folder: Path, name: str = "a", truth: Truth | None = None, size: tuple[int, int] = (64, 48), **fields: Any) -> Sample:
    """A counting sample with an image of its own, unless `image` names one."""
    if "image" not in fields:
        Image.new("RGB", size, (200, 30, 40)).save(folder / f"{name}.png")
    truth = Truth(boxes=np.array([[1.0, 2.0, 3.04, 4.0]]), labels=("dog",)) if truth is None else truth
    common = {"id": name, "task": "counting", "image": f"{name}.png", "width": size[0], "height": size[1], "query": "dog", "truth": truth}
    return Sample(**{**common, "root": folder, **fields})


def element(page: Path, name: str) -> Any:
    """The JSON of a page's element."""
    return json.loads(re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', page.read_text(), re.DOTALL)[0])


def thumbnail(page: Path, row: dict[str, Any]) -> Image.Image:
    with Image.open(page.parent / row["thumbnail"]) as file:
        return file.convert("RGB")


# --- what the page holds ---------------------------------------------------------------------------------------------
def test_the_page_holds_every_real_sample_with_its_truth(data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    samples = coco_samples(data_folder("coco_val206")).samples[:30]
    page = tmp_path / "deep" / "page.html"
    assert write_gallery(samples, page, title="COCO") == 30
    rows, labels = element(page, "rows"), element(page, "labels")
    assert [row["id"] for row in rows] == [sample.id for sample in samples]
    for row, sample in zip(rows, samples, strict=True):
        np.testing.assert_allclose(np.reshape(row["objects"], (-1, 4)), sample.truth.needed_boxes(), atol=0.051)
        assert tuple(labels[index] for index in row["labels"]) == sample.truth.labels
        assert [bool(crowd) for crowd in row.get("crowd", [0] * len(sample.truth))] == list(sample.crowd or ())
        assert (page.parent / row["image"]).samefile(sample.image_path)
        assert max(thumbnail(page, row).size) == LONGEST
    assert len(page.read_bytes()) < 60_000


def test_points_pages_and_empty_images_are_shown_too(tmp_path: Path) -> None:
    points = made(tmp_path, "points", Truth(points=np.array([[5.0, 6.0]]), labels=("dog",)))
    text = made(tmp_path, "text", Truth(text="x" * 999), task="ocr", query="")
    nothing = made(tmp_path, "nothing", Truth(boxes=np.zeros((0, 4)), labels=()))
    count = made(tmp_path, "count", Truth(count=7))
    write_gallery([points, text, nothing, count], tmp_path / "page.html", title="")
    rows = element(tmp_path / "page.html", "rows")
    assert rows[0]["objects"] == [[5, 6]]
    assert (len(rows[1]["text"]), rows[1]["text"][-1], "objects" in rows[1]) == (401, "…", False)
    assert (rows[2]["objects"], rows[2]["query"]) == ([], "dog")
    assert (rows[3]["number"], "objects" in rows[3], "labels" in rows[3]) == (7, False, False)


HOSTILE = ["</script><script>alert(1)</script>", "<!--<script>", "<img src=x onerror=alert(1)>", "javascript:alert(1)"]
HOSTILE += ["\u2028'\"&amp;", "@ROWS@ @LABELS@ @TRUTH@"]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_the_data_is_read_as_html(text: str, tmp_path: Path) -> None:
    clean, page = tmp_path / "clean.html", tmp_path / "page.html"
    write_gallery([made(tmp_path)], clean, title="t")
    truth = Truth(boxes=np.array([[1.0, 2, 3, 4]]), labels=(text,))
    hostile = made(tmp_path, image="a.png", truth=truth, id=text, query=text, source=text)
    write_gallery([hostile, made(tmp_path, image="a.png", truth=Truth(text=text), task="ocr")], page, title=text)
    first, second = element(page, "rows")
    assert (first["id"], first["query"], first["source"], second["text"], element(page, "labels")) == (text, text, text, text, [text])
    assert page.read_text().count("<") == clean.read_text().count("<")


# --- thumbnails ------------------------------------------------------------------------------------------------------
ODD: dict[str, tuple[str, Image.Image, tuple[int, int, int]]] = {
    "JPEG": ("a.jpg", Image.new("RGB", (900, 500), (200, 30, 40)), (200, 30, 40)),
    "CMYK": ("a.jpg", Image.new("CMYK", (900, 500), (0, 255, 255, 0)), (255, 0, 0)),
    "grey of 16 bits": ("a.png", Image.fromarray(np.full((40, 60), 128 * 257, dtype=np.uint16)), (128, 128, 128)),
    "transparent": ("a.png", Image.new("RGBA", (60, 40), (0, 0, 0, 0)), (255, 255, 255)),
    "one pixel": ("a.png", Image.new("RGB", (1, 1), (200, 30, 40)), (200, 30, 40)),
    "panorama": ("a.png", Image.new("RGB", (20_000, 9), (200, 30, 40)), (200, 30, 40)),
    "a name that is not ASCII": ("Bär 熊#?%.png", Image.new("RGB", (60, 40), (200, 30, 40)), (200, 30, 40)),
}


@pytest.mark.parametrize("name, image, colour", ODD.values(), ids=ODD)
def test_a_thumbnail_is_its_image_small(name: str, image: Image.Image, colour: tuple[int, int, int], tmp_path: Path) -> None:
    image.save(tmp_path / name)
    page = tmp_path / "page.html"
    empty = Truth(boxes=np.zeros((0, 4)), labels=())
    write_gallery([made(tmp_path, image=name, size=image.size, truth=empty)], page, title="")
    small = thumbnail(page, element(page, "rows")[0])
    scale = min(1, LONGEST / max(image.size))
    assert small.size == tuple(max(1, round(side * scale)) for side in image.size)
    np.testing.assert_allclose(np.asarray(small).mean(axis=(0, 1)), colour, atol=6)


def test_pixels_are_shown_as_stored_whatever_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    Image.new("RGB", (600, 400)).save(tmp_path / "a.jpg", exif=exif)
    write_gallery([made(tmp_path, image="a.jpg", size=(600, 400))], tmp_path / "page.html", title="")
    assert thumbnail(tmp_path / "page.html", element(tmp_path / "page.html", "rows")[0]).size == (256, 171)


def test_an_image_has_one_thumbnail_and_it_is_made_once(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    samples = [made(tmp_path), *(made(tmp_path, f"{k}", image="a.png") for k in range(300))]
    write_gallery(samples, page, title="")
    (file,) = thumbnail_folder(page).iterdir()
    os.utime(file, ns=(1, 1))
    write_gallery(samples, page, title="")
    assert [entry.stat().st_mtime_ns for entry in thumbnail_folder(page).iterdir()] == [1]
    Image.new("RGB", (64, 48), "blue").save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", ns=(5, 5))
    write_gallery(samples, page, title="")
    assert thumbnail(page, element(page, "rows")[0]).getpixel((5, 5)) == (0, 0, 254)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"image": "none.png"}, r"none\.png: found no such file, expected the image of sample 'bad'"),
        ({"image": "page.html"}, r"page\.html: found no readable image"),
        ({"image": "a.png", "size": (48, 64)}, r"a\.png: found 64x48 pixels, expected the 48x64 of sample 'bad'"),
    ],
)
def test_an_image_that_is_not_right_is_named_and_the_page_stays_as_it_was(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("before")
    with pytest.raises(BadData, match=words):
        write_gallery([made(tmp_path), made(tmp_path, "bad", **change)], page, title="")
    assert page.read_text() == "before"
    assert not list(tmp_path.glob(".*")) + list(thumbnail_folder(page).glob(".*"))


def test_no_more_samples_are_taken_than_the_threads_work_ahead(tmp_path: Path) -> None:
    """An endless file fails at its first bad image, long before memory does."""
    good = made(tmp_path)
    taken = count()

    def endless() -> Iterator[Sample]:
        yield made(tmp_path, "corrupt", image="corrupt.png")
        while next(taken) < 100 * AHEAD:
            yield good

    (tmp_path / "corrupt.png").write_text("no image")
    with pytest.raises(BadData, match="corrupt"):
        write_gallery(endless(), tmp_path / "page.html", title="")
    assert next(taken) <= AHEAD + 1


# --- in the browser --------------------------------------------------------------------------------------------------
def run_script(page: Path, before: str, after: str) -> Any:
    """What node prints, as JSON, when it runs the page's script between two others."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the page's script was not run")
    script = re.findall(r"<script>\n(.*?)</script>", page.read_text(), re.DOTALL)[0]
    ran = subprocess.run([node, "-"], input=before + script + after, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_the_filters_let_through_what_they_say(tmp_path: Path) -> None:
    rng, labels, rows = random.Random(3), ["dog", "cat", "owl"], []
    for k in range(60):
        found = [rng.randrange(3) for _ in range(rng.randrange(5))]
        row = {"id": f"Sample-{k}", "task": rng.choice(["counting", "detection"]), "query": rng.choice(["", *labels]), "labels": found}
        rows.append(row | {"objects": [[0, 0, 1, 1]] * len(found)} | ({"crowd": [rng.randrange(2) for _ in found]} if k % 3 else {}))
    rows.append({"id": "page", "task": "ocr", "query": "", "text": "The QUICK fox"})
    rows += [{"id": f"bare-{number}", "task": "counting", "query": "dog", "number": number} for number in range(5)]
    choices = {"task": ["", "counting", "ocr"], "label": ["", "dog"], "least": ["", "0", "2"], "most": ["", "0", "3"]}
    choices["words"] = ["", "sample-1", "quick"]
    wanted = [{name: rng.choice(values) for name, values in choices.items()} for _ in range(200)]

    def right(row: dict[str, Any], wish: dict[str, str]) -> bool:
        number = row.get("number", len(row.get("objects", [])) - sum(row.get("crowd", [])))
        named = {row["query"], *(labels[k] for k in row.get("labels", []))}
        text = f"{row['id']} {row['query']} {row.get('text', '')}".casefold()
        return (
            wish["task"] in ("", row["task"])
            and (not wish["label"] or wish["label"] in named)
            and int(wish["least"] or 0) <= number <= int(wish["most"] or 99)
            and wish["words"] in text
        )

    write_gallery([made(tmp_path)], tmp_path / "page.html", title="")
    asked = f"const rows = {json.dumps(rows)}, labels = {json.dumps(labels)}, all = {json.dumps(wanted)};"
    after = asked + "console.log(JSON.stringify(all.map(one => rows.filter(row => matches(row, labels, one)).map(row => row.id))));"
    found = run_script(tmp_path / "page.html", "", after)
    assert found == [[row["id"] for row in rows if right(row, wish)] for wish in wanted]
    assert len({len(ids) for ids in found}) > 5


BROWSER = """
class Node {
  constructor(name) { Object.assign(this, {name, inside: [], attributes: {}, style: {}, listeners: {}, value: "", textContent: ""}); }
  append(...parts) { this.inside.push(...parts); }
  replaceChildren() { this.inside = []; }
  setAttribute(key, value) { this.attributes[key] = String(value); }
  addEventListener(kind, act) { this.listeners[kind] = act; }
  getBoundingClientRect() { return {top: 300 * Math.ceil(byId.figures.inside.length / 4)}; }
}
const byId = {}, sources = SOURCES;
for (const id of ["task", "label", "least", "most", "words", "truth", "names", "count", "figures", "end", "rows", "labels"]) byId[id] = new Node(id);
for (const id of ["rows", "labels"]) byId[id].textContent = sources[id];
const window = Object.assign(new Node("window"), {innerHeight: 900});
const document = {getElementById: id => byId[id], createElement: name => new Node(name), body: new Node("body")};
document.createElementNS = (space, name) => new Node(name);
"""


def test_a_page_of_thousands_makes_only_the_figures_that_are_looked_at(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    hostile = Truth(boxes=np.array([[1.0, 2, 31, 42]]), labels=("<b>owl</b>",))
    odd = "javascript:1 #.png"
    made(tmp_path).image_path.rename(tmp_path / odd)
    write_gallery([made(tmp_path, truth=hostile, image=odd), *(made(tmp_path, f"{k}", image=odd) for k in range(2000))], page, title="")
    sources = {name: json.dumps(element(page, name)) for name in ("rows", "labels")}
    after = """
    const seen = {first: byId.figures.inside.length, count: byId.count.textContent, labels: byId.label.inside.map(option => option.attributes.value)};
    byId.label.value = "<b>owl</b>"; byId.label.listeners.input();
    seen.owl = byId.figures.inside; seen.owls = byId.count.textContent;
    byId.label.value = ""; byId.label.listeners.input(); window.listeners.scroll(); seen.again = byId.figures.inside.length;
    console.log(JSON.stringify(seen));
    """
    found = run_script(page, BROWSER.replace("SOURCES", json.dumps(sources)), after)
    assert found["first"] == found["again"] <= 60
    assert (found["count"], found["owls"], found["labels"]) == ("2,001 of 2,001 samples", "1 of 2,001 samples", ["<b>owl</b>", "dog"])
    (figure,) = found["owl"]
    link, caption = figure["inside"]
    image, drawn = link["inside"]
    assert (page.parent / image["attributes"]["src"]).is_file()
    assert (image["attributes"]["loading"], link["attributes"]["href"]) == ("lazy", "javascript%3A1%20%23.png")
    assert drawn["attributes"]["viewBox"] == "0 0 64 48"
    rectangle, name = drawn["inside"]
    assert {side: float(rectangle["attributes"][side]) for side in ("x", "y", "width", "height")} == {"x": 1, "y": 2, "width": 30, "height": 40}
    assert name["inside"] == ["<b>owl</b>"]  # a text, not an element
    assert caption["inside"][1] == "\ncounting · dog\n1 object"


def test_a_point_is_a_cross_of_the_same_size_on_the_page_whatever_the_image_measures(tmp_path: Path) -> None:
    write_gallery([made(tmp_path)], tmp_path / "page.html", title="")
    rows = [{"id": "p", "image": "a", "width": side, "height": side, "objects": [[side / 2, side / 4]], "labels": [0]} for side in (256, 2560)]
    after = f'console.log(JSON.stringify({json.dumps(rows)}.map(row => figure(row, ["dog"]))));'
    figures = run_script(tmp_path / "page.html", BROWSER.replace("SOURCES", json.dumps({"rows": "[]", "labels": "[]"})), after)
    for figure, scale in zip(figures, (1, 10), strict=True):
        cross = figure["inside"][0]["inside"][1]["inside"][0]["attributes"]["d"]
        across, arm_x, down, arm_y = (np.array(part.split(), dtype=float) for part in re.split("[Mhv]", cross)[1:])
        np.testing.assert_allclose(np.concatenate([across, arm_x, down, arm_y]), np.array([122.5, 64, 11, 128, 58.5, 11]) * scale)


def test_the_script_opens_a_page_without_a_document_by_doing_nothing(tmp_path: Path) -> None:
    write_gallery([made(tmp_path)], tmp_path / "page.html", title="")
    assert run_script(tmp_path / "page.html", "", "console.log(1)") == 1


# --- the command -----------------------------------------------------------------------------------------------------
def shown(*words: object) -> None:
    with pytest.raises(SystemExit) as left:
        main(["show", *map(str, words)])
    assert not left.value.code


def test_show_makes_a_gallery_of_all_samples_or_of_the_first(tmp_path: Path) -> None:
    write_samples([made(tmp_path, f"{k}") for k in range(60)], tmp_path / "s.jsonl")
    for words, number in (([], 60), (["--limit", 3], 3)):
        shown(tmp_path / "s.jsonl", "-o", tmp_path / "page.html", *words)
        assert [row["id"] for row in element(tmp_path / "page.html", "rows")] == [str(k) for k in range(number)]


def test_a_file_that_holds_an_answer_anywhere_shows_answers_in_one_file(tmp_path: Path) -> None:
    write_samples([made(tmp_path, f"{k}") for k in range(60)], tmp_path / "s.jsonl")
    rows = (tmp_path / "s.jsonl").read_text().splitlines()
    rows[40] = json.dumps(json.loads(rows[40]) | {"completion": "no box"})
    (tmp_path / "s.jsonl").write_text("\n".join(rows))
    shown(tmp_path / "s.jsonl", "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert (page.count('<img src="data:image/'), page.count("malformed")) == (48, 1)
    assert not thumbnail_folder(tmp_path / "page.html").exists()
