"""Pictures: what matches is what brute force says matches, and what is drawn is where it belongs."""

import base64
import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from perception_r1.records import Answer, Truth
from perception_r1.visualize import MATCHED, TRUTH, UNMATCHED, draw, gallery, matched_pairs, picture_to_data_uri

GREY = (120, 120, 120)


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=float).reshape(-1, 4)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


spans = st.tuples(st.integers(0, 6), st.integers(2, 6)).map(lambda span: (span[0], span[0] + span[1]))
placed = st.lists(st.tuples(spans, spans).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1])), max_size=4)


@given(predicted=placed, true=placed)
def test_as_many_boxes_match_as_any_one_to_one_pairing_allows(predicted: list, true: list) -> None:
    answer, truth = Answer(boxes=boxes(*predicted), labels=("",) * len(predicted)), Truth(boxes=boxes(*true), labels=("x",) * len(true))
    pairs = matched_pairs(truth, answer, (20, 20))
    assert len({n for n, _ in pairs}) == len({m for _, m in pairs}) == len(pairs)
    assert all(overlap(answer.boxes[n], truth.boxes[m]) >= 0.5 - 1e-12 for n, m in pairs)  # type: ignore[index]
    slots = [*range(len(true)), *[None] * len(predicted)]
    most = max(
        sum(m is not None and overlap(answer.boxes[n], truth.boxes[m]) >= 0.5 for n, m in enumerate(order))  # type: ignore[index]
        for order in itertools.permutations(slots, len(predicted))
    )
    assert len(pairs) == most


def test_a_point_matches_a_centre_within_five_percent_of_the_diagonal() -> None:
    truth = Truth(points=np.array([[50.0, 50.0]]), labels=("x",))
    reach = 0.05 * math.hypot(100, 80)
    for distance, matched in ((0.0, True), (reach - 0.1, True), (reach + 0.1, False)):
        answer = Answer(boxes=boxes((45 + distance, 45, 55 + distance, 55)), labels=("",))
        assert bool(matched_pairs(truth, answer, (100, 80))) is matched


def has(picture: Image.Image, x: int, y: int, colour: str) -> bool:
    near = np.asarray(picture)[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].reshape(-1, 3)
    return bool((near == ImageColor.getrgb(colour)).all(axis=1).any())


@pytest.mark.parametrize("size, scale", [((64, 48), 5.0), ((640, 480), 1.0)])
def test_truth_and_answers_are_drawn_where_they_belong(size: tuple[int, int], scale: float) -> None:
    unit = np.array(size * 2) / 64
    truth = Truth(boxes=boxes((4, 4, 20, 20)) * unit, labels=("dog",))
    answer = Answer(boxes=boxes((5, 5, 21, 21), (40, 20, 60, 40)) * unit, labels=("dog", "cat"))
    image = Image.new("RGB", size, GREY)
    picture = draw(image, truth=truth, answer=answer, names=False)
    assert picture.size == (round(size[0] * scale), round(size[1] * scale))
    truth_4, right_4, wrong_4 = (scale * row for row in (truth.boxes[0], *answer.boxes))  # type: ignore[index]
    assert has(picture, int(truth_4[0]), int(truth_4[3] + truth_4[1]) // 2, TRUTH)
    assert has(picture, int(right_4[2]), int(right_4[3] + right_4[1]) // 2, MATCHED)
    assert has(picture, int(wrong_4[0]) + 2, int(wrong_4[1]), UNMATCHED)
    assert not has(picture, int(wrong_4[0] + wrong_4[2]) // 2, int(wrong_4[1] + wrong_4[3]) // 2, UNMATCHED)
    assert image.getcolors() == [(size[0] * size[1], GREY)]  # the image itself is untouched


def test_nothing_a_page_and_a_caption_are_drawn_too() -> None:
    image = Image.new("RGB", (400, 30), GREY)
    for truth in (None, Truth(boxes=boxes(), labels=()), Truth(text="a page"), Truth(points=np.zeros((0, 2)), labels=())):
        assert draw(image, truth=truth, answer=Answer()).getcolors() == [(400 * 30, GREY)]
    tall = draw(image, truth=None, caption="some words " * 20)
    assert tall.width == 400
    assert tall.height > 30
    assert tall.crop((0, 0, 400, 30)).getcolors() == [(400 * 30, GREY)]


def test_words_longer_than_the_picture_stay_inside_it() -> None:
    truth = Truth(boxes=boxes((60, 44, 64, 48)), labels=("a very long name of a very small thing 长",))
    assert draw(Image.new("RGB", (64, 48)), truth=truth, answer=Answer(boxes=truth.boxes, labels=truth.labels)).size == (320, 240)


@pytest.mark.parametrize("size, kind", [((64, 48), "PNG"), ((800, 600), "JPEG")])
def test_a_data_address_holds_the_picture(size: tuple[int, int], kind: str) -> None:
    head, _, body = picture_to_data_uri(Image.new("RGB", size, GREY)).partition(",")
    with Image.open(io.BytesIO(base64.b64decode(body))) as opened:
        assert (opened.format, opened.size) == (kind, size)
    assert head == f"data:image/{kind.lower()};base64"


def test_a_gallery_escapes_what_it_is_given() -> None:
    page = "".join(gallery([(Image.new("RGB", (9, 9)), '"><script>1 & 2')], "<i>title</i>"))
    assert "<script>" not in page
    assert "<i>title" not in page
    assert page.count("<img") == 1
