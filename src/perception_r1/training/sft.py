"""Supervised fine-tuning on the true answers, with TRL's SFTTrainer: the paper's comparison, and how the tiny policy began."""

from collections.abc import Sequence
from pathlib import Path

import transformers
from trl import SFTConfig, SFTTrainer, get_peft_config

from ..data.mixture import load_data
from ..evaluation.backends import _check_folder, _limit_pixels
from .checkpoints import MarkComplete, prepare_output, write_settings
from .dataset import conversation_dataset, drawn, processor_frame, tasks_for
from .grpo import dialect_for
from .recipe import load_recipe, resolve_model


def run(recipe: str, overrides: Sequence[str] = ()) -> Path:
    """Runs an SFT recipe and returns its output folder: a Hugging Face checkpoint with its processor."""
    ours, args, model_args = load_recipe(recipe, overrides, SFTConfig)
    checkpoint = prepare_output(args, ours.resume)
    name = resolve_model(ours.model, args.output_dir)
    _check_folder(Path(name))
    processor = transformers.AutoProcessor.from_pretrained(name)
    _limit_pixels(processor, ours.min_pixels, ours.max_pixels)
    mixture = load_data(ours.data, ours.task)
    dialect = dialect_for(name, ours.dialect)
    tasks = tasks_for(mixture, dialect=dialect, thinking=ours.thinking)
    dataset = conversation_dataset(drawn(mixture, mixture.probabilities(), args.seed), tasks, processor_frame(processor, dialect), ours.turns)
    args.remove_unused_columns = False
    args.assistant_only_loss = True
    args.max_length = None
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    trainer = SFTTrainer(
        model=name, args=args, train_dataset=dataset, processing_class=processor, peft_config=get_peft_config(model_args), callbacks=[MarkComplete()]
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir)
    processor.save_pretrained(args.output_dir)
    settings = {"task": ours.task, "dialect": dialect.name, "thinking": ours.thinking, "supervised_on": ours.data}
    write_settings(args.output_dir, settings)
    return Path(args.output_dir)
