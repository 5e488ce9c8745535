"""The report of evaluations: opened in a real browser, on hostile answers, without its data, beside the paper, as Markdown."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser
from tests.browser import watched_page
from tests.test_report import Page

from perception_r1.data.coco import coco_samples
from perception_r1.data.samples import write_samples
from perception_r1.dialects import frame_of
from perception_r1.evaluation.page import fenced, in_html, in_markdown
from perception_r1.evaluation.report import write_runs_report
from perception_r1.evaluation.run import evaluate
from perception_r1.records import BadData, Sample, Truth
from perception_r1.tasks import make_task

TRUE = "dog: [5, 5, 30, 25]"
HOSTILE = {
    "s0": TRUE,
    "s1": "<script>window.hacked = true; document.title = 'hacked'</script><img src=x onerror='window.hacked = true'>",
    "s2": "</pre></section><h1>gone</h1>" + "A" * 1_000_000,
    "s3": "dog: [5, 5, 30, 25]\n" * 9_000,
    "s4": 'dog"><img src="http://example.com/spy.png">: [40, 30, 60, 45]',
    "s5": "\x00\x1b[31m\u202eback ``` | # *stars* <b>",
}


def dogs(folder: Path, count: int, task: str = "detection", truth: Truth | None = None) -> list[Sample]:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), "wheat").save(folder / "dog.png")
    truth = Truth(boxes=np.array([[5, 5, 30.0, 25.0]]), labels=("dog",)) if truth is None else truth
    given: dict[str, Any] = {"task": task, "image": "dog.png", "width": 64, "height": 48, "truth": truth, "root": folder}
    return [Sample(id=f"s{index}", query="dog <i>" if task != "detection" else "", **given) for index in range(count)]


def a_run(folder: Path, answers: dict[str, str], samples: list[Sample] | None = None, name: str = "run") -> Path:
    """The folder of an evaluation of these answers, its data beside it."""
    samples = samples or dogs(folder, 6)
    (folder / name).mkdir(parents=True)
    data, predictions = folder / "data.jsonl", folder / name / "predictions.jsonl"
    write_samples(samples, data)
    predictions.write_text("".join(json.dumps({"id": key, "completion": text}) + "\n" for key, text in answers.items()))
    evaluate(data=str(data), predictions=predictions, output=folder / name, dialect="plain", resamples=20, ap_resamples=2)
    return folder / name


def test_characters_that_cannot_be_shown_or_encoded_are_replaced() -> None:
    for shown in (in_html, in_markdown, fenced):
        text = shown("a\ud800b\x00\x1b[31m\u202ec\u2066")
        assert re.sub(r"[\w`\n\\]", "", text) == "\ufffd\ufffd\ufffd[\ufffd\ufffd"
        assert text.encode()


def report(folders: list[Path], output: Path, **options: Any) -> tuple[Page, str]:
    """The HTML report as it parses, and the Markdown."""
    html, markdown = write_runs_report(folders, output, **options)
    assert (html, markdown) == (output, output.with_suffix(".md"))
    return Page(html.read_text(encoding="utf-8")), markdown.read_text(encoding="utf-8")


def test_the_report_opens_without_an_error_and_shows_every_picture(browser: Browser, tmp_path: Path) -> None:
    runs = [a_run(tmp_path, HOSTILE, name="bad"), a_run(tmp_path, {f"s{index}": TRUE for index in range(6)}, name="good")]
    report(runs, tmp_path / "report.html")
    with watched_page(browser) as watched:
        watched.open_file(tmp_path / "report.html")
        page = watched.page
        page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
        assert (watched.problems, watched.broken_images()) == ([], [])
        assert page.locator("img").count() == 12
        assert page.locator("svg").count() > 0
        assert [address for address in watched.asked if not address.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
        assert page.evaluate("window.hacked") is None
        assert page.title() == "Perception-R1: 2 evaluations"
        assert page.locator("h1").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page is wider than the window"


def test_a_mistake_in_an_escape_could_run_nothing_and_ask_nobody(browser: Browser, tmp_path: Path) -> None:
    report([a_run(tmp_path, HOSTILE)], tmp_path / "report.html")
    inside = "<script>window.hacked = true</script><img src='https://example.com/spy.png' onerror='window.hacked = true'>"
    (tmp_path / "broken.html").write_text((tmp_path / "report.html").read_text(encoding="utf-8").replace("</body>", f"{inside}</body>"))
    with watched_page(browser) as watched:
        watched.open_file(tmp_path / "broken.html")
        assert watched.page.evaluate("window.hacked") is None
        assert sum("Content Security Policy" in problem for problem in watched.problems) >= 2
        assert "request failed: https://example.com/spy.png" in watched.problems


def test_hostile_answers_are_text_of_a_bounded_length(tmp_path: Path) -> None:
    page, markdown = report([a_run(tmp_path, HOSTILE)], tmp_path / "report.html")
    assert not page.all("script") + page.all("iframe") + page.all("a")
    assert all(str(attributes["src"]).startswith("data:image/") for attributes in page.all("img"))
    for text in (page.text, " ".join(markdown.split())):
        assert "<script>window.hacked = true" in text
        assert "A… (the first 2,000 of 1,000,029 characters)" in text
        assert re.search(r"9000 boxes \\?\(the first 300 are drawn\\?\); 1 of 1 object matched", text)
        assert not re.search("[\x00-\x08\x1b\u202e\ud800]", text)
    fence = re.search(r"^(`{4,})text\n.*``` \| # \*stars\* <b>\n\1$", markdown, re.MULTILINE)
    assert fence, "an answer with backticks needs a longer fence"
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_the_worst_answers_come_first_and_no_more_than_asked_for(tmp_path: Path) -> None:
    answers = {"s0": TRUE, "s1": "no box at all", "s2": "dog: [40, 30, 60, 45]", "s3": TRUE, "s4": TRUE, "s5": f"{TRUE}\ndog: [40, 30, 60, 45]"}
    page, _ = report([a_run(tmp_path, answers)], tmp_path / "report.html", worst=3)
    order = re.findall(r"(s\d): f1@0\.5 (\d\.\d{3})", page.text)
    assert order == [("s1", "0.000"), ("s2", "0.000"), ("s5", "0.667")]
    assert "2 of the worst answers by f1@0.5, after 1 that could not be read; 6 in all" in page.text
    assert "could not be read: expected boxes as plain writes them, found 'no box at all'" in page.text
    assert "1 box; 0 of 1 object matched" in page.text
    assert "2 boxes; 1 of 1 object matched" in page.text
    unread, _ = report([a_run(tmp_path, dict.fromkeys(answers, "no box"), name="unread")], tmp_path / "report.html", worst=4)
    assert len(unread.all("img")) == 4
    nothing, _ = report([tmp_path / "run"], tmp_path / "report.html", worst=0)
    assert "Worst answers" not in nothing.text
    assert not nothing.all("img")


def test_a_metric_where_less_is_better_ranks_the_other_way(tmp_path: Path) -> None:
    samples = dogs(tmp_path, 3, "ocr", Truth(text="the <true> text"))
    page, markdown = report([a_run(tmp_path, {"s0": "the <true> text", "s1": "the", "s2": "the <true> tex"}, samples)], tmp_path / "report.html")
    assert re.findall(r"(s\d): edit_distance", page.text) == ["s1", "s2", "s0"]
    assert page.text.count("the <true> text") > 3
    assert "```text\nthe <true> tex\n```" in markdown
    assert [attributes["alt"] for attributes in page.all("img")] == ["page"] * 3


def test_data_that_changed_or_went_away_is_said_in_place_of_pictures(tmp_path: Path) -> None:
    folder = a_run(tmp_path, HOSTILE)
    shown, _ = report([folder], tmp_path / "report.html")
    assert len(shown.all("img")) == 6
    text = (tmp_path / "data.jsonl").read_text()
    (tmp_path / "data.jsonl").write_text(text.replace("30.0", "31.0"))
    changed, _ = report([folder], tmp_path / "report.html")
    assert "No pictures" in changed.text
    assert "is not what the run was measured on" in changed.text
    assert not changed.all("img")
    assert "s1: f1@0.5 0.000" in changed.text
    (tmp_path / "data.jsonl").write_text(text)
    (tmp_path / "dog.png").unlink()
    imageless, _ = report([folder], tmp_path / "report.html")
    assert imageless.text.count("no picture: ") == 6
    (tmp_path / "data.jsonl").unlink()
    gone, _ = report([folder], tmp_path / "report.html")
    assert "No pictures: the samples could not be read again" in gone.text
    (folder / "per_sample.jsonl").unlink()
    old, _ = report([folder], tmp_path / "report.html")
    assert "No answers to show" in old.text


def test_markdown_holds_every_figure_of_the_html(data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    samples = coco_samples(data_folder("coco_val206"), "detection").samples[:30]
    task = make_task("detection", dialect="plain")
    answers = {sample.id: task.write(sample, frame_of(sample.width, sample.height, task.dialect)) for sample in samples[:20]}
    page, markdown = report([a_run(tmp_path, answers, samples)], tmp_path / "report.html", worst=2)
    text = re.sub(r"\\(.)", r"\1", markdown)
    figures = re.findall(r"\d+\.\d+", re.sub(r"<svg.*?</svg>", "", (tmp_path / "report.html").read_text(), flags=re.DOTALL).partition("</head>")[2])
    assert len(figures) > 700
    assert sorted(set(figures) - set(re.findall(r"\d+\.\d+", text)) - {figure for figure in figures if "base64" in figure}) == []
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    assert len(tables) > 10
    assert all(len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1 for table in tables), "a row with other cells than its head"
    assert "person" in markdown
    assert "By class" in page.text
    assert "By size" in page.text


def test_runs_are_compared_with_the_first_and_other_data_is_not(tmp_path: Path) -> None:
    good = {f"s{index}": TRUE for index in range(6)}
    first, second = a_run(tmp_path, good | {"s5": "none"}, name="first"), a_run(tmp_path, good, name="second")
    page, markdown = report([first, second], tmp_path / "report.html")
    for text in (page.text, re.sub(r"\\(.)", r"\1", markdown)):
        assert f"{second} minus {first}, on the same samples" in text
        assert "not comparable" not in text
    assert re.search(r"f1@0\.5 \+0\.\d{3} \[", page.text)
    other = a_run(tmp_path / "elsewhere", good, dogs(tmp_path / "elsewhere", 7))
    page, _ = report([first, other], tmp_path / "report.html")
    assert "were measured on different data: their figures are not comparable" in page.text
    assert "minus" not in page.text


def test_ap_of_other_numbers_of_images_is_warned_of(tmp_path: Path) -> None:
    """COCO's AP is higher of fewer images, so two runs of 6 and of 3 do not compare, the same data or not."""
    good = {f"s{index}": TRUE for index in range(6)}
    whole, again = a_run(tmp_path, good, name="whole"), a_run(tmp_path, good, name="again")
    page, _ = report([whole, again], tmp_path / "report.html")
    assert "Do not compare the AP" not in page.text
    assert "COCO's AP depends on how many images it is of; with few it is too high: compare it on the same images only." in page.text
    few = a_run(tmp_path / "few", {f"s{index}": TRUE for index in range(3)}, dogs(tmp_path / "few", 3))
    page, markdown = report([whole, few], tmp_path / "report.html")
    for text in (page.text, " ".join(re.sub(r"\\(.)", r"\1", markdown).split())):
        assert f"Do not compare the AP of these runs, of different numbers of images ({whole} 6, {few} 3)." in text
    others = a_run(tmp_path / "other", good, dogs(tmp_path / "other", 6, "grounding"))
    page, _ = report([others], tmp_path / "report.html")
    assert "COCO's AP depends" not in page.text


def test_only_the_main_metrics_have_an_adjusted_p_and_the_report_says_which(tmp_path: Path) -> None:
    good = {f"s{index}": TRUE for index in range(6)}
    first, second = a_run(tmp_path, good | {"s5": "none"}, name="first"), a_run(tmp_path, good, name="second")
    page, _ = report([first, second], tmp_path / "report.html")
    assert "Tested are the main metrics (f1@0.5, AP): Holm adjusts their p for how many they are." in page.text
    shown = page.text.partition("metric paired difference p p (Holm)")[2]
    assert re.match(r" f1@0\.5 \+0\.\d{3} \[[^]]+\] 1\.0000 1\.0000 AP \+0\.\d{3} \[[^]]+\] 1\.0000 1\.0000 AP50 ", shown)
    assert re.search(r"answer_length \+\d+\.\d{3} \[[^]]+\] 1\.0000 – ", shown)


def test_parts_of_the_data_show_the_intervals_of_rates_and_older_files_still_load(tmp_path: Path) -> None:
    folder = a_run(tmp_path, {f"s{index}": TRUE for index in range(6)}, dogs(tmp_path, 6, "grounding"))
    page, _ = report([folder], tmp_path / "report.html")
    assert "small 6 1.000 [0.610, 1.000]" in page.text
    found = json.loads((folder / "metrics.json").read_text())
    assert found["breakdown"]["size"]["small"].pop("ci95")["acc@0.5"] == pytest.approx([0.6097, 1.0], abs=1e-4)
    (folder / "metrics.json").write_text(json.dumps(found))
    older, _ = report([folder], tmp_path / "report.html")
    assert "small 6 1.000 1.000 1.000" in older.text


def test_strict_reading_stands_beside_tolerant_reading(tmp_path: Path) -> None:
    chatty = {f"s{index}": f"{TRUE}\nThat is all." for index in range(6)}
    folder = a_run(tmp_path, chatty)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["metrics"]["f1@0.5"]["value"] == 1
    assert metrics["strict"]["f1@0.5"]["value"] == 0
    page, _ = report([folder], tmp_path / "report.html")
    assert f"metric {folder} {folder}, strict" in page.text
    assert "f1@0.5 1.000 [0.610, 1.000] 0.000 [0.000, 0.390]" in page.text


def test_a_training_run_gives_its_measures_before_and_after(tmp_path: Path) -> None:
    before, after = {f"s{index}": "none" for index in range(6)}, {f"s{index}": TRUE for index in range(6)}
    run = tmp_path / "trained"
    for name, answers in (("before", before), ("after", after)):
        a_run(tmp_path, answers, name=f"trained/{name}")
    found = json.loads((run / "after" / "metrics.json").read_text())
    (run / "metrics.json").write_text(
        json.dumps(found | {"before": json.loads((run / "before" / "metrics.json").read_text())["metrics"], "paired": {}})
    )
    page, _ = report([run], tmp_path / "report.html")
    assert f"{run} (after) minus {run} (before), on the same samples" in page.text
    assert f"Worst answers of {run} (before)" in page.text
    for when in ("before", "after"):
        (run / when / "metrics.json").unlink()
        (run / when / "per_sample.jsonl").unlink()
    alone, _ = report([run], tmp_path / "report.html")
    assert "f1@0.5 0.000 [0.000, 0.390]" in alone.text


def test_general_benchmarks_alone_or_beside_a_run_stand_in_the_papers_table(tmp_path: Path) -> None:
    folder = tmp_path / "general"
    folder.mkdir()
    (folder / "general.json").write_text('{"mmstar": {"average": 0.4625}, "<mine>": {"acc": 0.123}}')
    (folder / "general-run.json").write_text('{"model": "somebody/their-model"}')
    page, markdown = report([folder], tmp_path / "report.html")
    assert f"{folder} somebody/their-model – – – 0.4625 mmstar: average" in page.text
    assert "<mine>: acc 0.123" in page.text
    assert "0.4625" in markdown
    (folder / "general.json").write_text("[]")
    with pytest.raises(BadData, match="general"):
        write_runs_report([folder], tmp_path / "report.html")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"task": "ocr"}'])
def test_a_folder_without_usable_metrics_is_one_line(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(BadData, match=r"metrics\.json") as error:
        write_runs_report([tmp_path], tmp_path / "report.html")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_the_output_is_html_and_the_markdown_lies_beside_it(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"expected a name that ends in \.html; the Markdown goes beside it as out\.md"):
        write_runs_report([a_run(tmp_path, HOSTILE)], tmp_path / "out.md")
