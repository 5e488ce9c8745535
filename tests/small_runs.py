"""GRPO runs small enough for tests: a Qwen3-VL of one layer, drawn scenes, a reward that always varies, plain SGD."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from trl import GRPOConfig, GRPOTrainer

from perception_r1.data.samples import read_samples, write_samples
from perception_r1.data.scenes import scene_samples
from perception_r1.dialects import dialect_named
from perception_r1.evaluation.checkpoint import limit_pixels
from perception_r1.policy import tiny
from perception_r1.training.dataset import prompt_dataset, tasks_for
from perception_r1.training.group_shared import GroupSharedTrainer


def save_policy(folder: Path) -> None:
    """The bundled policy's architecture with one layer of text and one of vision, random weights, and its samples beside it."""
    processor = tiny.make_processor()
    config = tiny.make_config(processor.tokenizer)
    config.text_config.num_hidden_layers = 1
    config.vision_config.depth, config.vision_config.deepstack_visual_indexes = 1, [0]
    torch.manual_seed(0)
    model = transformers.Qwen3VLForConditionalGeneration(config)
    model.generation_config.update(pad_token_id=processor.tokenizer.pad_token_id, eos_token_id=processor.tokenizer.eos_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_samples(scene_samples("grounding", folder=folder / "scenes", n=24, seed=3), folder / "samples.jsonl")


class Parity:
    """Rewards the share of even tokens, and keeps every rollout it has seen."""

    __name__ = "parity"

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, *, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        self.seen += [list(ids) for ids in completion_ids]
        return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def make_trainer(
    policy: Path,
    output: Path,
    kind: type[GRPOTrainer] = GroupSharedTrainer,
    *,
    given: dict | None = None,
    limits: dict | None = None,
    **settings: Any,
) -> Any:
    """A trainer of `kind`, with `given` arguments, pixel `limits` and GRPOConfig's `settings`.

    Its reward is `trainer.parity`.
    """
    torch.manual_seed(0)
    samples = list(read_samples(policy / "samples.jsonl"))
    tasks = tasks_for(samples, dialect=dialect_named("qwen3-vl"))
    processor = transformers.AutoProcessor.from_pretrained(policy)
    processor.tokenizer.padding_side = "left"
    limit_pixels(processor, **({"min_pixels": None, "max_pixels": None} | (limits or {})))
    standard = {"per_device_train_batch_size": 8, "num_generations": 4, "gradient_accumulation_steps": 2, "max_completion_length": 8, "max_steps": 10}
    standard |= {"learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant", "beta": 0.04, "max_grad_norm": 0.0, "bf16": False, "seed": 0}
    standard |= {"output_dir": str(output), "report_to": "none", "use_cpu": True, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    standard |= {"remove_unused_columns": False, "temperature": 1.0, "gradient_checkpointing": False}
    # a random policy hardly ever ends its answer: help it, so that answers differ in length
    standard["generation_kwargs"] = {"sequence_bias": [[[processor.tokenizer.eos_token_id], 6.0]]}
    parity = Parity()
    trainer = kind(
        model=str(policy),
        reward_funcs=parity,
        args=GRPOConfig(**(standard | settings)),
        train_dataset=prompt_dataset(samples[:16], tasks),
        eval_dataset=prompt_dataset(samples[16:], tasks),
        processing_class=processor,
        **(given or {}),
    )
    trainer.parity = parity
    return trainer


def weights(trainer: Any) -> torch.Tensor:
    """All weights of the policy, as one vector of float64."""
    return torch.cat([parameter.detach().flatten().double() for parameter in trainer.accelerator.unwrap_model(trainer.model).parameters()])


class Told(GroupSharedTrainer):
    """Generates as ever, and then goes on with answers that depend on the prompt alone: the same in any number of processes."""

    def _generate_single_turn(self, prompt_ids: list, images: list | None, fields: dict, num_generations: int, *args: Any) -> tuple[list, None]:
        generated, _ = super()._generate_single_turn(prompt_ids, images, fields, num_generations, *args)
        assert len(generated) == len(prompt_ids)
        told = []
        for row, ids in enumerate(prompt_ids):
            generator = torch.Generator().manual_seed(sum(ids) * 100 + row % num_generations)
            length = int(torch.randint(1, 9, (), generator=generator))
            told.append(torch.randint(20, 2000, (length,), generator=generator).tolist())
        return told, None
