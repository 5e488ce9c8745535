"""What reports, pictures and cards say: a match where the reward knows one, an answer's number never the truth's, no other model's limits."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.pages import colour_share
from tests.test_report import FAR, a_report, picture
from tests.test_runs_report import a_run, dogs, report

from perception_r1.evaluation.failures import true_objects, verdict
from perception_r1.evaluation.score import ScoreSettings, pictures
from perception_r1.policy import WEIGHTS, is_bundled, tiny
from perception_r1.records import Answer, Frame, Sample, Truth
from perception_r1.tasks import TASKS, make_task
from perception_r1.training import grpo, sft
from perception_r1.training.comparison import Comparison
from perception_r1.visualize import MATCHED, MATCHES_NOT, UNMATCHED, draw, matched_pairs

SIZE = (100, 100)
FRAME = Frame(width=100, height=100, seen_width=100, seen_height=100)
TRUE = Truth(boxes=np.array([[20.0, 20, 60, 60]]), labels=("dog",))
NEAR = Answer(boxes=np.array([[38.0, 38, 44, 44]]), labels=("dog",))
"""A small box in the middle of a large one: IoU 0.02, and a centre that earns nearly all of the counting reward."""


# --- pictures agree with the reward ----------------------------------------------------------------------------------
def test_a_counting_box_that_earns_reward_is_drawn_as_a_match() -> None:
    earned = make_task("counting").terms(NEAR, TRUE, FRAME)["distance"]
    assert earned > 0.9
    assert matched_pairs(TRUE, NEAR, SIZE, "counting") == [(0, 0)]
    assert matched_pairs(TRUE, NEAR, SIZE) == matched_pairs(TRUE, NEAR, SIZE, "grounding") == []
    drawn = draw(
        Image.new("RGB", SIZE, "white"), truth=TRUE, answer=NEAR, names=False, task="counting"
    )
    assert colour_share(drawn, MATCHED) > 0
    assert colour_share(drawn, UNMATCHED) == 0


spans = st.tuples(st.integers(0, 70), st.integers(2, 30)).map(
    lambda span: (span[0], span[0] + span[1])
)
boxes = st.lists(
    st.tuples(spans, spans).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1])), max_size=4
)


@given(predicted=boxes, true=boxes)
def test_as_much_is_earned_in_counting_as_its_drawn_matches_are_worth(
    predicted: list, true: list
) -> None:
    answer = Answer(
        boxes=np.array(predicted, dtype=float).reshape(-1, 4), labels=("x",) * len(predicted)
    )
    truth = Truth(boxes=np.array(true, dtype=float).reshape(-1, 4), labels=("x",) * len(true))
    pairs = matched_pairs(truth, answer, SIZE, "counting")
    earned = make_task("counting").terms(answer, truth, FRAME)["distance"] * max(
        len(predicted), len(true)
    )
    worth = 0.0
    for n, m in pairs:
        centre, middle = (np.array(box).reshape(2, 2).mean(0) for box in (predicted[n], true[m]))
        half = np.hypot(true[m][2] - true[m][0], true[m][3] - true[m][1]) / 2
        worth += 1 - np.hypot(*(centre - middle)) / half
    if predicted or true:
        assert worth == pytest.approx(earned)
    assert len({n for n, _ in pairs}) == len({m for _, m in pairs}) == len(pairs)


@given(
    predicted=boxes,
    true=boxes,
    names=st.lists(st.sampled_from(["dog", "cat"]), min_size=8, max_size=8),
)
def test_as_many_boxes_match_in_detection_as_its_reward_counts(
    predicted: list, true: list, names: list[str]
) -> None:
    answer = Answer(
        boxes=np.array(predicted, dtype=float).reshape(-1, 4), labels=tuple(names[: len(predicted)])
    )
    truth = Truth(
        boxes=np.array(true, dtype=float).reshape(-1, 4), labels=tuple(names[4 : 4 + len(true)])
    )
    terms = make_task("detection").terms(answer, truth, FRAME)
    hits = terms["class"] * max(len(predicted), len(true))
    if predicted or true:
        assert len(matched_pairs(truth, answer, SIZE, "detection")) == pytest.approx(hits)


def test_points_match_by_their_centre_in_any_task() -> None:
    truth = Truth(points=np.array([[50.0, 50.0]]), labels=("x",))
    near, far = (
        Answer(boxes=np.array([[x - 1, 49.0, x + 1, 51]]), labels=("x",)) for x in (54.0, 60.0)
    )
    for task in ("counting", ""):
        assert matched_pairs(truth, near, SIZE, task) == [(0, 0)]
        assert matched_pairs(truth, far, SIZE, task) == []


def test_no_legend_says_that_an_answer_matches_nothing(tmp_path: Path) -> None:
    from perception_r1.demo.look import HEAD
    from perception_r1.visualize import gallery

    page = "".join(gallery([(Image.new("RGB", (9, 9)), "x")], "title"))
    a_report(tmp_path)
    texts = [page, HEAD, (tmp_path / "report.html").read_text()]
    assert all("does not" in text and "near enough to earn reward" in text for text in texts)
    assert "matches nothing" not in " ".join(texts)
    assert MATCHES_NOT in texts[0]


def near_ones(folder: Path) -> list[Sample]:
    return dogs(folder, 2, "counting", Truth(boxes=np.array([[10.0, 10, 50, 46]]), labels=("dog",)))


def test_every_page_draws_counting_by_its_centres(tmp_path: Path) -> None:
    answers = dict.fromkeys(("s0", "s1"), "dog: [28, 26, 32, 30]")
    folder = a_run(tmp_path, answers, near_ones(tmp_path))
    page, _ = report([folder], tmp_path / "report.html")
    assert page.text.count("1 box; 1 of 1 object matched") == 2
    rows = [
        row | {"completion": answers["s0"]}
        for row in map(json.loads, (tmp_path / "data.jsonl").read_text().splitlines())
    ]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for drawn, caption in pictures(tmp_path / "both.jsonl", ScoreSettings(dialect="plain")):
        assert "distance 1.000" in caption
        assert colour_share(drawn, MATCHED) > 0
        assert colour_share(drawn, UNMATCHED) == 0
    shown = picture(TRUE, NEAR, NEAR) | {
        "task": "counting",
        "image": Image.new("RGB", SIZE, "white"),
    }
    assert "before : 1 box; 1 of 1 object matched" in a_report(tmp_path, pictures=[shown]).text


# --- what an answer says ---------------------------------------------------------------------------------------------
MANY = Truth(boxes=np.array([[k, 0.0, k + 1, 1] for k in range(20)]), labels=("x",) * 20)
NOTHING = Truth(boxes=np.zeros((0, 4)))


@pytest.mark.parametrize(
    ("answer", "truth", "matched", "words"),
    [
        (None, MANY, 0, "no readable answer; there are 20 objects"),
        (None, TRUE, 0, "no readable answer; there is 1 object"),
        (None, NOTHING, 0, "no readable answer; nothing is there"),
        (Answer(), MANY, 0, "says that nothing is there; there are 20 objects"),
        (NEAR, NOTHING, 0, "1 box; nothing is there"),
        (FAR, MANY, 1, "2 boxes, 1 unreadable; 1 of 20 objects matched"),
        (NEAR, Truth(count=3), 0, "1 box; 3 objects counted"),
    ],
)
def test_a_verdict_never_gives_the_truths_number_as_the_answers(
    answer: Any, truth: Truth, matched: int, words: str
) -> None:
    assert verdict(answer, truth, matched) == words
    assert true_objects(NOTHING) == "nothing is there"


def test_what_was_written_instead_of_an_answer_is_shown(tmp_path: Path) -> None:
    written = {"before": "There are <b>twenty</b> dogs.", "after": ""}
    page = a_report(
        tmp_path,
        pictures=[picture(MANY, None, None) | {"completions": written, "task": "counting"}],
    )
    assert "There are <b>twenty</b> dogs." in page.text
    assert "before : no readable answer; there are 20 objects" in page.text
    assert "after : no readable answer; there are 20 objects; it is empty" in page.text
    paper = a_report(
        tmp_path,
        pictures=[
            picture(Truth(text="words"), None, Answer(text=""))
            | {"completions": {"before": "<think>"}}
        ],
    )
    assert "<think>" in paper.text
    assert "before : no readable answer" in paper.text


def test_a_picture_page_shows_what_was_written_too(tmp_path: Path) -> None:
    write = near_ones(tmp_path)
    row = {
        "id": "a",
        "task": "counting",
        "image": "dog.png",
        "width": 64,
        "height": 48,
        "query": "dog",
        "truth": {"boxes": [[1, 2, 30, 40]]},
    }
    (tmp_path / "both.jsonl").write_text(json.dumps(row | {"completion": "word " * 30}) + "\n")
    [(_, caption)] = pictures(tmp_path / "both.jsonl", ScoreSettings())
    assert "written: " + ("word " * 30).strip() in caption
    assert write


# --- the bundled policy ----------------------------------------------------------------------------------------------
def compared(model: Path, source: str | None) -> list[str]:
    """The notes of a run of `model` on one sample."""
    sample = Sample(
        id="a",
        task="counting",
        image="a",
        width=9,
        height=9,
        query="x",
        truth=NOTHING,
        source=source,
    )
    processor = SimpleNamespace(image_processor=SimpleNamespace(size={}))
    ready = SimpleNamespace(
        model=str(model),
        tasks={"counting": 0},
        dialect="plain",
        processor=processor,
        samples=[sample],
    )
    ours: Any = SimpleNamespace(
        eval_data="", task="counting", thinking=False, min_pixels=None, max_pixels=None
    )
    return Comparison(ours, SimpleNamespace(output_dir="x"), ready).notes()


def other(folder: Path) -> Path:
    """A checkpoint that says what it was shown, of another architecture."""
    tiny.save_untrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 1280
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "perception_r1.json").write_text('{"shown": "a million photographs"}')
    return folder


def test_the_bundled_policys_limits_are_told_of_it_alone(tmp_path: Path) -> None:
    assert not any("64 x 64" in note for note in compared(other(tmp_path / "other"), "coco"))
    assert any("a million photographs" in note for note in compared(tmp_path / "other", "coco"))
    assert any("64 x 64" in note for note in compared(WEIGHTS, "coco"))
    assert not any("64 x 64" in note for note in compared(WEIGHTS, "scenes"))
    tiny.save_untrained(tmp_path / "trained")  # its architecture, and no word of what it was shown
    assert any("64 x 64" in note for note in compared(tmp_path / "trained", "coco"))
    assert not is_bundled("Qwen/Qwen2-VL-2B-Instruct")


# --- the card --------------------------------------------------------------------------------------------------------
def front_matter(card: str) -> Any:
    import yaml

    return yaml.safe_load(card.split("---\n")[1])


def test_a_checkpoint_has_a_card_of_our_own_that_names_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.save_untrained(tmp_path / "base")
    words = "--task ocr --data scenes:ocr?n=8&seed=3 --max_completion_length 4 --per_device_train_batch_size 4 --num_generations 4"
    words += " --max_steps 1 --save_steps 1 --learning_rate 1e-3 --eval_batch_size 4 --eval_data scenes:ocr?n=3&split=test"
    cards: list[str] = []
    monkeypatch.setattr(
        Comparison,
        "report",
        lambda self, history: cards.append((self.output / "README.md").read_text()),
    )
    output = grpo.run(
        "quickstart",
        ["--model", str(tmp_path / "base"), *words.split(), "--output_dir", str(tmp_path / "run")],
    )
    card = (output / "README.md").read_text()
    for text in (card, *cards):
        assert f"`{tmp_path / 'base'}` after reinforcement learning (GRPO)" in text
        assert 'Task `ocr`, asked as "OCR this image."' in text
        assert "None" not in text
        assert front_matter(text)["tags"] == ["perception-r1", "grpo"]
        assert "base_model" not in front_matter(text)  # a folder is no id of a hub
    assert "| edit_distance |" in card
    assert "3 held-out samples" in card
    assert "scenes:ocr?n=8&seed=3" in card


def test_supervised_training_has_its_card_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.save_untrained(tmp_path / "base")
    words = "--task ocr --data scenes:ocr?n=4&seed=3 --max_steps 1 --save_steps 1 --per_device_train_batch_size 2"
    output = sft.run(
        "tiny-sft",
        ["--model", str(tmp_path / "base"), *words.split(), "--output_dir", str(tmp_path / "run")],
    )
    card = (output / "README.md").read_text()
    assert "after supervised fine-tuning on the true answers" in card
    assert "None" not in card
    assert front_matter(card)["tags"] == ["perception-r1", "sft"]


def test_a_hub_model_is_the_cards_base() -> None:
    from perception_r1.training.model_card import model_card

    ours: Any = SimpleNamespace(
        model="Qwen/Qwen2-VL-2B-Instruct", data="data/train.jsonl", thinking=True, eval_data="v"
    )
    task = TASKS["counting"]
    ready = SimpleNamespace(
        model=ours.model, tasks={"counting": task()}, dialect=SimpleNamespace(name="qwen2-vl")
    )
    card = model_card("grpo", ours, ready, Path("runs/counting"))
    assert front_matter(card)["base_model"] == "Qwen/Qwen2-VL-2B-Instruct"
    assert "# counting" in card
    assert "after a thought" in card
