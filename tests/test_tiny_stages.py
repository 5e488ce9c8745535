"""The two stages that come before and between the bundled policy's supervised passes: what patches show, and pointing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from perception_r1.data.scenes import COLOURS, SHAPES
from perception_r1.policy import WEIGHTS, alignment, pointing, tiny


def test_a_patch_belongs_to_the_box_that_covers_most_of_it() -> None:
    side, generator = 128, np.random.default_rng(0)
    corner = generator.integers(0, 100, (4, 2))
    boxes = np.concatenate([corner, corner + generator.integers(8, 28, (4, 2))], axis=1).astype(float)
    painted = np.zeros((4, side, side))
    for k, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        painted[k, y1:y2, x1:x2] = 1
    step = side // alignment.CELLS
    covered = painted.reshape(4, alignment.CELLS, step, alignment.CELLS, step).mean((2, 4)).reshape(4, -1)
    found = alignment.owners(boxes, side)
    for patch, owner in enumerate(found):
        assert covered[owner, patch] == covered[:, patch].max() > 0.04 if owner >= 0 else covered[:, patch].max() <= 0.04


def test_nothing_owns_the_patches_of_an_empty_scene() -> None:
    assert (alignment.owners(np.zeros((0, 4)), 128) == -1).all()


def test_examples_name_what_their_patches_are_painted_with() -> None:
    palette = np.array([[int(code[k : k + 2], 16) for k in (1, 3, 5)] for code in COLOURS.values()])
    right: list[bool] = []
    for index in range(12):
        image, shown = alignment.example(index)
        assert set(shown["shape"][shown["owner"] < 0]) <= {len(SHAPES), -100}
        middles = np.asarray(image.resize((alignment.CELLS, alignment.CELLS), 0), dtype=int).reshape(-1, 3)
        painted = (shown["colour"] >= 0) & (shown["owner"] >= 0) & (np.ptp(middles, axis=1) > 100)
        nearest = np.abs(middles[:, None] - palette).sum(2).argmin(1)
        right += (nearest[painted] == shown["colour"][painted]).tolist()
    assert len(right) > 50
    assert np.mean(right) > 0.9


def test_a_few_steps_of_alignment_lower_the_loss_and_leave_a_model_folder(tmp_path: Path) -> None:
    first = sum(alignment.align(tmp_path / "one", steps=1, batch=8).values())
    later = sum(alignment.align(tmp_path / "many", steps=30, batch=8).values())
    assert later < first
    model = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "many")
    untouched, aligned = (
        Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / name).model.language_model.layers[0].mlp.up_proj.weight for name in ("one", "many")
    )
    assert torch.equal(untouched, aligned)
    assert model.model.visual.config.spatial_merge_size == tiny.MERGE


def test_the_shipped_policy_points_at_what_a_phrase_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    share = pointing.point(WEIGHTS, tmp_path / "pointing", steps=20, batch=8)
    assert 0 <= share <= 1
    assert "pointing" in capsys.readouterr().out
    assert Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "pointing").num_parameters() > 1e6


def test_pointing_asks_about_different_objects_without_relations() -> None:
    stream = pointing.questions(seed=1)
    for _ in range(20):
        _, samples = next(stream)
        boxes = {tuple(sample.truth.needed_boxes()[0]) for sample in samples}
        assert len(boxes) == len(samples) <= 4
        assert not any(" the " in sample.query for sample in samples)


def test_every_answer_of_a_conversation_begins_with_the_token_that_points() -> None:
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    _, samples = next(pointing.questions(seed=2))
    from perception_r1.tasks import make_task

    text = pointing.conversation(make_task("grounding", dialect="qwen3-vl"), samples, processor)
    begins = processor.tokenizer.tokenize('[{"bbox_2d": [')
    assert len(begins) == 1
    assert processor.tokenizer.tokenize(text).count(begins[0]) == len(samples)
