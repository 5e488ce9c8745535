"""Whole GRPO steps, stock TRL and ours in turns: seconds of each phase, or (`--memory`) the memory a step takes.

    python benchmarks/grpo_step.py --group 8 16 32 --answer-tokens 40 --pixels 448x448 --json step.json
    python benchmarks/grpo_step.py --model shallow --group 8 --answer-tokens 512 2048
    python benchmarks/grpo_step.py --memory --group 8 16 32
    python benchmarks/grpo_step.py --device cuda --model qwen2-vl-2b --pixels 1000000 --group 8 16 [--memory]

Each arm is `trainer.train()` in a process of its own, and each does a step while the other waits: trl.GRPOTrainer, and our
GroupSharedTrainer with the same model, data, seed and settings (two prompts a step by gradient accumulation, as in the paper, unless
--prompts says otherwise; KL with beta 0.04, AdamW, every answer exactly as long as asked). `prototype` is a Qwen2-VL of 38 M random
parameters in float32, with the bundled policy's tokenizer (2,980 tokens, so that the head weighs as little as it does in a large model),
`shallow` the same with 2 of its 8 text layers; `qwen2-vl-2b` is the real shape and vocabulary with random weights, loaded as the recipes
do (float32 under a bfloat16 autocast, gradient checkpointing; needs PERCEPTION_R1_DATA). Timed arms keep freed memory, with --memory none.
"""

import argparse
import ctypes
import gc
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import trl
from arithmetic import Lengths, operations
from PIL import Image
from random_model import MODELS, build_model, config_of
from transformers.trainer_callback import PrinterCallback

from perception_r1.dialects import dialect_named
from perception_r1.records import Sample, Truth
from perception_r1.training.cpu import keep_freed_memory
from perception_r1.training.dataset import processor_frame, prompt_dataset, tasks_for
from perception_r1.training.group_shared import GroupSharedTrainer
from perception_r1.training.reward import PerceptionReward

ARMS = {"stock": trl.GRPOTrainer, "ours": GroupSharedTrainer}
NAMES = {"stock": "stock TRL", "ours": "ours"}
PHASES = ("whole", "rollouts", "policy", "reference", "preprocessing", "rest")
TITLES = ("whole step", "rollouts", "policy fwd+bwd", "reference", "preprocessing", "rest")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one pair of arms does."""

    folder: str
    """The model's."""
    group: int
    prompts: int  # a step's, one after the other: gradient accumulation
    answer_tokens: int
    pixels: str
    """WxH: pictures of that size, as they are. A number: larger pictures, resized to about so many pixels."""
    device: str
    bf16: bool
    checkpointing: bool
    memory: bool
    warmup: int
    steps: int
    threads: int
    cudnn: bool = True  # whether a GPU may choose cuDNN's attention, PyTorch's default; ours turns it off

    @property
    def picture(self) -> tuple[int, ...]:
        if "x" in self.pixels:
            return tuple(map(int, self.pixels.split("x")))
        width = round((int(self.pixels) * 4 / 3 * 1.2) ** 0.5)
        return width, width * 3 // 4

    @property
    def most_pixels(self) -> int:
        return 2**30 if "x" in self.pixels else int(self.pixels)


def draw_samples(case: Case, folder: Path) -> list[Sample]:
    """A picture a prompt, of coloured blots, each with a question of about twenty tokens."""
    rng, samples, (width, height) = np.random.default_rng(0), [], case.picture
    for number in range((case.warmup + case.steps) * case.prompts):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((width, height)).save(folder / f"{number}.jpg", quality=90)
        truth = Truth(boxes=np.array([[0, 0, width / 2, height / 2]]), labels=("dog",))
        fields = {"task": "grounding", "image": f"{number}.jpg", "width": width, "height": height, "query": "dog"}
        samples.append(Sample(id=str(number), truth=truth, root=folder, **fields))
    return samples


class Clock:
    """Seconds of each phase."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, defaultdict(float)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[phase] += self.now() - start


def clocked_trainer(kind: type, clock: Clock, meta: dict[str, Any]) -> type:
    """The trainer `kind`, with its phases timed and what it did noted in `meta`."""

    class Clocked(kind):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            with clock("rollouts"):
                found = super()._generate_single_turn(*args, **kwargs)
            meta["lengths"] = sorted({len(row) for row in found[0]})
            meta.setdefault("tokens", found[0])
            return found

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            with nullcontext() if torch.is_grad_enabled() else clock("reference"):
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)

        def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
            with clock("prepare"):
                found = super()._prepare_inputs(*args, **kwargs)
            meta.update(prompt=found["prompt_ids"].shape[-1], patches=int(found["image_grid_thw"][0].prod()))
            return found

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            with clock("training"):
                return super().training_step(*args, **kwargs)

    return Clocked


def clocked_processor(folder: str, clock: Clock, most_pixels: int) -> Any:
    processor = transformers.AutoProcessor.from_pretrained(folder)
    kind = type(processor)
    processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": most_pixels}

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        with clock("preprocessing"):
            return kind.__call__(self, *args, **kwargs)

    processor.__class__ = type(kind.__name__, (kind,), {"__call__": timed})
    return processor


class Turns(transformers.TrainerCallback):
    """Waits for its turn before each step, and sends what the step took."""

    def __init__(self, pipe: Any, clock: Clock, meta: dict[str, Any], memory: bool) -> None:
        self.pipe, self.clock, self.meta, self.memory = pipe, clock, meta, memory

    def _wait(self) -> None:
        self.pipe.recv()
        self.clock.seconds.clear()
        self.resting = rest_and_reset(self.clock.device) if self.memory else 0
        self.start = self.clock.now()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = self.clock.seconds
        figures = {"whole": self.clock.now() - self.start, "policy": seconds["training"] - seconds["prepare"]}
        figures |= {name: seconds[name] for name in ("rollouts", "reference", "preprocessing")}
        figures["rest"] = figures["whole"] - sum(figures[name] for name in PHASES[1:-1])
        if self.memory:
            figures = {"resting": self.resting / 2**20, "step": (peak(self.clock.device) - self.resting) / 2**20}
        self.meta["peak_gib"] = peak(self.clock.device) / 2**30
        self.pipe.send(figures | {"meta": dict(self.meta)})
        if state.global_step < args.max_steps:
            self._wait()


def rest_and_reset(device: str) -> int:
    """Bytes held between steps (weights, reference, optimizer state), everything free returned; the peak starts here."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024


def run_arm(pipe: Any, arm: str, case: Case) -> None:
    """Trains one arm, in this process, a step whenever the pipe says so."""
    torch.set_num_threads(case.threads)
    torch.backends.cuda.enable_cudnn_sdp(case.cudnn)
    _hush()
    if not case.memory and case.device == "cpu":
        keep_freed_memory()
    clock, meta, dialect = Clock(case.device), {}, dialect_named("qwen2-vl")
    with tempfile.TemporaryDirectory() as name:
        samples = draw_samples(case, Path(name))
        tasks, processor = tasks_for(samples, dialect=dialect), clocked_processor(case.folder, clock, case.most_pixels)
        reward = PerceptionReward(tasks, processor_frame(processor), processor.tokenizer, Path(name) / "rollouts.jsonl")
        args = trl.GRPOConfig(
            output_dir=name, seed=0, max_steps=case.warmup + case.steps, learning_rate=1e-6, beta=0.04,
            per_device_train_batch_size=case.group, num_generations=case.group, gradient_accumulation_steps=case.prompts,
            max_completion_length=case.answer_tokens, generation_kwargs={"min_new_tokens": case.answer_tokens},
            gradient_checkpointing=case.checkpointing, bf16=case.bf16, use_cpu=case.device == "cpu", remove_unused_columns=False,
            model_init_kwargs={"dtype": "float32"}, dataloader_pin_memory=case.device != "cpu",
            report_to="none", logging_strategy="no", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = clocked_trainer(ARMS[arm], clock, meta)(
            model=case.folder,
            reward_funcs=[reward, spread],
            args=args,
            train_dataset=prompt_dataset(samples, tasks),
            processing_class=processor,
            callbacks=[Turns(pipe, clock, meta, case.memory)],
            **({"share": "on"} if arm == "ours" else {}),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _hush() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # TRL's own settings under transformers' new names


def spread(completion_ids: list[list[int]], **_: Any) -> list[float]:  # a second reward, so that a group that knows nothing has advantages
    return [float(sum(ids) % 7) for ids in completion_ids]


def take_turns(case: Case, arms: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """The figures of each step of each arm, warm-up left out. The arm that goes first changes from step to step."""
    context, running = multiprocessing.get_context("spawn"), {}
    for arm in arms:
        pipe, theirs = context.Pipe()
        process = context.Process(target=run_arm, args=(theirs, arm, case), daemon=True)
        process.start()
        theirs.close()
        running[arm] = (process, pipe)
    found = defaultdict(list)
    for step in range(case.warmup + case.steps):
        for arm in arms if step % 2 else arms[::-1]:
            running[arm][1].send("go")
            found[arm].append(running[arm][1].recv())
            if found[arm][-1]["meta"]["lengths"] != [case.answer_tokens]:
                raise RuntimeError(f"{arm}: expected answers of {case.answer_tokens} tokens, found lengths {found[arm][-1]['meta']['lengths']}")
    for process, _ in running.values():
        process.join()
    return {arm: rows[case.warmup :] for arm, rows in found.items()}


def summed_up(case: Case, found: dict[str, list[dict[str, Any]]], model: str) -> dict[str, Any]:
    """Every figure of a case, medians and ratios last."""
    metas = {arm: rows[0]["meta"] for arm, rows in found.items()}
    found = {arm: [{name: value for name, value in row.items() if name != "meta"} for row in rows] for arm, rows in found.items()}
    meta = metas["ours"]
    lengths = Lengths(prompt=meta["prompt"], patches=meta["patches"], answer=case.answer_tokens, group=case.group)
    needed = operations(config_of(model), lengths, checkpointing=case.checkpointing)
    medians = {arm: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for arm, rows in found.items()}
    return {
        **asdict(case), "folder": None, "prompt_tokens": meta["prompt"], "patches": meta["patches"],
        "same_tokens": metas["stock"]["tokens"] == meta["tokens"],
        "operations": needed, "limit": {name: stock / ours for name, (stock, ours) in needed.items()}, "steps_measured": found, "medians": medians,
        "ratio": {name: medians["stock"][name] / value for name, value in medians["ours"].items() if value > 0},
    }  # fmt: skip


def print_case(result: dict[str, Any]) -> None:
    seen = f"{result['prompt_tokens']} prompt tokens, {result['patches'] // 4} of them image"
    told = "the same tokens in the first step" if result["same_tokens"] else "other tokens in the first step"
    sizes = f"answers of {result['answer_tokens']} tokens, G={result['group']}, prompts a step: {result['prompts']}"
    print(f"\npixels {result['pixels']} ({seen}), {sizes}; {told}")
    medians, ratio = result["medians"], result["ratio"]
    if result["memory"]:
        print(f"{'MiB':<22}{'resting':>12}{'a step adds':>14}")
        for arm in ARMS:
            print(f"{NAMES[arm]:<22}{medians[arm]['resting']:12.0f}{medians[arm]['step']:14.0f}")
        print(f"{'ours / stock TRL':<22}{1 / ratio['resting']:12.2f}{1 / ratio['step']:14.2f}")
        return
    print(f"{'median seconds':<22}" + "".join(f"{title:>16}" for title in TITLES))
    for arm in ARMS:
        print(f"{NAMES[arm]:<22}" + "".join(f"{medians[arm][name]:16.3f}" for name in PHASES))
    limit = result["limit"]
    print(f"{'arithmetic limit':<22}" + "".join(f"{limit[name]:15.1f}x" if name in limit else f"{'':16}" for name in PHASES))
    print(f"{'share of it reached':<22}" + "".join(f"{ratio[name] / limit[name]:16.0%}" if name in limit else f"{'':16}" for name in PHASES))
    print(f"{'stock TRL / ours':<22}" + "".join(f"{ratio[name]:15.1f}x" if name in ratio else f"{'':16}" for name in PHASES), flush=True)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__, "python": platform.python_version()}
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    return vars(options) | {"json": None, "machine": machine, "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=MODELS, default="prototype")
    parser.add_argument("--group", type=int, nargs="+", default=[8, 16, 32], help="G, the answers to a prompt")
    parser.add_argument("--prompts", type=int, nargs="+", default=[2], help="prompts a step; the paper accumulates 2")
    parser.add_argument("--answer-tokens", type=int, nargs="+", default=[40])
    parser.add_argument("--pixels", nargs="+", default=["448x448"], help="WxH, or a number to which larger pictures are resized")
    for name, default, said in (("--steps", 5, "steps measured, after the warm-up"), ("--warmup", 1, None), ("--threads", 2, None)):
        parser.add_argument(name, type=int, default=default, help=said)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=None, help="default: with qwen2-vl-2b only")
    parser.add_argument("--memory", action="store_true", help="memory instead of time, one arm after the other")
    parser.add_argument("--json", type=Path, help="a file for every figure")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    large = options.model == "qwen2-vl-2b"
    checkpointing = large if options.checkpointing is None else options.checkpointing
    same = {name: getattr(options, name) for name in ("device", "memory", "warmup", "steps", "threads")}
    same |= {"bf16": large, "checkpointing": checkpointing}
    print(f"{options.model} on {options.device}, gradient checkpointing {'on' if checkpointing else 'off'}, medians of {options.steps} steps")
    results = []
    _hush()
    with tempfile.TemporaryDirectory() as folder:
        build_model(options.model, Path(folder), options.device)
        for pixels, answer_tokens, group, prompts in itertools.product(options.pixels, options.answer_tokens, options.group, options.prompts):
            case = Case(folder=folder, pixels=pixels, answer_tokens=answer_tokens, group=group, prompts=prompts, **same)
            turns = [("stock",), ("ours",)] if options.memory else [("stock", "ours")]
            found = {arm: rows for arms in turns for arm, rows in take_turns(case, arms).items()}
            results.append(summed_up(case, found, options.model))
            print_case(results[-1])
            if options.json:  # after each case, so that a long run that is stopped keeps what it has
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps({"settings": settings_of(options), "cases": results}, indent=1))


if __name__ == "__main__":
    main()
