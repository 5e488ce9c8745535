"""The reward that TRL calls: our Score of every rollout, with what to log about it."""

import heapq
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import TrainerState

from ..data.samples import json_line, replacing
from ..evaluation.backends import decode_completions
from ..records import Frame, Sample, Score
from ..tasks import Task
from .dataset import ROWS, unpacked


class PerceptionReward:
    """Scores completions by their ids, because TRL strips the special tokens from its texts, and keeps every rollout.

    `rollouts` is the file to which each process appends its own, one JSON line a rollout.
    """

    __name__ = "perception"

    def __init__(self, tasks: Mapping[str, Task], frame: Callable[[Sample], Frame], tokenizer: Any, rollouts: Path) -> None:
        self.tasks, self.frame, self.tokenizer, self.rollouts = tasks, frame, tokenizer, rollouts

    def __call__(
        self,
        *,
        completion_ids: Sequence[Sequence[int]],
        sample: Sequence[str],
        trainer_state: TrainerState,
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        samples = [unpacked(text) for text in sample]
        completions = decode_completions(self.tokenizer, completion_ids)
        scores = [self.tasks[it.task].score(text, it, self.frame(it)) for text, it in zip(completions, samples, strict=True)]
        for name, value in group_figures(samples, scores, by_task=len(self.tasks) > 1).items():
            log_metric(name, value)
        self._keep(trainer_state.global_step, samples, completions, scores)
        return [score.total for score in scores]

    def _keep(self, step: int, samples: Sequence[Sample], completions: Sequence[str], scores: Sequence[Score]) -> None:
        with self.rollouts.open("a", encoding="utf-8") as file:
            for sample, completion, score in zip(samples, completions, scores, strict=True):
                row = {"step": step, "id": sample.id, "task": sample.task, "completion": completion, "total": score.total, "problem": score.problem}
                file.write(json_line(row | {"terms": dict(score.terms)}))


def group_figures(samples: Sequence[Sample], scores: Sequence[Score], *, by_task: bool = False) -> dict[str, float]:
    """What is worth a curve: each term's mean, the parse-failure rate, and which groups, and terms, do not vary.

    A group is the rollouts of one sample. A group whose totals are all equal teaches nothing; `constant/TERM` is the share
    of groups in which that term alone is constant. `by_task`, for a run of several: the names start with the task's, as
    `counting/terms/distance`, also where a batch holds one task alone.
    """
    tasks: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for sample, score in zip(samples, scores, strict=True):
        tasks[sample.task][sample.id].append(score)
    found: dict[str, float] = {}
    for task, groups in tasks.items():
        prefix = f"{task}/" if by_task else ""
        every = [score for group in groups.values() for score in group]
        found[f"{prefix}parse_failure_rate"] = float(np.mean([score.problem is not None for score in every]))
        found[f"{prefix}constant/reward"] = _constant(groups.values(), lambda score: score.total)
        for term in every[0].terms:
            found[f"{prefix}terms/{term}"] = float(np.mean([score.terms[term] for score in every]))
            found[f"{prefix}constant/{term}"] = _constant(groups.values(), lambda score, term=term: score.terms[term])
    return found


def _constant(groups: Any, value: Callable[[Score], float]) -> float:
    return float(np.mean([np.ptp([value(score) for score in group]) == 0 for group in groups]))


def keep_before(rollouts: Path, step: int) -> None:
    """Drops the rollouts of `step` and later, which a resumed run will make again. A line cut off by a kill goes too."""
    if not rollouts.is_file():
        return
    with replacing(rollouts) as part, part.open("w", encoding="utf-8") as kept, rollouts.open(encoding="utf-8") as lines:
        kept.writelines(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step)


def write_parquet(parts: Sequence[Path], path: Path) -> int:
    """Gathers the processes' rollouts into one Parquet file, in the order of steps, as each part is; returns how many there are."""
    kinds = {"step": pa.int64(), "total": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in ("step", "id", "task", "completion", "total", "problem", "terms")])
    rows, count = heapq.merge(*map(_read, sorted(parts)), key=lambda row: row["step"]), 0
    with replacing(path) as part, pq.ParquetWriter(part, schema) as file:
        while batch := list(itertools.islice(rows, ROWS)):
            file.write_table(pa.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _read(part: Path) -> Iterator[dict[str, Any]]:
    with part.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield {**row, "terms": json.dumps(row["terms"])}
