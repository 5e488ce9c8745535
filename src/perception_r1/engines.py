"""Our Score behind the reward signatures of other trainers: TRL, verl, EasyR1, ms-swift, OpenRLHF.
Translation only.

Each trainer hands its reward a completion and a column of the data set. Here that column holds the
sample: a row of a sample file (a mapping, of numpy's kinds too, or its JSON text). A file that the
trainer is pointed to has two lines:

    from perception_r1.engines import Rewards
    compute_score = Rewards(dialect="qwen2.5-vl", max_pixels=1_000_000).verl

Where the dialect writes pixels of the resized image, the row says what size the model saw (`seen`),
or `max_pixels` is what the trainer's processor allows; without either the first such completion is
an error. A trainer that strips special tokens leaves Qwen2-VL's bare form, which is read as well;
end tokens that a trainer leaves are taken off.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from .data.rows import sample_from_row
from .endings import response_of
from .evaluation.score import ScoreSettings
from .frames import ScaledBefore, size_matters
from .records import BadData, Sample, Score
from .tasks import parse_weights

Row = str | bytes | Mapping[str, Any]
"""A row of a sample file, or its JSON text."""
Message = Mapping[str, Any]

SETTINGS = tuple(field.name for field in fields(ScoreSettings))
"""What an engine may pass by name beside what it passes itself."""
OF_VERL = ("reward_router_address", "reward_model_tokenizer")
"""What verl 0.9.1 passes of its own accord, where a reward model runs beside the reward."""
WHERE = "the column with the truth"


class Rewards:
    """The settings of `perception-r1 score` (dialect, thinking, matching, iou_shape, weights, pixel
    limits), and a method a trainer.

    A trainer may pass the same settings in its own way, and these go before; what is neither a
    setting nor the trainer's own is refused. A method never raises on a completion; it raises
    BadData on a row that is no sample or has no truth to score against.

    >>> row = {"id": "1", "task": "counting", "image": "1.jpg", "width": 640, "height": 480, "query": "bird", "truth": {"boxes": []}}
    >>> Rewards(dialect="plain").verl("scenes", "none", json.dumps(row))["score"]
    2.0
    """

    def __init__(self, **settings: Any) -> None:
        _refuse_strangers(settings, "Rewards")
        self.settings = ScoreSettings(**_as_settings(settings))
        self._made: dict[str, ScoreSettings] = {}

    def score(self, completion: str, row: Row) -> Score:
        return self.settings.score(completion, _sample(row))

    def trl(
        self, completions: Sequence[str | Sequence[Message]], *, sample: Sequence[Row], **given: Any
    ) -> list[float]:
        """For `GRPOTrainer(reward_funcs=…)`; the rows are in the data set's column `sample`.

        TRL calls with keyword arguments prompts, completions, completion_ids, trainer_state and
        every other column, and takes a list of floats. In the conversational format a completion is
        a list of messages. Source: TRL's "Using a custom reward function".
        """
        settings = self._with(given)
        pairs = zip(completions, sample, strict=True)
        return [settings.score(_text(completion), _sample(row)).total for completion, row in pairs]

    def ms_swift(
        self, completions: Sequence[str], *, sample: Sequence[Row], **given: Any
    ) -> list[float]:
        """For an ORM of ms-swift, whose `__call__(completions, **kwargs)` gets the other columns by
        name; ours is `sample`.

        A row's limits in ms-swift's own column, `chat_template_kwargs`, go before those of the
        settings. Source: ms-swift's GRPO developer guide, "Reward Function".
        """
        named = {name: given[name] for name in given if name in SETTINGS}
        rows = given.get("chat_template_kwargs")
        limits = [_limits_of(row) for row in (rows if rows is not None else [None] * len(sample))]
        triples = zip(completions, sample, limits, strict=True)
        return [
            self._with(named | own).score(_text(text), _sample(row)).total
            for text, row, own in triples
        ]

    def verl(
        self,
        data_source: str,
        solution_str: str,
        ground_truth: Row,
        extra_info: Mapping[str, Any] | None = None,
        **given: Any,
    ) -> dict[str, float]:
        """For `custom_reward_function`; the row is in `reward_model.ground_truth`. The same keys
        for every task, as verl's tables need.

        Settings may stand in `reward_kwargs`. Source: verl's "Implement Reward Function for
        Dataset": one call a rollout; a float, or a dict with `score` and what to log.
        """
        settings = self._with(given, "verl", OF_VERL)
        score = settings.score(solution_str, _sample(ground_truth))
        return {"score": score.total, "malformed": float(score.problem is not None)}

    def easyr1(self, reward_inputs: Any, **given: Any) -> Any:
        """For `worker.reward.reward_function`, batch or sequential; the row is in `ground_truth`.

        A dict with `response` and `ground_truth` gives one with `overall`, `accuracy` and the
        terms, a list a list. `accuracy` is the total from 0 at the least to 1 at the greatest, as
        `algorithm.filter_key` needs. Settings may stand in `reward_function_kwargs`; the pixel
        limits are `data.min_pixels` and `data.max_pixels`, by which EasyR1 scales a picture before
        its processor does. Source: EasyR1's verl/workers/reward/function.py.
        """
        settings = self._with(given, "EasyR1", ())
        if isinstance(reward_inputs, Mapping):
            return _of_easyr1(settings, reward_inputs)
        return [_of_easyr1(settings, each) for each in reward_inputs]

    def openrlhf(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Row], **given: Any
    ) -> dict[str, Any]:
        """For `--reward.remote_url FILE`, under the name `reward_func`; the row is in the column of
        `--data.label_key`. Needs torch.

        `rewards` are totals; `scores`, by which OpenRLHF filters groups, are totals from 0 at the
        least to 1 at the greatest. Source: OpenRLHF's openrlhf/utils/agent.py: a query is the
        tokens of prompt and response as text, special tokens included.
        """
        settings = self._with(given, "OpenRLHF", ())
        rows = [_sample(row) for row in labels]
        completions = [
            response_of(query, prompt) for query, prompt in zip(queries, prompts, strict=True)
        ]
        scores = [
            settings.score(completion, row)
            for completion, row in zip(completions, rows, strict=True)
        ]
        import torch  # here, because everything else works without it

        share = [_share(settings, row, score) for row, score in zip(rows, scores, strict=True)]
        logs = {"malformed": torch.tensor([float(score.problem is not None) for score in scores])}
        return {
            "rewards": torch.tensor([score.total for score in scores]),
            "scores": torch.tensor(share),
            "extra_logs": logs,
        }

    def _with(
        self, given: Mapping[str, Any], engine: str = "", own: Collection[str] | None = None
    ) -> ScoreSettings:
        """The settings, and those `given` by an engine before them. Without `own` names, what
        else it gives are columns.
        """
        told = {
            name: value for name, value in given.items() if name in SETTINGS and value is not None
        }
        if own is not None:
            _refuse_strangers(
                {name: value for name, value in given.items() if name not in own}, engine
            )
        if not told:
            return self.settings
        key = repr(sorted(told.items()))
        if key not in self._made:
            self._made[key] = replace(self.settings, **_as_settings(told))
        return self._made[key]


def _refuse_strangers(given: Mapping[str, Any], engine: str) -> None:
    if strange := [name for name in given if name not in SETTINGS]:
        near = get_close_matches(strange[0], SETTINGS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(SETTINGS)}"
        raise BadData(f"{engine}: setting {strange[0]!r} is not known: {hint}")


def _as_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as engines pass them, as ScoreSettings takes them. A list is a column of the data
    set, which is refused.
    """
    settings = {name: _plain(value) for name, value in given.items()}
    for name, value in settings.items():
        if isinstance(value, list):
            raise BadData(
                f"found a column {name!r}, which is the name of a setting: rename the column, "
                f"and give the setting once: Rewards({name}=…)"
            )
    if isinstance(weights := settings.get("weights"), str):
        settings["weights"] = parse_weights(weights)
    return settings


def _plain(value: Any) -> Any:
    """A value of a data set without numpy's and other libraries' containers, as JSON would give
    it.
    """
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(part) for part in value]
    return value


def _sample(row: Row) -> Sample:
    found: Any = _plain(row)
    try:
        found = json.loads(found) if isinstance(found, str | bytes) else found
    except ValueError as problem:
        raise BadData(
            f"{WHERE}: found {found!r:.60}, expected a row of a sample file as JSON ({problem})"
        ) from problem
    return sample_from_row(found, Path("."), WHERE)


def _limits_of(row: Any) -> dict[str, Any]:
    """The pixel limits in a row's `chat_template_kwargs`, by which ms-swift resizes the row's
    image.
    """
    found = _plain(row)
    found = json.loads(found) if isinstance(found, str) else found or {}
    limits = {name: found.get(name) for name in ("min_pixels", "max_pixels")}
    return {name: value for name, value in limits.items() if value is not None}


def _of_easyr1(settings: ScoreSettings, each: Mapping[str, Any]) -> dict[str, float]:
    sample, response, seen = _sample(each["ground_truth"]), each["response"], None
    dialect = settings.task(sample).dialect
    if sample.seen is None and size_matters(sample, dialect, response):
        limits = ScaledBefore(min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)
        seen = limits.size(sample, dialect)
    score = settings.score(response, sample, seen)
    return {"overall": score.total, "accuracy": _share(settings, sample, score), **score.terms}


def _share(settings: ScoreSettings, sample: Sample, score: Score) -> float:
    """The total from 0 at the least to 1 at the greatest; 0 where nothing can be earned."""
    least, greatest = settings.task(sample).bounds()
    return (score.total - least) / (greatest - least) if greatest > least else 0.0


def _text(completion: str | Sequence[Message]) -> str:
    """The words of a completion, which the conversational format wraps in messages (and theirs
    in parts).
    """
    if isinstance(completion, str):
        return completion
    contents = (message["content"] or "" for message in completion)
    return "".join(
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        for content in contents
    )
