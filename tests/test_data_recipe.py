"""Data recipes: the paper's four files in one command, in its sizes, and a manifest from which each can be made again."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.published import publish, publish_coco, publish_pages, publish_pixmo, write_pixmo
from tests.test_downloads import Server, picture, server
from typer.testing import CliRunner

from perception_r1 import __version__
from perception_r1.cli import app
from perception_r1.data.check import check_file
from perception_r1.data.mixture import load_data
from perception_r1.data.pages import page_samples
from perception_r1.data.pixmo import pixmo_links, pixmo_samples
from perception_r1.data.readers import READERS
from perception_r1.data.recipe import LISTED, Making, make_files, read_recipe
from perception_r1.data.samples import read_samples
from perception_r1.records import BadData

RECIPES = Path(__file__).parents[1] / "src" / "perception_r1" / "recipes"
PAPER = (RECIPES / "data" / "paper.yaml").read_text(encoding="utf-8")

__all__ = ["server"]  # a fixture


def sizes(scale: int = 1) -> dict[str, int]:
    """What the paper's table says: RefCOCO/+/g 5k, PageOCR 5k, PixMo-Count 10k, COCO2017 110k."""
    return {name: number // scale for name, number in {"refcoco": 5000, "pages": 5000, "pixmo": 10_000, "coco": 110_000}.items()}


@pytest.fixture
def small(tmp_path: Path) -> str:
    """The paper's recipe with a thousandth of its sizes."""
    file = tmp_path / "small.yaml"
    file.write_text(re.sub(r"sample: (\d+)k", r"sample: \1", PAPER))
    return str(file)


def recipe(*words: Any) -> list[str]:
    ran = CliRunner().invoke(app, ["data", "recipe", *map(str, words)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.stdout.splitlines()


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_papers_recipe_has_its_sizes_and_names_what_its_trainings_read() -> None:
    plans = {plan.name: plan for plan in read_recipe("paper")}
    assert {name: plan.sample for name, plan in plans.items()} == sizes()
    assert plans["refcoco"].sources == ("refcoco", "refcoco+", "refcocog")
    trainings = {"refcoco": "grounding", "pages": "ocr", "pixmo": "counting", "coco": "detection"}
    for name, training in trainings.items():
        assert f"data/{plans[name].file}" == yaml.safe_load((RECIPES / f"{training}.yaml").read_text())["data"]
        assert plans[name].get


def test_one_command_makes_all_four_files_that_pass_the_check(small: str, tmp_path: Path) -> None:
    publish(tmp_path / "data")
    said = recipe(small, "--root", tmp_path / "data", "-o", tmp_path / "out")
    assert len(said) == 5
    made = manifest(tmp_path / "out")
    for name, task in (("refcoco", "grounding"), ("pages", "ocr"), ("pixmo", "counting"), ("coco", "detection")):
        report = check_file(tmp_path / "out" / made[name]["file"])
        assert report.problems.problems == []
        assert dict(report.samples) == {task: sizes(1000)[name]} == made[name]["tasks"]
        assert any(f"wrote {sizes(1000)[name]} samples, of {made[name]['found']}" in line and made[name]["file"] in line for line in said)
    assert [made[name]["found"] for name in ("refcoco", "pages", "pixmo", "coco")] == [9, 7, 12, 120]
    assert sorted(made["refcoco"]["sources"]) == ["refcoco+/train", "refcoco/train", "refcocog/train"]
    assert set(made["refcoco"]["sources"].values()) == {1, 2}  # five thirds each


def test_the_manifest_says_what_was_read_what_was_made_and_what_was_left_out(small: str, tmp_path: Path) -> None:
    root, output = tmp_path / "data", tmp_path / "out"
    publisher = publish(root)
    gone = publisher.row(picture("black"), [(1, 1)])
    (publisher.images / f"{gone}.jpg").unlink()
    publisher.row(picture("white"), None, count=3)
    write_pixmo(publisher)
    (root / "pages" / "untold.png").write_bytes(picture("grey"))
    recipe(small, "--root", root, "-o", output, "--seed", 4)
    made = manifest(output)
    for name, entry in made.items():
        file = output / entry["file"]
        assert (entry["sha256"], entry["bytes"], entry["samples"]) == (sha256(file), file.stat().st_size, len(file.read_text().splitlines()))
        assert entry["seed"] == 4
        assert entry["asked"] == sizes(1000)[name]
        assert entry["versions"]["perception-r1"] == __version__
        for source in entry["read"]:
            assert (source["sha256"], source["bytes"]) == (sha256(root / source["path"]), (root / source["path"]).stat().st_size)
    read = {name: {source["path"] for source in entry["read"]} for name, entry in made.items()}
    assert read["refcoco"] == {f"{name}/{file}" for name, by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))
                               for file in (f"refs({by}).p", "instances.json")}  # fmt: skip
    assert read["coco"] == {"coco/annotations/instances_train2017.json"}
    assert read["pixmo"] == {"pixmo/train-00000-of-00001.parquet"}
    assert read["pages"] == {path.relative_to(root).as_posix() for path in (root / "pages").iterdir()}
    assert made["pixmo"]["reports"]["pixmo"] == {"rows": 14, "no_points": 1, "no_image": 1}
    assert made["pages"]["reports"]["pages"] == {"pages": 8, "no_text": 1}
    assert made["coco"]["reports"]["coco"] == {"images": 120, "annotations": 120, "crowd": 0, "zero_area": 0, "uncountable": 0}
    assert len(made["pixmo"]["left_out_first"]) == 2
    assert gone in " ".join(made["pixmo"]["left_out_first"])
    assert "untold" in made["pages"]["left_out_first"][0]


def test_the_same_sources_make_the_same_manifest_and_another_seed_another_sample(small: str, tmp_path: Path) -> None:
    publish(tmp_path / "data")
    for folder, words in (("a", []), ("b", ["--seed", 0]), ("c", ["--seed", 1])):
        recipe(small, "--root", tmp_path / "data", "-o", tmp_path / folder, *words)
    a, b = ((tmp_path / folder / "manifest.json").read_text() for folder in "ab")
    assert a == b
    assert manifest(tmp_path / "a")["coco"]["sha256"] != manifest(tmp_path / "c")["coco"]["sha256"]


def test_only_makes_those_and_leaves_the_rest_of_the_folder_alone(small: str, tmp_path: Path) -> None:
    publish_coco(tmp_path / "data")
    recipe(small, "--root", tmp_path / "data", "-o", tmp_path, "--only", "coco")
    before = manifest(tmp_path)
    assert list(before) == ["coco"]
    publish_pages(tmp_path / "data")
    publish_pixmo(tmp_path / "data")
    recipe(small, "--root", tmp_path / "data", "-o", tmp_path, "--only", "pages, pixmo")
    assert list(manifest(tmp_path)) == ["coco", "pages", "pixmo"]
    assert manifest(tmp_path)["coco"] == before["coco"]


def test_missing_sources_are_one_error_that_names_all_and_where_to_get_them(small: str, tmp_path: Path) -> None:
    publish_coco(tmp_path / "data")
    publish_pages(tmp_path / "data")
    words = ["data", "recipe", small, "--root", str(tmp_path / "data"), "-o", str(tmp_path / "out")]
    with pytest.raises(BadData) as problem:
        CliRunner().invoke(app, words, catch_exceptions=False)
    said = str(problem.value)
    assert "\n" not in said
    for path in ("refcoco", "refcoco+", "refcocog", "train2014", "pixmo", "pixmo/images"):
        assert re.search(rf"{re.escape(str(tmp_path / 'data' / path))}[,;) ]", said)
    assert "page of refer" in said
    assert "allenai/pixmo-count" in said
    assert "docs/data.md" in said
    assert not re.search(r"\b(coco|pages): ", said)
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_too_small_is_named_and_what_was_made_before_stays(small: str, tmp_path: Path) -> None:
    publish_pages(tmp_path / "data")
    publish_coco(tmp_path / "data", count=20)
    plans, making = read_recipe(small, only=["pages", "coco"]), Making(root=tmp_path / "data", output=tmp_path / "out")
    with pytest.raises(BadData, match="coco: sample: found 20 samples, expected at least the 110"):
        list(make_files(plans, making))
    assert list(manifest(tmp_path / "out")) == ["pages"]


def test_of_many_sources_the_manifest_holds_the_hash_of_their_list(small: str, tmp_path: Path) -> None:
    publish_pages(tmp_path / "data", count=LISTED)
    recipe(small, "--root", tmp_path / "data", "-o", tmp_path, "--only", "pages")
    (read,) = manifest(tmp_path)["pages"]["read"]
    files = sorted((tmp_path / "data" / "pages").iterdir())
    printed = "".join(f"{sha256(file)}  pages/{file.name}\n" for file in files)
    expected = {"path": "pages", "files": 2 * LISTED, "bytes": sum(file.stat().st_size for file in files)}
    assert read == expected | {"sha256_of_list": hashlib.sha256(printed.encode()).hexdigest()}


def test_bad_expressions_are_an_error_or_left_out_and_counted(small: str, tmp_path: Path) -> None:
    publish(tmp_path / "data")
    (tmp_path / "data" / "train2014" / f"COCO_train2014_{7:012}.jpg").unlink()
    plans = read_recipe(small, only=["refcoco"])
    with pytest.raises(BadData, match="3 of 3 expressions have no image"):
        list(make_files(plans, Making(root=tmp_path / "data", output=tmp_path)))
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps({"files": {"all": {"file": "a.jsonl", "reader": "refcoco", "from": "refcoco", "options":
                                                 {"split": "all", "by": "unc", "images": "train2014"}}}}))  # fmt: skip
    (entry,) = make_files(read_recipe(str(own)), Making(root=tmp_path / "data", output=tmp_path, skip_bad=True))
    assert entry["samples"] == 2
    assert entry["reports"]["refcoco"]["left out missing_image"] == 4
    assert len(entry["left_out_first"]) == 4


BAD_RECIPES: dict[str, tuple[Any, str]] = {
    "a list": ([1], "expected `seed` and `files`"),
    "another key": ({"files": {}, "sedd": 1}, "expected `seed` and `files`"),
    "no reader": ({"files": {"a": {"file": "a.jsonl", "from": "x"}}}, "a: found .* expected file, reader and from"),
    "unknown reader": ({"files": {"a": {"file": "a.jsonl", "from": "x", "reader": "voc"}}}, "found reader 'voc'.* expected one of refcoco, coco"),
    "unknown option": ({"files": {"a": {"file": "a", "from": "x", "reader": "coco", "options": {"spilt": 1}}}}, "option 'spilt' is not known"),
    "no number": ({"files": {"a": {"file": "a", "from": "x", "reader": "pages", "options": {"dpi": "high"}}}}, "dpi: found 'high'"),
    "a list where one is meant": ({"files": {"a": {"file": "a", "from": "x", "reader": "coco", "options": {"split": ["a", "b"]}}}}, "one value"),
    "no size": ({"files": {"a": {"file": "a", "from": "x", "reader": "coco", "sample": "5q"}}}, "found '5q', expected a whole number"),
    "a file twice": ({"files": {n: {"file": "a", "from": "x", "reader": "coco"} for n in "ab"}}, "found a file name twice"),
}


@pytest.mark.parametrize("content, words", BAD_RECIPES.values(), ids=BAD_RECIPES)
def test_a_wrong_recipe_is_named(content: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(BadData, match=words):
        read_recipe(str(tmp_path / "r.yaml"))


def test_an_unknown_recipe_and_an_unknown_file_of_one_are_named() -> None:
    with pytest.raises(BadData, match="'papper' is not known: expected a YAML file or one of paper"):
        read_recipe("papper")
    with pytest.raises(BadData, match="found no file 'voc', expected one of refcoco, pages, pixmo, coco"):
        read_recipe("paper", only=["voc"])


# --- samples drawn before they are downloaded ------------------------------------------------------------------------
@pytest.fixture
def linked(server: Server, tmp_path: Path) -> Path:
    """PixMo-Count of 40 rows whose images are on a server, every fourth link dead."""
    publisher = publish_pixmo(tmp_path / "data", count=0)
    for k in range(40):
        content = picture(f"#{4 * k:02x}80c0")
        name = publisher.row(content, [(1, 1)], ("birds", "cups")[k // 20], image_url=server.url(f"/{k}"))
        (publisher.images / f"{name}.jpg").unlink()
        if k % 4:
            server.answers[f"/{k}"] = content
    write_pixmo(publisher)
    return tmp_path / "data" / "pixmo"


def test_a_sample_is_drawn_before_its_images_are_fetched_and_dead_links_leave_it_smaller(linked: Path, server: Server, tmp_path: Path) -> None:
    words = ["data", "pixmo", linked, "--images", linked / "images", "--download", "--sample", 12, "--seed", 3, "-o", tmp_path / "a.jsonl"]
    said = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False).stdout
    drawn = {link.url.rpartition("/")[2] for link in pixmo_links(linked, drawn=(12, 3))}
    assert len(drawn) == 12
    assert {path.strip("/") for path in server.asked} == drawn
    alive = {k for k in drawn if int(k) % 4}
    assert 0 < len(alive) < 12  # the seed draws some of each
    samples = list(read_samples(tmp_path / "a.jsonl"))
    assert len(samples) == len(alive) == len(list((linked / "images").glob("*.png")))
    assert f"wrote {len(alive)} samples" in said
    for count in ("links 12", f"downloaded {len(alive)}", f"dead {12 - len(alive)}", "rows 40", "not_drawn 28", f"no_image {12 - len(alive)}"):
        assert re.search(rf"\b{count}\b", said)


def test_a_draw_keeps_each_labels_share_and_follows_from_its_seed(linked: Path) -> None:
    draws = [pixmo_links(linked, drawn=(10, seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    for links in draws:
        assert sum(int(link.url.rpartition("/")[2]) < 20 for link in links) == 5
    with pytest.raises(BadData, match="found 40 samples, expected at least the 41"):
        pixmo_links(linked, drawn=(41, 0))


def test_a_recipe_downloads_its_sample_and_says_what_was_dead(small: str, linked: Path, server: Server, tmp_path: Path) -> None:
    for path in (linked / "images").iterdir():
        path.unlink()
    (linked / "images").rmdir()
    recipe(small, "--root", linked.parent, "-o", tmp_path, "--only", "pixmo", "--download")
    entry = manifest(tmp_path)["pixmo"]
    assert sum(server.asked.values()) == 10 == entry["downloads"]["pixmo"]["links"]
    dead = entry["downloads"]["pixmo"]["dead"]
    assert entry["samples"] == 10 - dead == len(list(read_samples(tmp_path / "pixmo_train.jsonl")))
    assert entry["reports"]["pixmo"]["not_drawn"] == 30
    assert entry["reports"]["pixmo"].get("no_image", 0) == dead


# --- shorthands ------------------------------------------------------------------------------------------------------
def test_the_shorthands_of_pixmo_and_pages_read_the_same_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_pixmo(tmp_path)
    publish_pages(tmp_path)
    told = [*pixmo_samples(tmp_path / "pixmo", tmp_path / "pixmo" / "images").samples, *page_samples(tmp_path / "pages").samples]
    spec = f"pixmo:{tmp_path}/pixmo?split=train&images={tmp_path}/pixmo/images&any_hash=true,pages:{tmp_path}/pages?texts=.txt"
    assert [(s.id, s.image_path.resolve()) for s in load_data(spec)] == [(s.id, s.image_path.resolve()) for s in told]
    assert capsys.readouterr().err == ""
    (tmp_path / "pages" / "0.txt").unlink()
    load_data(f"pages:{tmp_path}/pages")
    assert "pages 7, no_text 1; the first left out: " in capsys.readouterr().err


@pytest.mark.parametrize("spec, words", [("pixmo:x?any_hash=yes", "found 'yes', expected true or false"), ("pages:x?dpi=a", "dpi: found 'a'")])
def test_a_bad_option_of_a_shorthand_is_named(spec: str, words: str) -> None:
    with pytest.raises(BadData, match=words):
        load_data(spec)
    assert set(READERS) == {"refcoco", "coco", "pixmo", "pages", "scenes"}
