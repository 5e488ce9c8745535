"""`perception-r1 study …`. As in cli.py, it imports what it needs when it runs."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .terminal import usage

STUDIES = ("matching", "reward-terms", "sft-vs-rl", "rollouts", "rollouts-time", "perplexity", "thinking", "curriculum")
STUDIES += ("kl", "advantage", "iou-shape", "ocr-terms", "sharing", "learning-rate")
"""What is in recipes/studies/."""
DRAWN, RUNS = "drawn", Path("runs/study")


def study(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{', '.join(STUDIES)}, or a YAML file.")],
    policy: Annotated[str | None, typer.Option("--policy", "--model", help="Checkpoint folder or hub id; the domains' own by default.")] = None,
    data: Annotated[str, typer.Option(help="Domains: a name in recipes/domains/, or a YAML file with each task's data and recipes.")] = DRAWN,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each arm; the study's own number by default.")] = None,
    budget: Annotated[float | None, typer.Option(help="Minutes after which no other run is begun.")] = None,
    max_runs: Annotated[int | None, typer.Option("--max-runs", min=0, help="Begin no more runs than that; 0 only writes the table.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the runs, which studies share, and of each study's table.")] = RUNS,
) -> None:
    """Re-run a comparison of the paper: a small grid of runs, then one table and one plot with 95 % intervals.

    Runs that are there already, of this study or of another with the same settings, are not done again.
    """
    import os
    from dataclasses import replace

    from .records import BadData
    from .study.grid import read_domains, read_study, runs_of, within

    with usage():
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise BadData(
                f"found {os.environ['WORLD_SIZE']} processes that train together, expected one: each run has a device of its own; "
                "start one command a GPU, with CUDA_VISIBLE_DEVICES and the same -o, and they share the runs"
            )
        chosen, domains = read_study(name), read_domains(data)
        asked, chosen = chosen.domains, within(replace(chosen, seeds=seeds or chosen.seeds), domains)
        runs = runs_of(chosen, domains, policy)
    from .study.plot import write_plot
    from .study.results import gather
    from .study.run import check, conduct, result_of
    from .study.table import write_table

    if left_out := [domain for domain in asked if domain not in chosen.domains]:
        print(f"study {name}: {data} has no {', '.join(left_out)}: the study runs without", file=sys.stderr)
    failed: list[str] = []
    if max_runs != 0:
        check([run for run in runs if result_of(run, output) is None])
        _, failed = conduct(runs, output, budget=budget, most=max_runs)
    given = {"--policy": policy, "--data": data if data != DRAWN else None, "--seeds": seeds, "-o": output if output != RUNS else None}
    command = shlex.join(["perception-r1", "study", name, *(word for key, value in given.items() if value for word in (key, str(value)))])
    sections = gather(chosen, runs, output, {task: domain.get("also", ()) for task, domain in domains.items()})
    folder = output / "-".join([chosen.name, *([Path(data).stem] if data != DRAWN else []), *([Path(policy).name] if policy else [])])
    print(write_table(chosen, sections, folder, command))
    write_plot(chosen, sections, folder / "plot.svg")
    left = sum(result_of(run, output) is None for run in runs)
    print(f"{len(runs) - left} of {len(runs)} runs are there; table.md, table.json and plot.svg are in {folder}")
    if failed:
        raise BadData(f"{len(failed)} runs failed; the same command tries them again: {'; '.join(failed)}")
