"""Supervised fine-tuning on the true answers, with TRL's SFTTrainer: the paper's comparison, and how the tiny policy began."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import release_memory
from torch.optim import Optimizer
from trl import SFTConfig, SFTTrainer

from .checkpoints import MarkComplete
from .console import quiet
from .dataset import conversation_dataset, drawn, processor_frame
from .loading import adapter_config, init_kwargs, quantization
from .model_card import model_card, own_card, write_card
from .pictures import Shrink
from .prepare import prepare, rows_file
from .recipe import load_recipe
from .saving import SavesWhole, finish, save_weights, settings_of


class TwoRateTrainer(SavesWhole, SFTTrainer):
    """TRL's trainer with a learning rate of its own for the vision tower, where `vision_learning_rate` is set."""

    vision_learning_rate: float | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.vision_learning_rate is None or self.model is None:
            return optimizer
        tower = {id(parameter) for name, parameter in self.model.named_parameters() if "visual" in name.split(".")}
        for group in list(optimizer.param_groups):
            if seen := [parameter for parameter in group["params"] if id(parameter) in tower]:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in tower]
                optimizer.add_param_group({**group, "params": seen, "lr": self.vision_learning_rate})
        return optimizer


def run(recipe: str, overrides: Sequence[str] = ()) -> Path:
    """Runs an SFT recipe and returns its output folder: a Hugging Face checkpoint with its processor."""
    ours, args, model_args = load_recipe(recipe, overrides, SFTConfig)
    quantized = quantization(model_args)
    ready = prepare(ours, args, revision=model_args.model_revision)
    settings = settings_of(ours, args, model_args, ready) | {"shown": ours.shown or ours.data}
    args.remove_unused_columns = False
    args.model_init_kwargs = init_kwargs(args, model_args)
    args.assistant_only_loss = True
    args.max_length = None  # a cut conversation would lose image tokens
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    samples = drawn(ready.samples, ready.samples.probabilities(), args.seed)
    frame = processor_frame(ready.processor)
    rows = conversation_dataset(
        samples, ready.tasks, frame, ours.turns, rows_file(args), Shrink(ready.processor)
    )
    trainer = TwoRateTrainer(
        model=ready.model,
        args=args,
        train_dataset=rows,
        processing_class=ready.processor,
        quantization_config=quantized,
        peft_config=adapter_config(ready.model, model_args),
        callbacks=[MarkComplete(settings)],
    )
    trainer.vision_learning_rate = ours.vision_learning_rate
    own_card(trainer, card := model_card("sft", ours, ready, Path(str(args.output_dir))))
    quiet(trainer)
    trainer.train(resume_from_checkpoint=ready.checkpoint)
    rows_file(args).unlink()
    output = Path(str(args.output_dir))
    save_weights(trainer, output)
    del trainer
    release_memory()  # an adapter's base takes its room
    if args.process_index == 0:
        write_card(output, card)
        finish(output, ready.processor, settings, adapted=model_args.use_peft)
    return output
