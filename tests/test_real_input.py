"""RL on real COCO photographs with their official annotations runs end to end, with the bundled policy's shape and with a Qwen2.5-VL."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.random_models import build_random_model

from perception_r1.data.coco import coco_samples
from perception_r1.policy import tiny
from perception_r1.training import grpo


@pytest.fixture(scope="module", params=["tiny", "qwen2_5_vl"])
def model(request: pytest.FixtureRequest, data_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tiny":
        tiny.save_untrained(folder)
    else:
        build_random_model(folder, request.param, data_folder("qwen_tokenizer_config"))
    return str(folder)


@pytest.mark.parametrize("task", ["detection", "counting"])
def test_rl_on_real_photographs_ends_in_a_report_that_shows_them(model: str, task: str, data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = f"coco:{data_folder('coco_val206')}"
    small = ["--max_steps", "2", "--save_steps", "1", "--per_device_train_batch_size", "4", "--num_generations", "4", "--max_completion_length", "16"]
    small += ["--gradient_accumulation_steps", "1", "--max_pixels", "20000", "--eval_limit", "13", "--eval_batch_size", "13", "--use_cpu", "true"]
    output = grpo.run(task, ["--model", model, "--data", data, "--eval_data", data, "--output_dir", str(tmp_path / "run"), *small])
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["task"] == task
    assert metrics["metrics"]["parse_failure_rate"]["n"] == 13
    assert ("AP" in metrics["paired"]) == (task == "detection")
    report = (output / "report.html").read_text()
    shown = [sample.id for sample in coco_samples(data.removeprefix("coco:"), task).samples[:13] if sample.id in report]
    assert len(shown) == 12
    assert report.count("data:image/") == 3 * 12  # truth, before and after
    settings = json.loads((output / "perception_r1.json").read_text())
    assert settings["task"] == task
    assert settings["dialect"] == ("qwen2.5-vl" if "qwen2_5" in model else "qwen3-vl")
