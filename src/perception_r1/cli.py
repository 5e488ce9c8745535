"""The command line: `perception-r1 …`. Thin: every command imports what it needs when it runs, and calls one room.

Exit codes: 0 done, 1 failure (bad data, a full disk, a check that found something), 2 wrong usage. Errors are one line on
stderr; `--debug` anywhere on the line shows the traceback instead.
"""

import json
import os
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, NoReturn

import typer

from . import not_installed
from .commands_data import data_app
from .commands_evaluate import evaluate, probe
from .commands_study import study
from .terminal import IouShape, Matching, MaxPixels, MinPixels, Output, Weights, WrongUsage, shown, usage

app = typer.Typer(
    name="perception-r1",
    help="Reinforcement learning for visual perception, with rewards from physical ground truth.\n\n--debug shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.command(epilog="Example: perception-r1 study matching --seeds 3 --budget 30")(study)

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}

InputFile = Annotated[Path, typer.Argument(metavar="FILE", help="A sample file: JSONL, or Parquet.")]
Answers = Annotated[Path | None, typer.Option(help='Lines of {"id", "completion", "seen"}, joined with FILE by id.')]
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A name in recipes/, or a YAML file.")]
DialectName = Annotated[str, typer.Option("--dialect", help="qwen2-vl, qwen2.5-vl, qwen3-vl, internvl, llava or plain.")]
Thinking = Annotated[bool, typer.Option("--thinking", help="Demand <think>…</think><answer>…</answer>.")]


@app.command(epilog="Example: perception-r1 tasks")
def tasks() -> None:
    """List the tasks: prompt, reward terms with their ranges, main metric."""
    from rich.console import Console
    from rich.table import Table

    from .tasks import TASKS, make_task

    table = Table("task", "prompt", "reward terms", "main metric")
    for name in TASKS:
        task = make_task(name)
        terms = "\n".join(
            f"{term} {least:g} … {greatest:g}{' (weight 0)' * (not task.weight(term))}"
            for term, (least, greatest) in task.all_terms().items()
        )
        table.add_row(name, task.template(), terms, task.MAIN_METRIC)
    Console().print(table)


@app.command(epilog="Example: perception-r1 score samples.jsonl --answers answers.jsonl --dialect qwen2.5-vl -o scores.jsonl")
def score(
    file: InputFile,
    answers: Answers = None,
    dialect: DialectName = "qwen2-vl",
    thinking: Thinking = False,
    matching: Matching = "hungarian",
    iou_shape: IouShape = "iou",
    weights: Weights = "",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write; standard output by default.")] = None,
) -> None:
    """Reward of completions: {"id", "total", "terms", "problem"}, line for line.

    FILE's lines hold the sample and its "completion", or --answers has the completions. Opens no image.
    Where answers write pixels of the resized image, each line says at what size the model saw it (its field "seen", width and
    height), or --max-pixels says what the model's processor allowed.
    """
    from contextlib import nullcontext

    from .data.samples import replacing
    from .evaluation.score import ScoreSettings, score_file
    from .frames import Sizes
    from .tasks import parse_weights

    with usage():
        settings = ScoreSettings(
            dialect=dialect, thinking=thinking, matching=matching, iou_shape=iou_shape,
            weights=parse_weights(weights), min_pixels=min_pixels, max_pixels=max_pixels,
        )  # fmt: skip
    sizes = Sizes(limits=settings.limits)
    count, malformed, sum_of_totals = 0, 0, 0.0
    with nullcontext() if output is None else replacing(output) as part, open(part, "w") if part else nullcontext(sys.stdout) as out:
        for line in shown(score_file(file, settings, answers, sizes), "scoring"):
            print(json.dumps(line), file=out)
            count, malformed, sum_of_totals = count + 1, malformed + (line["problem"] is not None), sum_of_totals + line["total"]
    print(f"{count} completions, mean total {sum_of_totals / count:.4f}, malformed {malformed}", file=sys.stderr)
    if note := sizes.note():
        print(note, file=sys.stderr)


@app.command(epilog="Example: perception-r1 check train.jsonl")
def check(file: InputFile, images: Annotated[bool, typer.Option(help="Open every image.")] = True) -> None:
    """Check a sample file: ids unique, images open with the stated size, every truth earns full marks in every dialect."""
    from rich.console import Console
    from rich.table import Table

    from .data.check import check_samples
    from .data.samples import Skipped, read_samples

    problems = Skipped()
    report = check_samples(shown(read_samples(file, skipped=problems), "checking"), images=images, problems=problems)
    table = Table("task", "samples", "true objects", title=str(file))
    for task, count in sorted(report.samples.items()):
        table.add_row(task, f"{count:,}", f"{report.objects[task]:,}")
    Console().print(table)
    if report.counted:
        print(f"{report.counted:,} samples hold a bare count: answers can be measured against it, and no reward, so no training, is possible")
    for problem in problems.problems:
        print(problem, file=sys.stderr)
    if not report.good:
        fail(f"{file}: {problems.count} problems, the first {len(problems.problems)} above", 1)


app.command(epilog="Example: perception-r1 evaluate --model runs/counting --data coco:/data/coco -o runs/counting/eval")(evaluate)


app.command(epilog="Example: perception-r1 probe --data train.jsonl --model Qwen/Qwen2-VL-2B-Instruct --limit 200 -o probe.json")(probe)


@app.command(epilog="Example: perception-r1 report runs/before runs/after --as refcoco_val -o comparison.html")
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders with a metrics.json.")],
    output: Output = Path("report.html"),
    declared: Annotated[list[str] | None, typer.Option("--as", metavar="[DIR=]NAME", help="What published set the data is, as refcoco_val.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="Worst answers shown of each run.")] = 24,
) -> None:
    """One HTML page, and the same as Markdown beside it: runs beside the paper's tables, compared with each other, worst answers drawn."""
    from .evaluation.report import write_runs_report

    written = write_runs_report(folders, output, declared=declared or [], worst=worst)
    print(f"wrote {' and '.join(map(str, written))}")


@app.command(epilog="Example: perception-r1 show samples.jsonl -o gallery.html")
def show(
    file: InputFile,
    output: Output,
    answers: Answers = None,
    dialect: DialectName = "qwen2-vl",
    thinking: Thinking = False,
    matching: Matching = "hungarian",
    iou_shape: IouShape = "iou",
    weights: Weights = "",
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many; with answers 48 by default.")] = None,
) -> None:
    """A gallery of samples with their truth: an HTML page with filters, and its thumbnails in a folder beside it.

    Where there are answers, in FILE or in --answers: one HTML file of pictures with truth, answers and what they earn.
    """
    from itertools import islice

    from .data.samples import read_samples, replacing
    from .evaluation.score import ScoreSettings, pictures
    from .gallery import has_completions, thumbnail_folder, write_gallery
    from .tasks import parse_weights
    from .visualize import gallery

    with usage():
        settings = ScoreSettings(
            dialect=dialect, thinking=thinking, matching=matching, iou_shape=iou_shape,
            weights=parse_weights(weights), min_pixels=min_pixels, max_pixels=max_pixels,
        )  # fmt: skip
    if answers is None and not has_completions(file):
        count = write_gallery(shown(islice(read_samples(file), limit), "drawing", limit), output, title=str(file))
        print(f"wrote {output} with {count} samples; their thumbnails are in {thumbnail_folder(output)}")
        return
    limit = limit or 48
    drawn = shown(islice(pictures(file, settings, answers), limit), "drawing", limit)
    with replacing(output) as part, part.open("w", encoding="utf-8") as page:
        page.writelines(gallery(drawn, str(answers or file)))
    print(f"wrote {output}")


@app.command(epilog="Example: perception-r1 demo --model runs/quickstart --base tiny")
def demo(
    model: Annotated[str | None, typer.Option(help="Checkpoint folder, or hub id; with --server, the name that it has there.")] = None,
    base: Annotated[str | None, typer.Option(help="A second model, asked the same and shown beside it.")] = None,
    server: Annotated[str | None, typer.Option(help="Address of an OpenAI-compatible server, as http://localhost:8000; needs --dialect.")] = None,
    task: Annotated[str | None, typer.Option(help="The task chosen at first; the model's own by default.")] = None,
    dialect: Annotated[str | None, typer.Option(help="How answers write boxes; each model's own by default.")] = None,
    thinking: Annotated[bool | None, typer.Option(help="Whether answers think first; each model's own way by default.")] = None,
    matching: Matching = "hungarian",
    iou_shape: IouShape = "iou",
    weights: Weights = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 1024,
    min_pixels: Annotated[int | None, typer.Option(min=1, help="Smallest image the model sees.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Largest image the model sees.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; the GPU when there is one.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
) -> None:
    """A web page: drop a picture, ask, and see the answer drawn and, once you draw the truth, what it earns."""
    from .rewards import RewardSettings
    from .tasks import make_task, parse_weights

    if model is None and server is None:
        raise WrongUsage("expected --model (a checkpoint folder, a hub id, or tiny) or --server")
    with usage():
        make_task(task or "grounding", dialect=dialect or "qwen2-vl")
        reward = RewardSettings(
            matching=matching, iou_shape=iou_shape, weights=parse_weights(weights)
        ).about()
    from .demo.page import serve
    from .demo.policies import load_policies

    policies = load_policies(
        model, base, server=server, thinking=thinking, max_new_tokens=max_new_tokens, device=device, dialect=dialect,
        reward=reward, min_pixels=min_pixels, max_pixels=max_pixels,
    )  # fmt: skip
    serve(policies, host=host, port=port, task=task)


def passed_on(context: typer.Context, recipe: str) -> list[str]:
    """The `--key value` overrides after RECIPE, as they were typed."""
    if recipe.startswith("-"):
        raise WrongUsage(f"found {recipe} where the recipe should be: write the recipe's name first, then its overrides")
    return list(context.args)


def check_settings(recipe: str, overrides: list[str]) -> None:
    """What is wrong with a recipe and seen without torch, whose import takes many seconds."""
    from .training.requirements import check_settings as check

    check(recipe, overrides)


@app.command(context_settings=PASS_THROUGH, epilog="Example: perception-r1 sft tiny-base --max_steps 200 --output_dir runs/sft")
def sft(context: typer.Context, recipe: Recipe) -> None:
    """Supervised fine-tuning on the truths of a task. Any --key value after RECIPE overrides it (ours, or TRL's SFTConfig and ModelConfig)."""
    overrides = passed_on(context, recipe)
    check_settings(recipe, overrides)
    from .training.sft import run

    run(recipe, overrides)


@app.command(context_settings=PASS_THROUGH, epilog="Example: perception-r1 grpo counting --model Qwen/Qwen2-VL-2B-Instruct --data train.jsonl")
def grpo(context: typer.Context, recipe: Recipe) -> None:
    """Reinforcement learning (GRPO). Any --key value after RECIPE overrides it (ours, or TRL's GRPOConfig and ModelConfig)."""
    overrides = passed_on(context, recipe)
    check_settings(recipe, overrides)
    from .training.grpo import run

    run(recipe, overrides)


@app.command(epilog="Example: perception-r1 merge runs/lora/checkpoint-200 -o runs/lora-200")
def merge(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A LoRA adapter, such as a run's checkpoint-200.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to make: weights, processor, settings.")
    ],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; as trained by default.")
    ] = None,
) -> None:
    """Merge a LoRA adapter into its base: a model folder that needs no PEFT to be loaded."""
    from .evaluation.merging import merge as run

    print(f"wrote {run(folder, output, dtype=dtype)}")


def fail(message: str, code: int) -> NoReturn:
    if message:  # a bare `perception-r1` has printed its help instead
        print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


EXTRA_OF = {"torch": "train", "torchvision": "train", "transformers": "train", "trl": "train", "peft": "train", "datasets": "train"}
EXTRA_OF |= {"accelerate": "train", "safetensors": "train", "filelock": "train"}
EXTRA_OF |= {"hotcoco": "eval", "nltk": "eval", "jieba": "eval", "openai": "eval"}
EXTRA_OF |= {"pyarrow": "data", "pypdfium2": "data"}
EXTRA_OF |= {"gradio": "demo", "starlette": "demo", "vllm": "vllm", "deepspeed": "deepspeed"}


EXPECTED = (typer.TyperException, typer.Abort, ValueError, OSError, ModuleNotFoundError)
EXPECTED += (UnpicklingError,)
"""What may be told in one line."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 failure, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        code = app([word for word in words if word != "--debug"], prog_name="perception-r1", standalone_mode=False)
        sys.stdout.flush()  # a full disk behind standard output shows here, not after we have left
        sys.exit(code or 0)
    except BrokenPipeError:  # the reader of our output, such as `head`, went away
        silence_output()
        sys.exit(1)
    except EXPECTED as problem:
        if debug:
            raise
        explain(problem)


def silence_output() -> None:
    """Lets what is left in standard output's buffer go nowhere, so that Python does not complain about it when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(problem: Exception) -> NoReturn:
    """One line on stderr about an expected failure, and its exit code; anything unexpected is raised again."""
    from .records import BadData  # here, because numpy behind it would slow --help down

    if isinstance(problem, typer.TyperException):
        fail(problem.format_message(), problem.exit_code)
    if isinstance(problem, typer.Abort):
        fail("stopped", 1)
    if isinstance(problem, ModuleNotFoundError):
        module = (problem.name or "").partition(".")[0]
        if module not in EXTRA_OF:
            raise problem
        fail(not_installed(module, EXTRA_OF[module]), 1)
    if isinstance(problem, UnpicklingError):  # of a hub's model; a folder is looked at before
        found = "a file of weights was refused, since loading it could run code"
        fail(f"{found}: expected safetensors, or tensors alone", 1)
    if isinstance(problem, OSError) and problem.strerror:
        silence_output()
        fail(f"{problem.filename or 'output'}: {problem.strerror}: expected a place that can be read and written, with room left", 1)
    if not isinstance(problem, (BadData, OSError)):
        raise problem
    fail(str(problem), 1)


if __name__ == "__main__":
    main()
