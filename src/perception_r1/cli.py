"""The command line: `perception-r1 …`. Thin: every command imports what it needs when it runs, and calls one room.

Exit codes: 0 done, 1 failure (bad data, a full disk, a check that found something), 2 wrong usage. Errors are one line on
stderr; `--debug` anywhere on the line shows the traceback instead.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

app = typer.Typer(
    name="perception-r1",
    help="Reinforcement learning for visual perception, with rewards from physical ground truth.\n\n--debug shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Turn somebody's format into a sample file (JSONL, or Parquet by the suffix).", no_args_is_help=True)
app.add_typer(data_app, name="data")

T = TypeVar("T")
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}

Output = Annotated[Path, typer.Option("-o", "--output", help="File to write; it appears whole or not at all.", dir_okay=False)]
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A name in recipes/, or a YAML file.")]
DialectName = Annotated[str, typer.Option("--dialect", help="How the completions write boxes: qwen2-vl, qwen2.5-vl, qwen3-vl, internvl, llava or plain.")]


@contextmanager
def usage() -> Iterator[None]:
    """Inside, a BadData is about what was typed, not about a file: exit 2."""
    from .records import BadData

    try:
        yield
    except BadData as problem:
        raise typer.BadParameter(str(problem)) from problem


def shown(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """The items, with a progress bar on stderr when that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, title, total=total, console=console, transient=True, disable=not console.is_terminal)


@app.command(epilog="Example: perception-r1 tasks")
def tasks() -> None:
    """List the tasks: prompt, reward terms with their ranges, main metric."""
    from rich.console import Console
    from rich.table import Table

    from .records import Sample, Truth
    from .tasks import TASKS, make_task

    table = Table("task", "prompt", "reward terms", "main metric")
    for name in TASKS:
        task = make_task(name)
        sample = Sample(id="", task=name, image="", width=1, height=1, query="{query}", categories=("{categories}",), truth=Truth(text=""))
        terms = "\n".join(f"{term} {least:g} … {greatest:g}" for term, (least, greatest) in task.TERMS.items())
        table.add_row(name, task.prompt(sample), terms, task.MAIN_METRIC)
    Console().print(table)


def passed_on(context: typer.Context, recipe: str) -> list[str]:
    """The `--key value` overrides after RECIPE, as they were typed."""
    if recipe.startswith("-"):
        raise typer.BadParameter(f"found {recipe} where the recipe should be: write the recipe's name first, then its overrides")
    return list(context.args)


@app.command(context_settings=PASS_THROUGH, epilog="Example: perception-r1 sft tiny-grounding --max_steps 200 --output_dir runs/sft")
def sft(context: typer.Context, recipe: Recipe) -> None:
    """Supervised fine-tuning on the truths of a task. Any --key value after RECIPE overrides it (ours, or TRL's SFTConfig and ModelConfig)."""
    overrides = passed_on(context, recipe)
    from .training.sft import run

    run(recipe, overrides)


@app.command(context_settings=PASS_THROUGH, epilog="Example: perception-r1 grpo counting --model Qwen/Qwen2-VL-2B-Instruct --data train.jsonl --beta 0.04")
def grpo(context: typer.Context, recipe: Recipe) -> None:
    """Reinforcement learning (GRPO). Any --key value after RECIPE overrides it (ours, or TRL's GRPOConfig and ModelConfig)."""
    overrides = passed_on(context, recipe)
    from .training.grpo import run

    run(recipe, overrides)


def fail(message: str, code: int) -> NoReturn:
    if message:  # a bare `perception-r1` has printed its help instead
        print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


EXTRA_OF = {"torch": "train", "torchvision": "train", "transformers": "train", "trl": "train", "peft": "train", "datasets": "train"}
EXTRA_OF |= {"accelerate": "train", "hotcoco": "eval", "nltk": "eval", "jieba": "eval", "pyarrow": "eval", "gradio": "demo", "vllm": "vllm"}


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 failure, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        sys.exit(app([word for word in words if word != "--debug"], prog_name="perception-r1", standalone_mode=False) or 0)
    except BrokenPipeError:  # the reader of our output, such as `head`, went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (typer.TyperException, typer.Abort, ValueError, OSError, ModuleNotFoundError) as problem:
        if debug:
            raise
        explain(problem)


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
        fail(f"{module} is not installed: pip install 'perception-r1[{EXTRA_OF[module]}]'", 1)
    if isinstance(problem, OSError) and problem.strerror:
        fail(f"{problem.filename or 'output'}: {problem.strerror}", 1)
    if not isinstance(problem, (BadData, OSError)):
        raise problem
    fail(str(problem), getattr(problem, "exit_code", 1))


if __name__ == "__main__":
    main()
