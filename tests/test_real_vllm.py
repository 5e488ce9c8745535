"""A real vLLM beside the trainer and beside transformers: the same prompts, pictures and answers.

`make check-vllm` runs it. Each test is a process of its own, since a process can hold one engine.
"""

import importlib.util
from pathlib import Path

import pytest
from tests.vllm_runs import GROUP, LIMITS, in_vllm

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed here: make check-vllm runs these",
    ),
]
FAMILIES = ("tiny", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
NATS = 1e-4
"""How far two engines in float32 may be apart."""


@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_samples_from_what_the_trainer_scores(family: str, tmp_path: Path) -> None:
    found = in_vllm("rollouts", family, tmp_path)
    assert found["shared"]
    assert [request["read"] for request in found["asked"]] == found[
        "trained"
    ]  # one request a prompt, and as many tokens as the trainer's
    assert [request["answers"] for request in found["asked"]] == [GROUP] * 4
    assert [request["limits"] for request in found["asked"]] == [LIMITS] * 4
    assert len({request["image"][1] for request in found["asked"]}) > 1  # pictures of several sizes
    assert {request["image"][0] for request in found["asked"]} == {1}
    assert all(width * height > LIMITS["max_pixels"] for width, height in found["sizes"])
    assert found["tokens"] >= 40
    assert found["apart"] <= NATS
    assert found["ratios"] == pytest.approx([1, 1], abs=NATS)


def test_they_stay_together_while_the_policy_learns(tmp_path: Path) -> None:
    steps = [row for row in in_vllm("training", tmp_path) if "loss" in row]
    assert len(steps) == 3
    assert all(row["grad_norm"] > 0 for row in steps)  # so the weights were others at each step
    assert max(row["sampling/sampling_logp_difference/max"] for row in steps) <= NATS


@pytest.mark.parametrize("family", FAMILIES)
def test_an_evaluation_gives_the_answers_of_transformers(family: str, tmp_path: Path) -> None:
    transformers, vllm = in_vllm("evaluation", family, tmp_path)
    assert len(transformers) == 8
    assert vllm == transformers
