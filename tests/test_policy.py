"""The bundled policy: small, a real transformers model with nothing special-cased, and good enough that RL has something to sharpen."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLForConditionalGeneration

from perception_r1.evaluation.run import evaluate
from perception_r1.policy import WEIGHTS, tiny


def test_it_is_small_and_stored_in_bf16_and_loaded_in_float32() -> None:
    file = WEIGHTS / "model.safetensors"
    assert file.stat().st_size <= 12_000_000
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS)
    assert isinstance(model, Qwen3VLForConditionalGeneration)
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) <= 5_000_000


def test_the_shipped_tokenizer_is_what_the_recipe_makes() -> None:
    shipped, made = AutoProcessor.from_pretrained(WEIGHTS).tokenizer, tiny.make_tokenizer()
    assert shipped.get_vocab() == made.get_vocab()


@pytest.mark.parametrize(
    "text",
    [
        '[{"bbox_2d": [12, 345, 678, 1000], "label": "red circle"}, {"bbox_2d": [1, 2, 3, 4], "label": "x"}]',
        "Naïve café 日本語 \t\n{} 99999 0.5",
        "<think>why</think><answer>[]</answer>",
        "<|box_start|>(1,2),(3,4)<|box_end|>",
    ],
)
def test_any_text_survives_its_tokenizer(text: str) -> None:
    tokenizer = tiny.make_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_number_of_the_grid_is_one_token() -> None:
    tokenizer = tiny.make_tokenizer()
    assert all(len(tokenizer(f"{n}").input_ids) == len(tokenizer(f"{n}, ").input_ids) == 1 for n in range(1001))


def test_it_says_what_its_supervised_training_contained() -> None:
    settings = json.loads((WEIGHTS / "perception_r1.json").read_text())
    assert settings["dialect"] == "qwen3-vl"
    assert "never" in settings["shown"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("policy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return {task: held_out(task, folder) for task in ("grounding", "counting", "detection", "ocr")}


def held_out(task: str, folder: Path) -> dict:
    data = f"scenes:{task}?n=400&seed=11&split=test"
    result = evaluate(data=data, model=WEIGHTS, output=folder / task, batch_size=100, max_new_tokens=256, resamples=100, ap_resamples=2)
    return result["metrics"]


def test_it_grounds_phrases_on_held_out_scenes(measured: dict[str, dict]) -> None:
    assert measured["grounding"]["mean_iou"]["value"] >= 0.45


@pytest.mark.parametrize("task", ["grounding", "counting", "detection", "ocr"])
def test_its_answers_can_be_read(measured: dict[str, dict], task: str) -> None:
    assert measured[task]["parse_failure_rate"]["value"] <= 0.02
