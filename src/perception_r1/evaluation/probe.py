"""Before GPU hours are spent: how hard a sample file is to match, and how much RL can make of a policy's answers to it.

Perceptual perplexity (the paper's) is the number of ways to pair what is written with what is there, averaged over samples:
the mean of n! for n true objects, crowd regions left out as in the rewards. A few crowded images make nearly all of it, so its
log10 and its largest image stand beside it.

The room for RL shows in groups of sampled answers. GRPO learns from differences within a group: a group whose rewards are all
equal teaches nothing, and what the best of a group earns above its mean is what can be had without learning anything new.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from ..data.mixture import Mixture, load_data
from ..data.samples import open_image, replacing
from ..data.subsets import subset
from ..records import BadData, Sample, Score
from ..rewards import RewardSettings
from ..tasks.task import true_objects
from .asking import load_backend
from .run import Progress, about_data, versions

SLIGHT, FEW, MANY = 0.05, 0.2, 0.8
"""Shares of groups, of answers or of the range of rewards, by which the verdict chooses its words."""


# --- perceptual perplexity -------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How many matchings the samples of one source and task allow."""

    data: str
    """The file or shorthand they came from."""
    source: str | None
    task: str
    samples: int
    objects: int
    most: int
    """True objects of the sample that has most."""
    log10: float
    """Of the mean of n!."""
    largest_share: float
    """Share of that mean which comes from the samples with `most` objects."""

    @property
    def mean(self) -> float | None:
        """The mean of n!, or None where it is beyond float64."""
        return 10**self.log10 if self.log10 < 308 else None


def log10_mean_factorial(counts: Mapping[int, int]) -> float:
    """log10 of the mean of n!, for `counts` samples with n objects; a log-sum, so that nothing overflows.

    >>> round(10 ** log10_mean_factorial({0: 1, 1: 1, 4: 1}), 9)  # (1 + 1 + 24) / 3
    8.666666667
    """
    logs = {n: math.lgamma(n + 1) + math.log(count) for n, count in counts.items()}
    top = max(logs.values())
    return (top + math.log(math.fsum(math.exp(log - top) for log in logs.values())) - math.log(sum(counts.values()))) / math.log(10)


def perplexities(mixture: Mixture) -> list[Perplexity]:
    """The perplexity of every part, source and task of some data."""
    counts: dict[tuple[str, str | None, str], Counter[int]] = defaultdict(Counter)
    for part in mixture.parts:
        for sample in part.samples:
            counts[part.name, sample.source, sample.task][objects_of(sample)] += 1
    return [_perplexity(*key, found) for key, found in counts.items()]


def objects_of(sample: Sample) -> int:
    """True objects of a sample, crowd regions left out; a page's text is one."""
    return len(true_objects(sample)) if sample.truth.text is None else 1


def _perplexity(data: str, source: str | None, task: str, counts: Mapping[int, int]) -> Perplexity:
    samples, most, log10 = sum(counts.values()), max(counts), log10_mean_factorial(counts)
    largest = math.lgamma(most + 1) + math.log(counts[most] / samples) - log10 * math.log(10)
    objects = sum(n * count for n, count in counts.items())
    return Perplexity(
        data=data, source=source, task=task, samples=samples, objects=objects, most=most, log10=log10, largest_share=min(1.0, math.exp(largest))
    )


def scientific(log10: float) -> str:
    """A number of any size from its log10.

    >>> scientific(0), scientific(5.3602184), scientific(83.5403295), scientific(1000)
    ('1.0', '229,202.0', '3.47e+83', '1.00e+1000')
    """
    if log10 < 7:
        return f"{10**log10:,.1f}"
    digits, _, extra = f"{10 ** (log10 % 1):.2e}".partition("e")  # 9.999 rounds up to 1.00e+01
    return f"{digits}e+{math.floor(log10) + int(extra)}"


# --- the room for RL -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How a policy is probed. Everything that GRPO draws by should be as in the run that is planned."""

    num_generations: int = 8
    """Answers to each sample: the G of GRPO."""
    groups_per_step: int = 2
    """Groups whose gradients make one step, over all devices; 2 in the paper on one device."""
    temperature: float = 1.0
    max_new_tokens: int = 2048
    """Tokens after which an answer is cut off."""
    batch_size: int = 32
    """Answers sampled at a time."""
    limit: int | None = None
    """So many samples, drawn at random by source and label; None for all."""
    seed: int = 0
    thinking: bool | None = None
    """Whether answers think first; None for the model's own way."""
    matching: str = "hungarian"
    iou_shape: str = "iou"
    weights: Mapping[str, float] = field(default_factory=dict)
    """The reward, as in the run that is planned."""
    min_pixels: int | None = None
    max_pixels: int | None = None
    """Limits of the resized image, in pixels; None for the processor's own."""

    def __post_init__(self) -> None:
        least = {"num_generations": 2, "groups_per_step": 1, "max_new_tokens": 1, "batch_size": 1, "limit": 1, "min_pixels": 1, "max_pixels": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise BadData(f"{name} is {value}: expected at least {bound}")
        if not 0 < self.temperature < math.inf:
            raise BadData(f"temperature is {self.temperature}: expected a finite number above 0, since greedy answers are all the same")
        self.rewards()

    def rewards(self, **reading: Any) -> RewardSettings:
        """The reward, for answers that are read by `reading` (dialect, thinking)."""
        return RewardSettings(
            matching=self.matching, iou_shape=self.iou_shape, weights=self.weights, **reading
        )


class Group(NamedTuple):
    """The scores of one sample's G answers."""

    sample: Sample
    scores: Sequence[Score]
    cut: int
    """Answers that were cut off at the greatest length."""

    def values(self) -> dict[str, np.ndarray]:
        """The total, under "", and each term of the G answers: name → (G,)."""
        terms = {name: np.array([score.terms[name] for score in self.scores]) for name in self.scores[0].terms}
        return {"": np.array([score.total for score in self.scores])} | terms

    def difficulty(self) -> dict[str, Any]:
        """What a curriculum reads: `{"id", "mean", "best", "spread", "terms": {name: {"mean", "best", "spread"}}}`.

        `spread` is the greatest minus the least value of the group: 0 exactly where nothing can be learnt.
        """
        found = {name: {"mean": float(v.mean()), "best": float(v.max()), "spread": float(np.ptp(v))} for name, v in self.values().items()}
        return {"id": self.sample.id, **found.pop(""), "terms": found}


def probe(
    data: str,
    *,
    model: str | Path | None = None,
    task: str | None = None,
    settings: ProbeSettings | None = None,
    save_difficulty: Path | None = None,
    dialect: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    sharing: Any = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Perplexity of the data that `data` names and, given a model, what RL can make of it: `{"data", "perplexity", "headroom", …}`.

    `headroom` holds, by task, what `headroom` gives. `save_difficulty` is a file with a line a sample (`Group.difficulty`).
    `sharing` (`training.rollouts.shared_prefill`) lets the answers to a prompt share its prefill.
    Without a model, torch is not needed. Raises BadData for unusable input, OSError for an unwritable output.
    """
    settings = settings or ProbeSettings()
    mixture = load_data(data, task)
    settings.rewards().check_used({sample.task for sample in mixture})
    found = [asdict(entry) | {"mean": entry.mean} for entry in perplexities(mixture)]
    result: dict[str, Any] = {"data": about_data(data, mixture), "perplexity": found, "versions": versions()}
    if model is None:
        return result
    samples = mixture if settings.limit is None or settings.limit >= len(mixture) else subset(mixture, settings.limit, settings.seed)
    options = {"device": device, "dtype": dtype, "min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
    backend = load_backend(model, samples, dialect=dialect, sharing=sharing, **options)
    groups = []
    with nullcontext() if save_difficulty is None else replacing(save_difficulty) as part, part.open("w") if part else nullcontext() as file:
        for group in sampled_groups(backend, samples, settings):
            groups.append(group)
            if file:
                file.write(json.dumps(group.difficulty(), ensure_ascii=False) + "\n")
            if on_progress:
                on_progress(len(groups), len(samples))
    tasks = sorted({group.sample.task for group in groups})
    rooms = {name: headroom([group for group in groups if group.sample.task == name], settings) for name in tasks}
    return result | {"model": str(backend.name), "settings": asdict(settings), "headroom": rooms}


def sampled_groups(backend: Any, samples: Sequence[Sample], settings: ProbeSettings) -> Iterator[Group]:
    """Yields each sample's group of G scored answers, as the backend draws them."""
    thinking = bool(backend.settings.get("thinking")) if settings.thinking is None else settings.thinking
    tasks = settings.rewards(dialect=backend.dialect, thinking=thinking).tasks
    count = settings.num_generations
    step = max(1, settings.batch_size // count)
    drawing = {"max_new_tokens": settings.max_new_tokens, "batch_size": settings.batch_size, "temperature": settings.temperature}
    for start in range(0, len(samples), step):
        batch = samples[start : start + step]
        prompts, images = [tasks[sample.task].prompt(sample) for sample in batch], [open_image(sample) for sample in batch]
        replies = backend.generate(prompts, images, samples=count, seed=settings.seed + start, **drawing)
        for k, sample in enumerate(batch):
            own = replies[k * count : (k + 1) * count]
            scores = [tasks[sample.task].score(reply.completion, sample, reply.frame) for reply in own]
            yield Group(sample, scores, sum(reply.finish == "length" for reply in own))


def headroom(groups: Sequence[Group], settings: ProbeSettings) -> dict[str, Any]:
    """What the groups of one task promise: `samples`, `least` and `greatest` possible total; `mean`, `best` (best of G) and `spread`
    of the total and of each of `terms`, averaged over groups, with `constant`, the share of groups in which it does not vary;
    `useful_steps`, the expected share of steps with at least one group that varies; shares of answers `malformed` and `cut`;
    `verdict`, a line in plain words.
    """
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    for group in groups:
        for name, values_G in group.values().items():
            columns[name].append(values_G)
    figures = {name: _figures(np.stack(rows)) for name, rows in columns.items()}
    task = settings.rewards().tasks[groups[0].sample.task]
    least, greatest = task.bounds()
    total = figures.pop("")
    answers = sum(len(group.scores) for group in groups)
    found = {"samples": len(groups), "num_generations": settings.num_generations, "least": least, "greatest": greatest, **total, "terms": figures}
    found["useful_steps"] = 1 - total["constant"] ** settings.groups_per_step
    found["malformed"] = sum(score.problem is not None for group in groups for score in group.scores) / answers
    found["cut"] = sum(group.cut for group in groups) / answers
    return found | {"verdict": _verdict(found, settings)}


def _figures(values_SG: np.ndarray) -> dict[str, float]:
    spread_S = np.ptp(values_SG, axis=1)
    found = {"mean": values_SG.mean(), "best": values_SG.max(axis=1).mean(), "spread": spread_S.mean(), "constant": (spread_S == 0).mean()}
    return {name: float(value) for name, value in found.items()}


def _verdict(found: Mapping[str, Any], settings: ProbeSettings) -> str:
    lines = [
        f"An answer earns {found['mean']:.2f} of {found['greatest']:g} on average, the best of {found['num_generations']} earns {found['best']:.2f}.",
        f"{found['constant']:.0%} of groups do not vary and teach nothing; a step of {settings.groups_per_step} groups is expected to be useful "
        f"{found['useful_steps']:.0%} of the time.",
    ]
    if still := [name for name, figures in found["terms"].items() if figures["constant"] >= MANY]:
        lines.append(f"Hardly ever varying within a group: {', '.join(still)}.")
    if found["cut"] > FEW:
        lines.append(f"{found['cut']:.0%} of answers are cut off: raise the greatest length.")
    return " ".join([*lines, _advice(found)])


def _advice(found: Mapping[str, Any]) -> str:
    mean, gain, span = found["mean"], found["best"] - found["mean"], found["greatest"] - found["least"]
    if mean >= found["greatest"] - SLIGHT * span:
        return "The policy has nearly solved these samples: take harder ones."
    if found["malformed"] >= MANY:
        return "Hardly an answer can be read: check the dialect, or begin with supervised training."
    if found["constant"] >= MANY and mean <= found["least"] + FEW * span:
        return "The policy hardly ever earns anything: take easier samples, or begin with supervised training."
    if found["constant"] >= MANY:
        return "Its answers hardly differ: raise the temperature or the number of answers, or take other samples."
    if gain <= SLIGHT * span:
        return "The best answers are little better than the average one: expect little from RL alone."
    return f"RL has room: {gain:.2f} can be gained by making the best of {found['num_generations']} the usual answer."


# --- for the terminal ------------------------------------------------------------------------------------------------
def print_probe(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Tables of what `probe` found, and a line in plain words about each task."""
    console = console or Console()
    console.print(_perplexity_table(result["perplexity"]))
    for row in result["perplexity"]:
        console.print(_perplexity_line(row), soft_wrap=True, markup=False)
    for task, found in result.get("headroom", {}).items():
        table = Table("", "mean", f"best of {found['num_generations']}", "spread", "constant", title=f"{task}, {found['samples']:,} samples")
        for name, figures in ({"total": found} | found["terms"]).items():
            table.add_row(name, *(f"{figures[column]:.3f}" for column in ("mean", "best", "spread")), f"{figures['constant']:.0%}")
        console.print(table)
        console.print(f"{task}: {found['verdict']}", soft_wrap=True, markup=False)


def _perplexity_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    table = Table("data", "task", "samples", "objects", "most", "mean n!", "log10", title="perceptual perplexity")
    for row in rows:
        name = row["data"] if row["source"] is None else f"{row['data']} ({row['source']})"
        numbers = [f"{row[column]:,}" for column in ("samples", "objects", "most")]
        table.add_row(name, row["task"], *numbers, scientific(row["log10"]), f"{row['log10']:.2f}")
    return table


def _perplexity_line(row: Mapping[str, Any]) -> str:
    if row["most"] < 2:
        return f"{row['task']}: one matching at most, so supervised training is worth trying first."
    most = f"{row['largest_share']:.0%} of the mean comes from the samples with {row['most']} objects"
    return f"{row['task']}: {scientific(row['log10'])} matchings on average; {most}."
