"""The report: whole in one file, well-formed, and what it shows is what it was given."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from perception_r1.evaluation.plots import BARS, BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, bars_svg, curve_svg, ticks
from perception_r1.evaluation.report import write_report
from perception_r1.records import Answer, Truth

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects tags, attributes and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def entry(value: float | None, low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
    return {"value": value, "ci95": None if value is None else [low, high], "n": 1234}


def picture(truth: Truth, before: Answer | None, after: Answer | None, caption: str = "where is it?") -> dict[str, Any]:
    return {"image": Image.new("RGB", (64, 48), "white"), "truth": truth, "before": before, "after": after, "caption": caption}


DOG = Truth(boxes=np.array([[5, 5, 30.0, 25.0]]), labels=("dog",))
FAR = Answer(boxes=np.array([[40, 30, 60.0, 45.0]]), labels=("dog",), bad=1)


def a_report(folder: Path, **changes: Any) -> Page:
    given: dict[str, Any] = {
        "title": "run <1> & more",
        "curves": {"reward": [(step, step**0.5) for step in range(40)], "kl": [(1, 0.2)], "terms/iou": [(0, 1.0), (5, float("nan"))]},
        "metrics_before": {"mean_iou": entry(0.25), "APs": entry(None)},
        "metrics_after": {"mean_iou": entry(0.5), "APs": entry(None)},
        "paired": {"mean_iou": {"value": 0.25, "ci95": [0.2, 0.3]}},
        "pictures": [picture(DOG, FAR, Answer(boxes=DOG.boxes, labels=("dog",)))],
        "notes": ["The SFT held <grounding> & no counting."],
    }
    path = write_report(folder, **(given | changes))
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_report_is_one_whole_file_that_asks_the_network_for_nothing(tmp_path: Path) -> None:
    page = a_report(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]
    assert all(str(attributes["src"]).startswith("data:image/") for attributes in page.all("img"))
    assert not page.all("script") + page.all("link")
    assert "://" not in (tmp_path / "report.html").read_text()
    assert "run <1> & more" in page.text
    assert "The SFT held <grounding> & no counting." in page.text


def test_the_table_holds_both_figures_and_their_paired_difference(tmp_path: Path) -> None:
    page = a_report(tmp_path)
    assert "mean_iou 0.250 [0.000, 1.000] 0.500 [0.000, 1.000] +0.250 [+0.200, +0.300]" in page.text
    assert "APs – – –" in page.text
    assert "1,234 held-out samples" in page.text
    bold = re.findall(r"<b>([+-][\d.]+)</b>", (tmp_path / "report.html").read_text())
    assert bold == ["+0.250"]
    unsure = a_report(tmp_path, paired={"mean_iou": {"value": 0.25, "ci95": [-0.2, 0.3]}})
    assert "+0.250" in unsure.text
    assert not re.search(r"<b>[+-]", (tmp_path / "report.html").read_text())


def test_every_picture_has_truth_before_and_after_side_by_side(tmp_path: Path) -> None:
    nothing = Truth(boxes=np.zeros((0, 4)), labels=())
    points = Truth(points=np.array([[10.0, 10.0]]), labels=("dog",))
    near = Answer(boxes=np.array([[9, 9, 11.0, 11.0]]), labels=("dog",))
    pictures = [picture(DOG, FAR, Answer(boxes=DOG.boxes, labels=("dog",))), picture(nothing, None, Answer()), picture(points, FAR, near)]
    page = a_report(tmp_path, pictures=pictures)
    assert [attributes["alt"] for attributes in page.all("img")] == ["truth", "before", "after"] * 3
    assert "before : 2 boxes, 1 unreadable; 0 of 1 object matched" in page.text
    assert "after : 1 box; 1 of 1 object matched" in page.text
    assert "before : no readable answer" in page.text
    assert "after : says that nothing is there" in page.text
    assert len({attributes["src"] for attributes in page.all("img")[:3]}) == 3


def test_a_page_of_text_is_shown_as_text(tmp_path: Path) -> None:
    page = a_report(tmp_path, pictures=[picture(Truth(text="the <true> text"), None, Answer(text="a guess"))])
    assert "the <true> text" in page.text
    assert "a guess" in page.text
    assert "before : no readable answer" in page.text
    assert [attributes["alt"] for attributes in page.all("img")] == ["page"]


def test_a_curve_is_drawn_where_its_points_are() -> None:
    svg = ElementTree.fromstring(curve_svg([(0, -1.0), (10, 3.0), (20, 1.0)]))
    line = svg.find("polyline")
    assert line is not None
    places = np.array([pair.split(",") for pair in line.attrib["points"].split()], dtype=float)
    np.testing.assert_allclose(places[:, 0], [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT], atol=0.1)
    low, high = -1 - 0.2, 3 + 0.2
    expected = TOP + (high - np.array([-1, 3, 1])) / (high - low) * (HEIGHT - TOP - BOTTOM)
    np.testing.assert_allclose(places[:, 1], expected, atol=0.1)
    labels = [text.text for text in svg.iter("text")]
    assert {"step", "0", "10", "20", "-1", "3"} <= set(labels)


@pytest.mark.parametrize("points", [[(5, 2.0)], [(0, 7.0), (9, 7.0)], [(0, 0.0), (1, 0.0)], [(k, k % 3) for k in range(200)], [(0, 1e-9), (1, 2e-9)]])
def test_any_curve_stays_inside_its_axes(points: list[tuple[float, float]]) -> None:
    svg = ElementTree.fromstring(curve_svg(points))
    for line in svg.iter("polyline"):
        places = np.array([pair.split(",") for pair in line.attrib["points"].split()], dtype=float)
        assert ((places >= [LEFT, TOP]) & (places <= [WIDTH - RIGHT, HEIGHT - BOTTOM])).all()
    assert len(list(svg.iter("polyline"))) == (2 if len(points) >= 30 else 1)


def test_a_curve_without_finite_values_says_so() -> None:
    assert "nothing was logged" in curve_svg([(0, float("nan"))])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 9.7), (1e-7, 3e-7), (0, 1e6), (0.93, 0.94), (-5, -4.9)])
def test_ticks_are_round_evenly_spaced_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert low - 1e-12 <= found[0] <= found[-1] <= high + 1e-12
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert f"{steps[0]:.0e}"[0] in "125"


def test_a_bar_is_as_long_as_its_value_and_a_part_without_one_has_none() -> None:
    svg = ElementTree.fromstring(bars_svg([("person", "n=9", [0.5, None]), ("<b>", "n=1", [1.0, 0.25])], ["first", "second"]))
    bars = [bar for bar in svg.iter("rect") if bar.attrib["height"] != "10"]  # the legend's squares are 10 high
    assert [float(bar.attrib["width"]) for bar in bars] == [BARS * value for value in (0.5, 1.0, 0.25)]
    assert bars[0].attrib["fill"] == bars[1].attrib["fill"] != bars[2].attrib["fill"]
    words = [text.text for text in svg.iter("text")]
    assert {"person", "<b>", "–", "0.5", "0.25", "n=9", "first", "second"} <= set(words)


def test_bars_of_figures_above_one_stay_inside_the_drawing() -> None:
    svg = ElementTree.fromstring(bars_svg([("0", "", [0.4]), ("21+", "", [12.5])], ["only"]))
    widths = [float(bar.attrib["width"]) for bar in svg.iter("rect")]
    np.testing.assert_allclose(widths, [BARS * 0.4 / 12.5, BARS], atol=0.05)
    assert "only" not in [text.text for text in svg.iter("text")]
