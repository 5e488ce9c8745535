"""Easy before hard: a run in stages, ordered by what a policy's answers earned in a probe, with more rollouts in each stage.

TRL fixes G, the rollouts of a prompt, when a trainer is made. So each stage has a trainer of its own, which goes on from the
checkpoint that the stage before it wrote at its end. Weights, optimizer, schedule, random numbers, step and log are carried
over by the same checkpoints, and through the same code, as when a killed run is resumed: a kill between or within stages is
nothing new. Every step has the same number of rollouts; as G grows, they belong to fewer samples.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig

from ..data.samples import read_rows
from ..records import BadData, Sample
from .recipe import RecipeArguments

TOTAL = "reward"
"""What stands for the sum of all terms where a term is named."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The part of a run that one trainer does."""

    args: GRPOConfig
    """The run's settings, with the stage's own num_generations."""
    order: Sequence[int] | None = None
    """Rows that the trainer reads, in this order; None for all, in the order that TRL draws."""
    end: int | None = None
    """Global step at which the stage ends; None when the run ends with it."""
    told: str = ""
    """What the terminal says when the stage begins."""

    def callbacks(self) -> list[TrainerCallback]:
        return [] if self.end is None else [EndOfStage(self.end, self.told)]


class EndOfStage(TrainerCallback):
    """Ends training at a step before the run's last, with a log and a checkpoint, so that the next stage can go on from there."""

    def __init__(self, end: int, told: str) -> None:
        self.end, self.told = end, told

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            Console().print(self.told, highlight=False, soft_wrap=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.end <= state.global_step < state.max_steps:
            control.should_log = control.should_save = control.should_training_stop = True


def plan(ours: RecipeArguments, args: GRPOConfig, samples: Sequence[Sample], done: int = 0) -> list[Stage]:
    """The stages of a run that are left after `done` steps; without a curriculum one, which is TRL's own run.

    The last stage is always among them. Raises BadData for a curriculum that cannot be followed.
    """
    if not ours.curriculum:
        if given := [name for name in ("difficulty", "stages") if getattr(ours, name)]:
            raise BadData(f"{given[0]} is given without a curriculum: name the term to order by, as --curriculum number (or {TOTAL})")
        # A run that was stopped at max_steps within an epoch would be resumed with one more step. With the rows of one
        # generation for an epoch it ends on an epoch's border, where nothing is left to do.
        return [Stage(args=args, order=range(_rows(args, args.num_generations)) if 0 < args.max_steps <= done else None)]
    _check(args)
    stages = parse_stages(ours.stages) if ours.stages else [(int(args.num_generations or 0), 1.0)]
    order, means = easy_to_hard(samples, ours, args.seed)
    found = _stages(args, order, means, stages, ours.curriculum)
    return [stage for stage in found if (stage.end or 0) > done] or found[-1:]


def _check(args: GRPOConfig) -> None:
    wrong = {
        "save_only_model": "the next stage needs the optimizer of the checkpoint",
        "ignore_data_skip": "a stage begins where the one before ended",
        "sync_ref_model": "checkpoints do not hold the reference model",
    }
    for name, reason in wrong.items():
        if getattr(args, name):
            raise BadData(f"{name} is true, which a curriculum cannot have, because {reason}: set it to false")


def parse_stages(text: str) -> list[tuple[int, float]]:
    """Rollouts of a prompt and share of the samples, by stage. Raises BadData.

    >>> parse_stages("4,8,16"), parse_stages("4:2, 8:1")
    ([(4, 1.0), (8, 1.0), (16, 1.0)], [(4, 2.0), (8, 1.0)])
    """
    expected = "expected each stage's num_generations, at least 2, with its share of the samples above 0 where they differ, as 4,8,16 or 4:2,8:1"
    found = []
    for piece in text.split(","):
        group, _, share = piece.strip().partition(":")
        try:
            stage = int(group), float(share or 1)
        except ValueError as problem:
            raise BadData(f"stages {text!r}: {expected}") from problem
        if stage[0] < 2 or not 0 < stage[1] < math.inf:
            raise BadData(f"stages {text!r}: {expected}")
        found.append(stage)
    return found


# --- easy to hard ----------------------------------------------------------------------------------------------------
def easy_to_hard(samples: Sequence[Sample], ours: RecipeArguments, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (S,) of the samples by falling mean of the curriculum's term, equals in random order, and these means (S,)."""
    remedy = f"perception-r1 probe --data {ours.data} --model {ours.model} --save-difficulty {ours.difficulty or 'difficulty.jsonl'}"
    if not ours.difficulty or not Path(ours.difficulty).is_file():
        found = f"no file {ours.difficulty}" if ours.difficulty else "none"
        raise BadData(f"curriculum {ours.curriculum}: expected a difficulty file, found {found}: make one with {remedy}, and name it by --difficulty")
    known = read_difficulty(Path(ours.difficulty), str(ours.curriculum))
    ids = [sample.id for sample in samples]
    if missing := [name for name in ids if name not in known]:
        found = f"{len(missing)} of {len(ids)} samples are not in it, the first is {missing[0]}"
        raise BadData(f"difficulty {ours.difficulty}: {found}: make it from the same data with {remedy}")
    means_S = np.array([known[name] for name in ids])
    order_S = np.lexsort((np.random.default_rng(seed).permutation(len(samples)), -means_S))
    return order_S, means_S[order_S]


def read_difficulty(path: Path, term: str) -> dict[str, float]:
    """The mean of a term (or of the total, `reward`) by sample id, of a file that `probe --save-difficulty` wrote. Raises BadData."""
    found: dict[str, float] = {}
    for where, row in read_rows(path):
        if isinstance(row, BadData):
            raise row
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(row.get("terms"), dict):
            raise BadData(f"{where}: expected id, mean and terms of a sample, as probe --save-difficulty writes them")
        if row["id"] in found:
            raise BadData(f"{where}: sample {row['id']!r} is there twice, expected every id once")
        entry = row if term == TOTAL else row["terms"].get(term)
        if not isinstance(entry, dict):
            raise BadData(f"{where}: sample {row['id']!r} has no term {term!r}: expected one of {', '.join([*row['terms'], TOTAL])}")
        mean = entry.get("mean")
        if isinstance(mean, bool) or not isinstance(mean, int | float) or not math.isfinite(mean):
            raise BadData(f"{where}: the mean of {term} is {mean!r}, expected a finite number")
        found[row["id"]] = float(mean)
    return found


# --- steps and rows of the stages ------------------------------------------------------------------------------------
def _unit(args: GRPOConfig) -> tuple[int, int]:
    """The least number of optimizer steps that use up whole generations, and how many generations those are."""
    use, accumulation = int(args.steps_per_generation or 1) * args.num_iterations, args.gradient_accumulation_steps
    together = math.lcm(use, accumulation)
    return together // accumulation, together // use


def _rows(args: GRPOConfig, group: int | None) -> int:
    """Samples of one unit of steps, over all devices, with `group` rollouts each."""
    return _unit(args)[1] * int(args.generation_batch_size or 0) // int(group or 1)


def _units_of(args: GRPOConfig, sizes: Sequence[int], groups: Sequence[int]) -> list[int]:
    """Units of steps of each stage: those of max_steps by share of the samples, or as many as the samples make."""
    steps = _unit(args)[0]
    if args.max_steps <= 0:
        return [int(args.num_train_epochs * size / _rows(args, group)) for size, group in zip(sizes, groups, strict=True)]
    if args.max_steps % steps:
        raise BadData(f"max_steps {args.max_steps}: expected a multiple of {steps}, the steps that use one generation")
    ends = np.rint(np.cumsum(sizes) / sum(sizes) * args.max_steps / steps).astype(int)
    return np.diff(ends, prepend=0).tolist()


def spread(pool: np.ndarray, count: int) -> np.ndarray:
    """`count` entries of `pool` in its order: whole passes, then entries at even steps.

    >>> spread(np.arange(6), 3).tolist(), spread(np.arange(3), 5).tolist()
    ([0, 2, 4], [0, 1, 2, 0, 1])
    """
    passes, rest = divmod(count, len(pool))
    return np.concatenate([*[pool] * passes, pool[np.arange(rest) * len(pool) // max(rest, 1)]])


def _stages(args: GRPOConfig, order_S: np.ndarray, means_S: np.ndarray, wanted: Sequence[tuple[int, float]], term: str) -> list[Stage]:
    groups, shares = zip(*wanted, strict=True)
    for group in groups:
        if args.per_device_train_batch_size % group:
            size = args.per_device_train_batch_size
            raise BadData(f"per_device_train_batch_size is {size}: expected a multiple of {group}, which stages gives as rollouts of a prompt")
    cuts = np.rint(np.cumsum((0, *shares)) / sum(shares) * len(order_S)).astype(int)
    units = _units_of(args, np.diff(cuts).tolist(), groups)
    found, start = [], 0
    for k, group in enumerate(groups):
        pool, rows = slice(cuts[k], cuts[k + 1]), _rows(args, group)
        if not units[k] or pool.start == pool.stop:
            few = f"stage {k + 1} has {pool.stop - pool.start} samples, too few for a step of {rows}"
            raise BadData(f"stages: {few}: expected fewer stages, or more data")
        end = start + units[k]
        own = spread(order_S[pool], units[k] * rows)
        # The trainer skips the rows of steps done by others, so they are there; one epoch is the whole run in every stage.
        padded = np.concatenate([np.repeat(own[:1], start * rows), own, np.repeat(own[-1:], (sum(units) - end) * rows)])
        step = _unit(args)[0]
        told = (
            f"stage {k + 1} of {len(groups)}: steps {start * step + 1} to {end * step}, {group} rollouts of a prompt, {len(np.unique(own))} of "
            f"{pool.stop - pool.start} samples, mean {term} {means_S[pool.start]:.3f} to {means_S[pool.stop - 1]:.3f}"
        )
        found.append(Stage(args=_for_stage(args, group, sum(units) * step), order=padded.tolist(), end=end * step, told=told))
        start = end
    return found


def _for_stage(args: GRPOConfig, group: int, max_steps: int) -> GRPOConfig:
    # A copy, not a replacement: GRPOConfig takes generation_batch_size and steps_per_generation only once.
    args = copy.copy(args)
    args.num_generations, args.max_steps, args.shuffle_dataset = group, max_steps, False
    return args
