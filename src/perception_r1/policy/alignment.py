"""Before the bundled policy learns to answer, its vision tower learns what each of its patches shows, in the words of its vocabulary.

    python -m perception_r1.policy.alignment runs/tiny-aligned

Each patch says, in the embeddings of the words themselves, the colour, shape and size of the object that covers most of it, or the
printed word, or nothing; four linear heads, dropped afterwards, read its box in the embeddings of the numbers. Language models
that see start from such a tower (CLIP and its successors); from random weights, colours were not told apart after 70,000 conversations.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ..data.layouts import COLOURS, SHAPES, SIZES, SceneOptions, random_layout
from ..data.scenes import WORDS, draw, draw_page, random_page, word_boxes
from . import tiny

CELLS = tiny.SIDE // (tiny.PATCH * tiny.MERGE)
"""Patches that the language model sees, along a side."""
NAMES = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES), "word": WORDS}
PAGES = 0.25
"""Share of pages among the pictures."""


def owners(boxes: np.ndarray, side: int) -> np.ndarray:
    """For each patch (CELLS², row by row) the box (N, 4; xyxy, pixels) that covers most of it, -1 where none covers 4 %."""
    if not len(boxes):
        return np.full(CELLS * CELLS, -1)
    low = np.arange(CELLS) * side / CELLS
    high = low + side / CELLS
    across, down = (np.clip(np.minimum(boxes[:, k + 2, None], high) - np.maximum(boxes[:, k, None], low), 0, None) for k in (0, 1))
    covered = (down[:, :, None] * across[:, None, :]).reshape(len(boxes), -1)
    return np.where(covered.max(0) > 0.04 * (side / CELLS) ** 2, covered.argmax(0), -1)


def example(index: int, seed: int = 0, side: int = 128) -> tuple[Any, dict[str, np.ndarray]]:
    """A training picture and, for each patch, `owner` (-1: nothing), `box` (4, in thousandths) and the index of each name.

    A name's index is its number of words where the patch shows nothing, and -100 where the question does not arise.
    """
    rng = np.random.default_rng([seed, 1, index])
    ground = tuple(rng.integers(225, 256, 3).tolist())
    silent = np.full(CELLS * CELLS, -100)
    if rng.random() < PAGES:
        lines = random_page(side, ground, "train", rng)
        boxes, names = word_boxes(lines, side), {"word": [WORDS.index(word) for word, _, _ in lines]}
        image = draw_page(lines, side, ground)
    else:
        layout = random_layout(SceneOptions(side=side, max_objects=8), "train", rng)
        boxes = np.array([it.box for it in layout], dtype=float)
        names = {"colour": [NAMES["colour"].index(it.colour) for it in layout], "shape": [SHAPES.index(it.shape) for it in layout]}
        names["size"] = [NAMES["size"].index(it.size) for it in layout]
        image = draw(layout, side, ground)
    owner = owners(boxes, side)
    found = {name: np.where(owner < 0, len(NAMES[name]), np.array(names[name])[owner]) if name in names else silent for name in NAMES}
    return image, found | {"owner": owner, "box": np.clip(boxes[owner] / side * 1000, 0, 1000).round().astype(int)}


class Heads(nn.Module):
    """Reads what patches (patches, width) show. Words and numbers are rows of the policy's own embeddings, which stay as they are."""

    def __init__(self, embeddings: Tensor, tokenizer: Any) -> None:
        super().__init__()
        scaled = embeddings / embeddings.norm(dim=1).mean()
        for name, words in NAMES.items():
            self.register_buffer(name, scaled[tokenizer.convert_tokens_to_ids(list(words))])
        self.register_buffer("numbers", scaled[tokenizer.convert_tokens_to_ids([f"{value}" for value in range(1001)])])
        self.nothing = nn.Linear(embeddings.shape[1], 1)
        self.box = nn.Linear(embeddings.shape[1], 4 * embeddings.shape[1])

    def losses(self, patches: Tensor, truth: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of each name and of the box's coordinates; the box on at most 256 patches, which is plenty."""
        nothing = self.nothing(patches)
        scores = {name: torch.cat([patches @ self.get_buffer(name).T, nothing], dim=1) for name in NAMES}
        found = {name: F.cross_entropy(scores[name], truth[name], ignore_index=-100, reduction="sum") for name in NAMES}
        found = {name: loss / (truth[name] >= 0).sum().clamp(min=1) for name, loss in found.items()}  # a batch may hold no page
        shown = (truth["owner"] >= 0).nonzero()[:, 0]
        shown = shown[torch.randperm(len(shown))[:256]]
        numbers = self.box(patches[shown]).unflatten(1, (4, -1)) @ self.get_buffer("numbers").T
        return found | {"box": F.cross_entropy(numbers.flatten(0, 1), truth["box"][shown].flatten())}


class Batches(Dataset[tuple[Any, dict[str, Tensor]]]):
    """Batches of pictures, as the tower takes them, with what their patches show."""

    def __init__(self, processor: Any, steps: int, batch: int, seed: int) -> None:
        self.processor, self.steps, self.batch, self.seed = processor, steps, batch, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Any, dict[str, Tensor]]:
        images, truths = zip(*(example(step * self.batch + k, self.seed) for k in range(self.batch)), strict=True)
        seen = self.processor.image_processor(images=list(images), return_tensors="pt")
        return dict(seen), {name: torch.from_numpy(np.concatenate([truth[name] for truth in truths])) for name in truths[0]}


def align(folder: Path | str, steps: int = 1500, batch: int = 64, learning_rate: float = 2e-3, seed: int = 0) -> dict[str, float]:
    """Writes an untrained policy whose vision tower has been aligned, as a model folder; returns the last losses."""
    tiny.save_untrained(folder, seed)
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    tower: Any = model.model.visual
    heads = Heads(model.model.language_model.embed_tokens.weight.detach(), processor.tokenizer)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = {"num_warmup_steps": min(100, steps // 10), "num_training_steps": steps}
    schedule = transformers.get_scheduler("cosine_with_min_lr", optimizer, **warm_up, scheduler_specific_kwargs={"min_lr_rate": 0.03})
    start, losses = time.monotonic(), {}
    loader: Any = DataLoader(Batches(processor, steps, batch, seed), batch_size=None, num_workers=1)
    for step, (seen, truth) in enumerate(loader):
        with torch.autocast("cpu", torch.bfloat16):
            patches = tower(seen["pixel_values"], grid_thw=seen["image_grid_thw"]).pooler_output
        losses = heads.losses(patches.float(), truth)
        sum(losses.values(), torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 99:
            figures = "  ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"step {step + 1}/{steps}  {time.monotonic() - start:.0f} s  {figures}", flush=True)
    model.save_pretrained(folder)
    return {name: value.item() for name, value in losses.items()}


if __name__ == "__main__":
    align(sys.argv[1])
