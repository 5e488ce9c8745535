"""One check of the training path on a GPU: at most 9 minutes on one H100.

    python benchmarks/gpu.py --out gpu.jsonl
    python benchmarks/gpu.py --small          (a rehearsal on a CPU, with small shapes)
    python benchmarks/gpu.py --only decoding,steps

Every section runs in a process of its own, prints JSON lines, and costs the others nothing when it
fails. Models have random weights: Qwen2-VL-2B's real shape (`memory`: Qwen2.5-VL-3B's), a picture of
1,000,000 pixels, 8 answers of 40 tokens, and the dtypes of the recipes: float32 weights under a
bfloat16 autocast. The configs come from PERCEPTION_R1_DATA.

exactness  log-probabilities and gradients of packed rows against TRL's rows, three small families
attention  what cuDNN's attention costs at each new length, and the other kernels beside it
windows    Qwen2.5-VL's vision tower, attention a window and attention to all windows at once
decoding   a token of a group: recorded as a CUDA graph, and launched kernel by kernel
forward    the vision tower, reference and policy passes: time, memory, kernels
steps      whole training steps: stock TRL with and without cuDNN's attention, and ours with and
           without gradient checkpointing
memory     the peak of the detection recipe's step (Qwen2.5-VL-3B, no adapters)
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import grpo_step
import torch
import transformers
import trl
from gpu_exactness import exactness
from gpu_sections import GROUP, Setting, attention, decoding, forward, windows
from grpo_step import Case, take_turns
from random_model import build_model


def _case(setting: Setting, folder: Path, **changes: Any) -> Case:
    pixels = "112x140" if setting.small else "1000000"
    settings: dict[str, Any] = {"folder": str(folder), "group": GROUP, "prompts": 2, "pixels": pixels}
    settings |= {"answer_tokens": setting.answer, "device": setting.device, "bf16": True}
    settings |= {"warmup": 1, "steps": 2, "threads": 2 if setting.small else 8}
    settings |= {"checkpointing": True, "memory": False}
    return Case(**{**settings, **changes})


def steps(setting: Setting) -> None:
    folder = setting.folder / "steps"
    folder.mkdir()
    build_model(setting.model, folder, setting.device)
    torch.cuda.empty_cache()
    arms = (("ours", True, False), ("stock", True, True), ("ours", False, False), ("stock", True, False))
    for arm, checkpointing, cudnn in arms:
        settings = {"checkpointing": checkpointing, "cudnn": cudnn}
        rows = take_turns(_case(setting, folder, **settings), (arm,))[arm]
        found = {name: statistics.median(row[name] for row in rows) for name in grpo_step.PHASES}
        setting.say(arm=arm, **settings, seconds=found, peak_gib=rows[-1]["meta"]["peak_gib"])


def memory(setting: Setting) -> None:
    folder = setting.folder / "memory"
    folder.mkdir()
    build_model("prototype" if setting.small else "qwen2.5-vl-3b", folder, setting.device)
    torch.cuda.empty_cache()
    case = _case(setting, folder, memory=True, warmup=1, steps=1)
    row = take_turns(case, ("ours",))["ours"][0]
    setting.say(resting_gib=row["resting"] / 2**10, peak_gib=(row["resting"] + row["step"]) / 2**10)


SECTIONS = {work.__name__: work for work in (exactness, attention, windows, decoding, forward, steps, memory)}


# ------------------------------------------------------------------------------------ the run


def run_section(name: str, options: argparse.Namespace, folder: str) -> None:
    """One section, in a process of its own."""
    torch.set_num_threads(2 if options.small else 8)
    transformers.logging.set_verbosity_error()

    def say(**found: Any) -> None:
        line = json.dumps({"section": name, **_rounded(found)})
        print(line, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(line + "\n")

    device = "cpu" if options.small else "cuda"
    SECTIONS[name](Setting(device=device, small=options.small, folder=Path(folder), say=say))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def room_for_models() -> str | None:
    """A folder in memory where there is room, else the usual one."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 12e9 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a rehearsal on a CPU")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, in this order")
    parser.add_argument("--limit", type=float, default=540, help="seconds for all of it")
    parser.add_argument("--out", type=Path, help="a file to which every line is added")
    options = parser.parse_args()
    start = time.perf_counter()
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}
    gpu = "none" if options.small else os.popen("nvidia-smi -L").read().strip()
    print(json.dumps({"versions": versions, "gpu": gpu}), flush=True)
    fork = multiprocessing.get_context("fork")  # what is imported is imported once; no CUDA here yet
    with tempfile.TemporaryDirectory(dir=room_for_models()) as folder:
        for name in options.only.split(","):
            left = options.limit - (time.perf_counter() - start)
            process = fork.Process(target=run_section, args=(name, options, folder))
            process.start()
            process.join(max(left, 0))
            if process.is_alive():
                process.kill()
            ended = {0: "done", None: "stopped: no time left"}.get(process.exitcode, "FAILED")
            print(json.dumps({"section": name, "ended": ended, "at_s": round(time.perf_counter() - start, 1)}), flush=True)


if __name__ == "__main__":
    main()
