"""Training opens pictures as large as the model sees them, and the model sees the same pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tests.random_models import build_random_model

from perception_r1.evaluation.checkpoint import limit_pixels
from perception_r1.policy import tiny
from perception_r1.records import Sample, Truth
from perception_r1.tasks import make_task
from perception_r1.training.dataset import conversation_dataset, processor_frame, prompt_dataset
from perception_r1.training.pictures import Shrink

SIZES = [
    (4000, 3000),
    (3001, 1999),
    (1024, 1000),
    (640, 480),
    (641, 479),
    (5000, 60),
    (60, 5000),
    (30, 30),
    (1, 150),
    (28, 28),
]


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@pytest.fixture(scope="module")
def processor(
    tmp_path_factory: pytest.TempPathFactory, data_folder: Callable[[str], Path]
) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def make(family: str) -> Any:
        if family not in made and family == "tiny":
            made[family] = tiny.make_processor()
        elif family not in made:
            folder = tmp_path_factory.mktemp(family)
            build_random_model(folder, family, data_folder("qwen_tokenizer_config"))
            made[family] = transformers.AutoProcessor.from_pretrained(folder)
        return made[family]

    return make


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(("low", "high"), [(3136, 1_000_000), (3136, 200_000), (100_000, 110_000)])
def test_the_model_sees_the_same_pixels_of_a_smaller_picture(
    processor: Callable[[str], Any], family: str, low: int, high: int
) -> None:
    used = processor(family)
    limit_pixels(used, low, high)
    for size in SIZES:
        whole = picture(*size)
        small = Shrink(used)(whole)
        assert small.width * small.height <= max(size[0] * size[1], 1)
        seen = [used.image_processor(images=image, return_tensors="pt") for image in (whole, small)]
        assert torch.equal(seen[0]["image_grid_thw"], seen[1]["image_grid_thw"])
        assert torch.equal(seen[0]["pixel_values"], seen[1]["pixel_values"])
        if size[0] * size[1] > 1.2 * high and low < high / 4:
            assert small.width * small.height <= high


def test_limits_that_leave_no_choice_change_nothing_either(processor: Callable[[str], Any]) -> None:
    """The tiny policy's smallest image is its largest: resizing twice is not always resizing once."""
    used = processor("tiny")
    for size in SIZES:
        if max(size) / min(size) > 64:
            continue  # thinner than its patches
        seen = [
            used.image_processor(images=image, return_tensors="pt")
            for image in (picture(*size), Shrink(used)(picture(*size)))
        ]
        assert torch.equal(seen[0]["image_grid_thw"], seen[1]["image_grid_thw"])
        assert torch.equal(seen[0]["pixel_values"], seen[1]["pixel_values"])


def test_a_processor_that_works_with_pillow_is_followed_too() -> None:
    images = transformers.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(
        min_pixels=3136, max_pixels=200_000
    )
    shrink = Shrink(type("Processor", (), {"image_processor": images}))
    for size in SIZES:
        whole = picture(*size)
        seen = [images(images=image, return_tensors="pt") for image in (whole, shrink(whole))]
        assert torch.equal(seen[0]["image_grid_thw"], seen[1]["image_grid_thw"])
        assert torch.equal(seen[0]["pixel_values"], seen[1]["pixel_values"])


def test_other_processors_get_the_picture_whole() -> None:
    fixed = type("Processor", (), {"image_processor": transformers.CLIPImageProcessor()})
    assert Shrink(fixed)(picture(4000, 3000)).size == (4000, 3000)


def test_rows_of_training_hold_small_pictures_and_the_original_size(
    processor: Callable[[str], Any], tmp_path: Path
) -> None:
    used = processor("qwen2_vl")
    limit_pixels(used, 3136, 1_000_000)
    picture(4000, 3000).save(tmp_path / "a.png")
    truth = Truth(boxes=np.array([[300.0, 400.0, 3000.0, 2500.0]]), labels=("cat",))
    sample = Sample(
        id="a",
        task="grounding",
        image="a.png",
        width=4000,
        height=3000,
        query="cat",
        truth=truth,
        root=tmp_path,
    )
    tasks, frame = {"grounding": make_task("grounding", dialect="qwen2-vl")}, processor_frame(used)
    asked = prompt_dataset([sample] * 2, tasks, tmp_path / "rows.arrow", Shrink(used))
    told = conversation_dataset([sample], tasks, frame, 1, None, Shrink(used))
    for rows in (asked, told):
        assert (
            rows[0]["images"][0].size
            == (1148, 840)
            == (frame(sample).seen_width, frame(sample).seen_height)
        )
    assert (frame(sample).width, frame(sample).height) == (4000, 3000)
    assert (
        tasks["grounding"].score(told[0]["messages"][1]["content"], sample, frame(sample)).total
        == 2
    )
