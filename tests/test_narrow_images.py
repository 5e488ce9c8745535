"""Images that a model cannot see, and those that are missing: told before the model is loaded, in training data and held-out data alike."""

import json
from pathlib import Path

import pytest
from tests.test_model_files import run_words, untrained

from perception_r1.records import BadData
from perception_r1.training import grpo

__all__ = ["untrained"]  # a fixture


def narrow(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40)).save(folder / "a.png")
    Image.new("RGB", (804, 4)).save(folder / "long.png")
    row = {"task": "ocr", "query": "", "truth": {"text": "x"}}
    rows = [
        row | {"id": "a", "image": "a.png", "width": 60, "height": 40},
        row | {"id": "long", "image": "long.png", "width": 804, "height": 4},
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


@pytest.mark.parametrize("key", ["data", "eval_data"])
def test_an_image_of_more_than_200_to_1_is_told_before_the_model_is_loaded(
    key: str, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo, "GroupSharedTrainer", lambda **_: pytest.fail("loaded"))
    words = run_words(untrained, tmp_path / "run")
    words[words.index(f"--{key}") + 1] = str(narrow(tmp_path / "images"))
    with pytest.raises(
        BadData,
        match=rf"{key} .*: 1 of 2 images have sides that the model cannot see.*long\.png of long: .*aspect ratio over 200",
    ):
        grpo.run("quickstart", words)


def test_evaluate_tells_it_before_the_model_is_loaded(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perception_r1.evaluation import backends
    from perception_r1.evaluation.run import evaluate

    monkeypatch.setattr(backends, "TransformersBackend", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(
        BadData, match=r"long\.png of sample 'long': .*aspect ratio over 200: crop it first"
    ):
        evaluate(data=str(narrow(tmp_path / "images")), model=untrained, output=tmp_path / "out")


def test_a_missing_image_of_eval_data_is_told_before_the_model_is_loaded(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo, "GroupSharedTrainer", lambda **_: pytest.fail("loaded"))
    file = narrow(tmp_path / "images")
    (tmp_path / "images" / "a.png").unlink()
    words = run_words(untrained, tmp_path / "run")
    words[words.index("--eval_data") + 1] = str(file)
    with pytest.raises(BadData, match="eval_data .*: 1 of 2 images are not there"):
        grpo.run("quickstart", words)
