"""Between two supervised passes the bundled policy learns to point: to look, while it answers, at the object that a phrase names.

    python -m perception_r1.policy.pointing runs/tiny-base-1/checkpoint-600 runs/tiny-pointing

Supervised fine-tuning alone taught it to box objects (IoU 0.93 with the nearest) and to name what lies in a box, but the box it gave
was hardly ever the named one by more than chance: in its loss that choice is one token in a dozen. Here only coordinates are
learned, the first two threefold, and an auxiliary loss asks that the state in which the answer begins resembles, after two layers,
the patches of the named object more than all others. A projection serves for that and is dropped afterwards.
"""

import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.layouts import SceneOptions
from ..data.scenes import scenes
from ..dialects import dialect_of_model
from ..records import Sample
from ..tasks import Task, make_task
from ..training.dataset import processor_frame
from .alignment import owners

LAYERS = 2
"""Layers after which the state must point."""
SHARPNESS = 20.0
"""Factor of the cosine between the state and a patch, before the softmax over patches."""


def questions(seed: int) -> Iterator[tuple[Image.Image, list[Sample]]]:
    """Scenes of two or more objects with up to four phrases, each naming another object by what it is; relations come later, in SFT."""
    options = SceneOptions(min_objects=2, max_phrases=4)
    for image, asked in scenes(["detection", "grounding"], n=sys.maxsize, seed=seed, options=options):
        if phrases := [sample for sample in asked if sample.task == "grounding" and " the " not in sample.query]:
            yield image, phrases


def conversation(task: Task, samples: list[Sample], processor: Any) -> str:
    """The questions about one scene with their true answers, as the model reads them."""
    frame = processor_frame(processor)
    messages: list[dict[str, Any]] = []
    for number, sample in enumerate(samples):
        content = [{"type": "image"}] * (number == 0) + [{"type": "text", "text": task.prompt(sample)}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": task.write(sample, frame(sample))}]
    return processor.apply_chat_template(messages, tokenize=False)


def losses(model: Any, pointer: nn.Module, inputs: Any, begins: int, owned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies of the coordinates (answers, 4), the pointing loss, and the share of answers that point at their object.

    `begins` is the token with which an answer begins; `owned` (answers, patches) is true on the patches of the named object.
    """
    ids = inputs["input_ids"]
    output = model.model(**inputs, output_hidden_states=True)
    row, column = (ids == begins).nonzero().unbind(1)
    steps = column[:, None] + torch.arange(4)
    states = output.last_hidden_state[row[:, None], steps].float()
    coordinates = F.cross_entropy(model.lm_head(states).flatten(0, 1), ids[row[:, None], steps + 1].flatten(), reduction="none").unflatten(0, (-1, 4))
    patches = output.hidden_states[0][ids == model.config.image_token_id].unflatten(0, (len(ids), -1)).float()
    pointing = pointer(output.hidden_states[LAYERS][row, column].float())
    cosines = (F.normalize(pointing, dim=-1)[:, None] * F.normalize(patches, dim=-1)[row]).sum(-1)
    missed = (SHARPNESS * cosines).log_softmax(-1).masked_fill(~owned, -torch.inf).logsumexp(-1)
    return coordinates, -missed.mean(), owned.gather(1, cosines.argmax(-1, keepdim=True)).float().mean()


def point(source: Path | str, folder: Path | str, steps: int = 400, batch: int = 16, learning_rate: float = 1e-3, seed: int = 0) -> float:
    """Trains the policy in `source` to point and writes it to `folder`; returns the share of the last batch that points rightly."""
    transformers.set_seed(seed)
    processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=False)
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    task = make_task("grounding", dialect=dialect_of_model(model.config.model_type))
    width = model.model.language_model.embed_tokens.embedding_dim
    pointer = nn.Linear(width, width, bias=False)
    nn.init.eye_(pointer.weight)
    tower: Any = model.model.visual
    others = [parameter for name, parameter in model.named_parameters() if "visual" not in name.split(".")]
    groups = [{"params": [*others, *pointer.parameters()]}, {"params": list(tower.parameters()), "lr": learning_rate / 10}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = transformers.get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=min(30, steps // 10))
    begins = processor.tokenizer.convert_tokens_to_ids(processor.tokenizer.tokenize('[{"bbox_2d": [')[0])
    stream, start, hit = questions(seed), time.monotonic(), 0.0
    for step in range(1, steps + 1):
        asked = list(islice(stream, batch))
        texts = [conversation(task, samples, processor) for _, samples in asked]
        inputs = processor(text=texts, images=[[image] for image, _ in asked], padding=True, padding_side="right", return_tensors="pt")
        owned = np.array([owners(sample.truth.needed_boxes(), sample.width) >= 0 for _, samples in asked for sample in samples])
        with torch.autocast("cpu", torch.bfloat16):
            coordinates, missed, share = losses(model, pointer, inputs, begins, torch.from_numpy(owned))
        loss = (coordinates * torch.tensor([3.0, 3.0, 1.0, 1.0])).mean() + missed
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        hit = share.item()
        if step % 20 == 0:
            x, y = coordinates.mean(0)[:2].tolist()
            figures = f"x1 {x:.3f}  y1 {y:.3f}  pointing {missed.item():.3f}  right {hit:.3f}"
            print(f"step {step}/{steps}  {time.monotonic() - start:.0f} s  {figures}", flush=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return hit


if __name__ == "__main__":
    point(sys.argv[1], sys.argv[2])
