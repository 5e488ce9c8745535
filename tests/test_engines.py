"""Other trainers get our Score: the same totals as `score` gives, through the arguments that each trainer's documents name."""

import json
from typing import Any

import pytest

from perception_r1.data.rows import sample_to_row
from perception_r1.data.scenes import scenes
from perception_r1.dialects import dialect_named, frame_of
from perception_r1.engines import Rewards
from perception_r1.records import BadData, Sample
from perception_r1.tasks import TASKS, make_task

REWARDS = Rewards(dialect="qwen3-vl", weights={"format": 0.5})


def rollouts(task: str) -> tuple[list[str], list[str], list[float]]:
    """Three completions of a drawn scene (true, empty, nonsense), the row beside each, and what our own task says they earn."""
    _, samples = next(scenes((task,), n=1, seed=3))
    sample: Sample = samples[0]
    made = make_task(task, dialect="qwen3-vl", weights={"format": 0.5})
    frame = frame_of(sample.width, sample.height, dialect_named("qwen3-vl"))
    completions = [made.write(sample, frame), "[]", "The dog is on the left."]
    return completions, [json.dumps(sample_to_row(sample, sample.root))] * 3, [made.score(text, sample, frame).total for text in completions]


@pytest.mark.parametrize("task", list(TASKS))
def test_every_trainer_is_given_the_totals_of_the_task(task: str) -> None:
    completions, rows, totals = rollouts(task)
    assert len(set(totals)) > 1
    state: dict[str, Any] = {"trainer_state": None, "completion_ids": [[1]] * 3}
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    assert REWARDS.trl(prompts=["p"] * 3, completions=completions, sample=rows, **state) == totals
    assert REWARDS.trl(prompts=[[]] * 3, completions=messages, sample=rows, **state) == totals
    assert REWARDS.ms_swift(completions, sample=rows, trainer_state=None) == totals
    verl = [
        REWARDS.verl(data_source="scenes", solution_str=text, ground_truth=row, extra_info={"index": 1})
        for text, row in zip(completions, rows, strict=True)
    ]
    assert [found["score"] for found in verl] == totals
    assert {tuple(found) for found in verl} == {("score", "malformed")}
    inputs = [{"response": text, "response_length": 9, "ground_truth": row} for text, row in zip(completions, rows, strict=True)]
    easy = REWARDS.easyr1(inputs)
    assert [found["overall"] for found in easy] == totals
    assert all(set(found) == {"overall", "accuracy", *TASKS[task].TERMS} for found in easy)
    assert easy[0]["accuracy"] == 1
    assert all(0 <= found["accuracy"] <= 1 for found in easy)  # by which EasyR1 filters groups


@pytest.mark.parametrize("task", list(TASKS))
def test_openrlhf_gets_tensors_and_scores_between_0_and_1(task: str) -> None:
    pytest.importorskip("torch")
    completions, rows, totals = rollouts(task)
    prompts = ["<image> Find it."] * 3
    found = REWARDS.openrlhf([p + c for p, c in zip(prompts, completions, strict=True)], prompts, rows)
    assert found["rewards"].tolist() == pytest.approx(totals)
    assert found["scores"][0] == 1
    assert found["scores"].min() >= 0
    assert set(found) == {"rewards", "scores", "extra_logs"}


def test_a_row_may_be_a_mapping_and_a_message_may_have_parts() -> None:
    completions, rows, totals = rollouts("grounding")
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in completions]
    assert REWARDS.trl(parts, sample=[json.loads(row) for row in rows]) == totals


def test_a_column_without_samples_is_an_error_and_never_a_score() -> None:
    for row in ("42", "no json", "{}", 42):
        with pytest.raises(BadData, match="column with the truth"):
            REWARDS.verl("scenes", "[]", row)  # type: ignore[arg-type]
    with pytest.raises(BadData, match="begin with its prompt"):
        REWARDS.openrlhf(["other"], ["prompt"], rollouts("ocr")[1][:1])


def test_an_unknown_setting_is_told() -> None:
    with pytest.raises(BadData, match="dialect"):
        Rewards(dialect="klingon")
