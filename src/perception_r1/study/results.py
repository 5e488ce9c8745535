"""What a study's runs gave, by domain and arm, as figures with their intervals."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.tables import paper_facts
from ..records import BadData
from ..tasks import make_task
from .grid import Run, Study
from .intervals import Figure, mean_figure, metric_figure
from .run import result_of

LIBRARIES = ("python", "perception-r1", "torch", "transformers", "trl")
"""Whose versions a table tells."""
Results = Mapping[int, Mapping[str, Any]]
"""What an arm's runs gave, by seed."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm in one domain."""

    arm: str
    seeds: tuple[int, ...]
    """The seeds that have run; none while the arm is pending."""
    main: Figure | None = None
    sampled: Figure | None = None
    change: Figure | None = None
    """Main metric minus the reference's; None for the reference, and without a common seed."""
    sampled_change: Figure | None = None
    also: Mapping[str, float | None]
    """Further metrics, means over seeds."""
    steps: int = 0
    """Optimizer steps of the last GRPO training; 0 where there is none."""
    cpu_minutes: float = 0.0
    """Processor time of training and measuring, mean over seeds."""
    paper: float | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """One domain of a study."""

    domain: str
    model: str
    """Where its runs start."""
    metric: str
    lower_is_better: bool
    scenes: int
    log10_perplexity: float
    greatest: float
    """Most that an answer can earn."""
    title: str
    """What the paper's figures are."""
    rows: tuple[Row, ...]
    versions: frozenset[str]
    """Of Python and the libraries under every run, as "torch 2.14.1"."""
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]
    """Arm → a curve of sampled reward for each seed."""


def paper_figure(place: Sequence[str | int] | None) -> float | None:
    """A figure of the paper's tables by its path; None where the paper has none. Raises BadData for a path that leads nowhere."""
    if place is None:
        return None
    found: Any = paper_facts()
    try:
        for key in place:
            found = found[key]
    except (KeyError, IndexError, TypeError) as problem:
        raise BadData(f"paper: found nothing at {place!r} in the paper's tables") from problem
    return found


def gather(study: Study, runs: Sequence[Run], root: Path, also: Mapping[str, Sequence[str]]) -> list[Section]:
    """The results that are there, by domain; `also` names a domain's further metrics. A domain without any result is left out."""
    results: dict[str, dict[str, dict[int, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if (result := result_of(run, root)) is not None:
            results[run.domain][run.arm][run.seed] = result
    return [_section(study, name, results[name], also.get(name, ())) for name in study.domains if results[name]]


def _section(study: Study, name: str, arms: Mapping[str, Results], also: Sequence[str]) -> Section:
    every = [result for by_seed in arms.values() for result in by_seed.values()]
    some = every[0]
    if len({result["data"]["sha256"] for result in every}) > 1:
        raise BadData(
            f"study {study.name}, {name}: its runs were measured on different samples, because {some['data']['path']} changed between them: "
            "expected the same for all, remove the folders of the older runs"
        )
    task = make_task(some["task"])
    paper = study.paper.get(name, {})
    reference = arms.get(study.reference, {})
    return Section(
        domain=name,
        model=some["model"],
        metric=some["main_metric"],
        lower_is_better=some["main_metric"] in task.LOWER_IS_BETTER,
        scenes=some["data"]["samples"],
        log10_perplexity=some["log10_perplexity"],
        greatest=some["bounds"][1],
        title=paper.get("title", ""),
        rows=tuple(_row(arm, arms.get(arm, {}), {} if arm == study.reference else reference, also, paper.get(arm)) for arm in study.arms),
        versions=frozenset(f"{library} {result['versions'][library]}" for result in every for library in LIBRARIES if library in result["versions"]),
        curves={arm: [found[seed]["curve"] for seed in sorted(found)] for arm, found in arms.items()},
    )


def _row(arm: str, found: Results, reference: Results, also: Sequence[str], place: Sequence[str | int] | None) -> Row:
    return Row(
        arm=arm,
        seeds=tuple(sorted(found)),
        main=_main(found) if found else None,
        sampled=_sampled(found) if found else None,
        change=_change(found, reference, _main),
        sampled_change=_change(found, reference, _sampled),
        also={metric: _mean([_value(result["metrics"], metric) for result in found.values()]) for metric in also},
        steps=max((_optimizer_steps(result) for result in found.values() if result["curve"]), default=0),
        cpu_minutes=_mean([result["cpu_minutes"] for result in found.values()]) or 0.0,
        paper=paper_figure(place),
    )


def _optimizer_steps(result: Mapping[str, Any]) -> int:
    """Rewards are logged where rollouts are drawn, and each batch of them is used for num_iterations steps."""
    return int(result["curve"][-1]["step"]) + result["steps"][-1]["settings"].get("num_iterations", 1) - 1


def _value(metrics: Mapping[str, Any], name: str) -> float | None:
    if name not in metrics:
        raise BadData(f"also: metric {name!r} is not measured there: expected some of {', '.join(metrics)}")
    return metrics[name]["value"]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _main(found: Results) -> Figure:
    some = next(iter(found.values()))
    task = make_task(some["task"])
    return metric_figure(task, [found[seed]["statistics"] for seed in sorted(found)], some["main_metric"])


def _sampled(found: Results) -> Figure | None:
    values = [found[seed]["sampled"] for seed in sorted(found)]
    bounds = next(iter(found.values()))["bounds"]
    return mean_figure(values, (bounds[0], bounds[1])) if all(values) else None


def _change(found: Results, reference: Results, figure: Callable[[Results], Figure | None]) -> Figure | None:
    """The difference over the seeds that both have; the one result of an arm without training stands for all seeds."""
    if all(result["steps"] for some in (found, reference) for result in some.values()):
        common = set(found) & set(reference)
        found, reference = ({seed: some[seed] for seed in common} for some in (found, reference))
    ours, theirs = (figure(some) if some else None for some in (found, reference))
    return ours.minus(theirs) if ours and theirs else None
