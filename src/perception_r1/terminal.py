"""What every command of the line shares: wrong usage, a progress bar, the option that names the output."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer

T = TypeVar("T")

Output = Annotated[Path, typer.Option("-o", "--output", help="File to write; it appears whole or not at all.")]


# --- the reward, as every command that computes one takes it --------------------------------------
_MATCHINGS = "hungarian, greedy, sequential or best (which pays for copies: to compare only)."
Matching = Annotated[str, typer.Option(help=_MATCHINGS)]
_SHAPES = "Grounding: iou, squared, giou or thresholded."
IouShape = Annotated[str, typer.Option("--iou-shape", "--iou_shape", help=_SHAPES)]
_TERMS = "Weights of reward terms, as iou=1,format=0.5; 0 removes a term."
Weights = Annotated[str, typer.Option(help=_TERMS)]
_SEEN = "image of the model's processor, for answers that do not say what size the model saw."
_LEAST = f"Smallest {_SEEN} Qwen's own, 3136, by default."
MinPixels = Annotated[int | None, typer.Option(min=1, help=_LEAST)]
MaxPixels = Annotated[int | None, typer.Option(min=1, help=f"Largest {_SEEN}")]


class WrongUsage(typer.TyperException):
    """What was typed does not fit."""

    exit_code = 2


@contextmanager
def usage() -> Iterator[None]:
    """Inside, a BadData is about what was typed, not about a file: exit 2."""
    from .records import BadData

    try:
        yield
    except BadData as problem:
        raise WrongUsage(str(problem)) from problem


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with how much is done and how much there is: a progress bar on stderr when that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        step = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(step, completed=done, total=total)


def shown(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """The items, with a progress bar on stderr when that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, title, total=total, console=console, transient=True, disable=not console.is_terminal)
