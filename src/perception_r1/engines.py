"""Our Score behind the reward signatures of other trainers: TRL, verl, EasyR1, ms-swift, OpenRLHF. Translation only.

Each trainer hands its reward a completion and a column of the data set. Here that column holds the sample: a row of a sample
file (a mapping, or its JSON text). A file that the trainer is pointed to has two lines:

    from perception_r1.engines import Rewards
    compute_score = Rewards(dialect="qwen2.5-vl", max_pixels=1_000_000).verl

`max_pixels` must be what the trainer's processor really allows where the dialect writes pixels of the resized image, or the row
says what size the model saw (`seen`). A trainer that strips special tokens leaves Qwen2-VL's bare form, which is read as well.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .data.rows import sample_from_row
from .evaluation.score import ScoreSettings
from .records import BadData, Sample, Score

Row = str | Mapping[str, Any]
"""A row of a sample file, or its JSON text."""
Message = Mapping[str, Any]


class Rewards:
    """The settings of `perception-r1 score` (dialect, thinking, matching, weights, pixel limits), and a method a trainer.

    A method never raises on a completion; it raises BadData on a row that is no sample or has no truth to score against.

    >>> row = {"id": "1", "task": "counting", "image": "1.jpg", "width": 640, "height": 480, "query": "bird", "truth": {"boxes": []}}
    >>> Rewards(dialect="plain").verl("scenes", "none", json.dumps(row))["score"]
    2.0
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = ScoreSettings(**settings)

    def score(self, completion: str, row: Row) -> Score:
        return self.settings.score(completion, _sample(row))

    def trl(self, completions: Sequence[str | Sequence[Message]], *, sample: Sequence[Row], **_: Any) -> list[float]:
        """For `GRPOTrainer(reward_funcs=…)`; the rows are in the data set's column `sample`.

        TRL calls with keyword arguments prompts, completions, completion_ids, trainer_state and every other column, and takes a
        list of floats. In the conversational format a completion is a list of messages. Source: TRL's "Using a custom reward function".
        """
        return [self.score(_text(completion), row).total for completion, row in zip(completions, sample, strict=True)]

    def ms_swift(self, completions: Sequence[str], *, sample: Sequence[Row], **_: Any) -> list[float]:
        """For an ORM of ms-swift, whose `__call__(completions, **kwargs)` gets the other columns by name; ours is `sample`.

        Source: ms-swift's GRPO developer guide, "Reward Function".
        """
        return self.trl(completions, sample=sample)

    def verl(self, data_source: str, solution_str: str, ground_truth: Row, extra_info: Mapping[str, Any] | None = None, **_: Any) -> dict[str, float]:
        """For `custom_reward_function`; the row is in `reward_model.ground_truth`. The same keys for every task, as verl's tables need.

        Source: verl's "Implement Reward Function for Dataset": one call a rollout; a float, or a dict with `score` and what to log.
        """
        score = self.score(solution_str, ground_truth)
        return {"score": score.total, "malformed": float(score.problem is not None)}

    def easyr1(self, reward_inputs: Sequence[Mapping[str, Any]], **_: Any) -> list[dict[str, float]]:
        """For `worker.reward.reward_function` with `reward_type=batch`; the row is in `ground_truth`.

        Source: EasyR1's examples/reward_function: dicts with `response` and `ground_truth` in, dicts with `overall` and the terms out.
        """
        scores = [self.score(each["response"], each["ground_truth"]) for each in reward_inputs]
        return [{"overall": score.total, **score.terms} for score in scores]

    def openrlhf(self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Row], **_: Any) -> dict[str, Any]:
        """For `--remote_rm_url FILE`, under the name `reward_func`; the row is in the column of `--label_key`. Needs torch.

        `rewards` are totals; `scores`, by which OpenRLHF filters groups, are totals from 0 at the least to 1 at the greatest.
        Source: OpenRLHF's examples/python/reward_func.py: a query is a prompt and its response.
        """
        rows = [_sample(row) for row in labels]
        completions = [_response(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
        scores = [self.settings.score(completion, row) for completion, row in zip(completions, rows, strict=True)]
        limits = [self.settings.tasks[row.task].bounds() for row in rows]
        import torch  # here, because everything else works without it

        share = [(score.total - least) / (greatest - least) for score, (least, greatest) in zip(scores, limits, strict=True)]
        logs = {"malformed": torch.tensor([float(score.problem is not None) for score in scores])}
        return {"rewards": torch.tensor([score.total for score in scores]), "scores": torch.tensor(share), "extra_logs": logs}


def _sample(row: Row) -> Sample:
    try:
        found = json.loads(row) if isinstance(row, str) else row
    except json.JSONDecodeError as problem:
        raise BadData(f"the column with the truth: found {row!r:.60}, expected a row of a sample file as JSON ({problem})") from problem
    return sample_from_row(found, Path("."), "the column with the truth")


def _text(completion: str | Sequence[Message]) -> str:
    """The words of a completion, which the conversational format wraps in messages (and theirs in parts)."""
    if isinstance(completion, str):
        return completion
    contents = (message["content"] for message in completion)
    return "".join(content if isinstance(content, str) else "".join(part.get("text", "") for part in content) for content in contents)


def _response(query: str, prompt: str) -> str:
    if not query.startswith(prompt):
        raise BadData(f"found a query that does not begin with its prompt, expected prompt and response: {query[:60]!r}")
    return query.removeprefix(prompt)
