"""What a study runs: arms (settings under comparison) × domains (a task with its data and model) × seeds, all read from YAML.

Two runs with the same resolved settings are one run, whichever studies ask for it: its folder is named by their hash.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import recipes
from ..records import BadData
from ..tasks import TASKS

COMMANDS = ("sft", "grpo")
PLOTS = ("arms", "curves", "gain")
MEASUREMENT = {"batch_size": 64, "max_new_tokens": 2048, "samples": 2, "temperature": 1.0}
"""How held-out samples are answered, where a domain says nothing else: greedily, and `samples` times, two or more, at a
temperature; 0 where the truth cannot be rewarded."""
LIMITS = ("min_pixels", "max_pixels")
"""Image limits of a domain's recipe, under which every arm is measured, a base too."""


def hash_of(asked: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name settings."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training of a run."""

    command: str
    """`sft` or `grpo`."""
    settings: Mapping[str, Any]
    """Every key of the recipe as it will be run, except model, output_dir and resume."""
    part: str = ""
    """Which part of the data it sees, as 1/2: the first half of the samples in an order drawn by the seed. All where it is empty."""

    def asked(self) -> dict[str, Any]:
        """What it does, as JSON; a step without a part has none."""
        return {"command": self.command, "settings": dict(self.settings)} | ({"part": self.part} if self.part else {})


@dataclass(frozen=True, kw_only=True)
class Run:
    """One arm in one domain with one seed: trainings one after the other, each from what the one before made, then a measurement."""

    domain: str
    arm: str
    seed: int
    model: str
    """Where the first training starts; what is measured when there is none."""
    steps: tuple[Step, ...]
    measurement: Mapping[str, Any]
    """`eval_data` and how it is answered."""

    @property
    def limits(self) -> dict[str, Any]:
        """The image limits that it is measured under, where there are any."""
        return {key: self.measurement[key] for key in LIMITS if key in self.measurement}

    @property
    def key(self) -> str:
        """Hash of every setting: not of the names of the arm and the domain, and not of what is in the files that are named."""
        return hash_of({"model": self.model, "steps": [step.asked() for step in self.steps], "measurement": dict(self.measurement)})


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, the runs that answer it, and what the paper found."""

    name: str
    question: str
    finding: str
    """The paper's answer, in words."""
    reference: str
    """The arm that the others are compared with."""
    arms: Mapping[str, Sequence[Mapping[str, Any]]]
    """Arm → its trainings, each `{"sft" or "grpo": {key: value}}`; none for the base as it is. Two keys are the study's own: `part`, as 1/2,
    and `data_of`, the domain's key for the samples. A training on samples that a domain does not name is left out there."""
    domains: Sequence[str]
    paper: Mapping[str, Mapping[str, Any]]
    """Domain → {"title": what the figures are, arm: where in the paper's tables its figure is}."""
    held_out: str = "eval_data"
    """The domains' key for the samples that are measured on; settings are chosen on their `validation_data`."""
    plots: Sequence[str] = ("arms",)
    seeds: int = 3

    def __post_init__(self) -> None:
        def wrong(what: str) -> BadData:
            return BadData(f"study {self.name}: {what}")

        if not isinstance(self.arms, dict):
            raise wrong(f"arms: expected a mapping from each arm to its trainings, found {self.arms!r}")
        if self.reference not in self.arms:
            raise wrong(f"the reference {self.reference!r} is no arm: expected one of {', '.join(self.arms)}")
        for arm, steps in self.arms.items():
            if not isinstance(steps, list) or not all(_is_training(step) for step in steps):
                raise wrong(f"arm {arm!r}: expected a list of trainings, each sft or grpo with its keys, as {{grpo: {{}}}}, found {steps!r}")
        if unknown := [name for name in self.plots if name not in PLOTS]:
            raise wrong(f"plot {unknown[0]!r} is not known: expected some of {', '.join(PLOTS)}")
        if told := {arm for cells in self.paper.values() for arm in cells} - {*self.arms, "title"}:
            raise wrong(f"paper: {sorted(told)[0]!r} is no arm: expected some of {', '.join(self.arms)}")


def _is_training(step: object) -> bool:
    return isinstance(step, dict) and len(step) == 1 and all(command in COMMANDS and isinstance(own, dict) for command, own in step.items())


def read_study(name: str) -> Study:
    """A study by name, or from a YAML file. Raises BadData for one that cannot be run."""
    settings: dict[str, Any] = {"paper": {}} | recipes.read(name, "studies", "study")
    try:
        return Study(name=Path(name).stem, **settings)
    except TypeError as problem:
        raise BadData(f"study {name}: {str(problem).partition(') ')[2]}: expected question, finding, reference, arms and domains") from problem


def read_domains(name: str) -> dict[str, dict[str, Any]]:
    """Domains by name, from the package or a YAML file, each with model, data, eval_data and the recipes that train it. Raises BadData.

    A domain that is not named as its task says it: `task: counting`.
    """
    found = recipes.read(name, "domains", "domains")
    for title, domain in found.items():
        if not isinstance(domain, dict) or domain.get("task", title) not in TASKS:
            raise BadData(f"domains {name}: found {title!r}, expected the name of a task, or a mapping with `task`: {', '.join(TASKS)}")
        if missing := [key for key in ("model", "data", "eval_data", *COMMANDS) if key not in domain]:
            raise BadData(f"domains {name}: {title} has no {missing[0]}: expected model, data, eval_data, sft and grpo")
        for command in COMMANDS:
            if not isinstance(domain[command], dict) or "recipe" not in domain[command]:
                raise BadData(f"domains {name}: {title}: {command} names no recipe: expected {{recipe: NAME}} and the keys that differ from it")
        if unknown := set(domain.get("measurement", {})) - {*MEASUREMENT, *LIMITS}:
            known = ", ".join([*MEASUREMENT, *LIMITS])
            raise BadData(f"domains {name}: {title}: measurement {sorted(unknown)[0]!r} is not known: expected some of {known}")
    return {title: {"task": title} | domain for title, domain in found.items()}


def within(study: Study, domains: Mapping[str, Mapping[str, Any]]) -> Study:
    """The study in those of its domains that are there. Raises BadData for none, and for one without the samples that it measures on."""
    known = [name for name in study.domains if name in domains]
    if not known:
        wanted, found = ", ".join(study.domains), ", ".join(domains)
        raise BadData(f"study {study.name} needs one of the domains {wanted}, found only {found}: add it to the file of --data")
    if missing := [name for name in known if study.held_out not in domains[name]]:
        raise BadData(f"study {study.name} measures on the {study.held_out} of {missing[0]}, which has none: add it to the file of --data")
    return replace(study, domains=known)


def runs_of(study: Study, domains: Mapping[str, Mapping[str, Any]], model: str | None = None) -> list[Run]:
    """The runs of a study, seed by seed, so that a study that was stopped has whole seeds; from `model`, else from the domains' own.

    An arm without a training has one run: its greedy answers do not depend on a seed.
    """
    grid = [(seed, name, arm) for seed in range(study.seeds) for name in study.domains for arm in study.arms if study.arms[arm] or not seed]
    return [_run(study, arm, name, domains[name], seed, model) for seed, name, arm in grid]


def _run(study: Study, arm: str, name: str, domain: Mapping[str, Any], seed: int, model: str | None) -> Run:
    trainings = [(command, own) for step in study.arms[arm] for command, own in step.items() if own.get("data_of", "data") in domain]
    steps = tuple(_step(domain, command, own, seed) for command, own in trainings)
    thinking = bool(steps and steps[-1].settings.get("thinking"))
    measurement = {**MEASUREMENT, "eval_data": domain[study.held_out], "task": domain["task"], "thinking": thinking}
    trained = recipes.read(domain["grpo"]["recipe"]) | domain["grpo"]
    measurement |= {key: trained[key] for key in LIMITS if trained.get(key)} | domain.get("measurement", {})
    return Run(domain=name, arm=arm, seed=seed, model=model or domain["model"], steps=steps, measurement=measurement)


def _step(domain: Mapping[str, Any], command: str, own: Mapping[str, Any], seed: int) -> Step:
    given, own = dict(domain[command]), dict(own)
    part, data = str(own.pop("part", "")), domain[own.pop("data_of", "data")]
    if not re.fullmatch(r"([1-9]/[1-9])?", part):
        raise BadData(f"part {part!r} of an arm: expected which part of how many, as 1/2")
    recipe = recipes.read(given.pop("recipe")) | given
    settings = {**recipe, "task": domain["task"], "data": data, **own, "eval_data": None, "seed": seed}
    if "num_generations" in own and "per_device_train_batch_size" not in own:  # as many prompts a step as the other arms
        settings["per_device_train_batch_size"] *= own["num_generations"]
        settings["per_device_train_batch_size"] //= recipe["num_generations"]
    for group in re.findall(r"(?:^|,)\s*([1-9]\d*)", str(own.get("stages", ""))):  # whole groups in every stage, as many rollouts a step
        while settings["per_device_train_batch_size"] % int(group) and settings["gradient_accumulation_steps"] % 2 == 0:
            settings["per_device_train_batch_size"] *= 2
            settings["gradient_accumulation_steps"] //= 2
    for key in ("model", "output_dir", "resume"):
        settings.pop(key, None)
    return Step(command=command, settings=settings, part=part)
