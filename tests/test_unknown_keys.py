"""A key that nobody knows: gone, of the other command, or a slip of the fingers. No hint that leads to another setting."""

import pytest
from trl import GRPOConfig, ModelConfig, SFTConfig, TrlParser

from perception_r1.records import BadData
from perception_r1.training.recipe import RecipeArguments, load_recipe
from perception_r1.training.unknown_keys import GONE, nearest, unknown_key


def known(config: type) -> set[str]:
    parser = TrlParser((RecipeArguments, config, ModelConfig), exit_on_error=False)  # type: ignore[arg-type]
    return {action.dest for action in parser._actions}


def test_a_key_that_is_said_to_be_gone_is_gone_and_what_stands_for_it_is_there() -> None:
    there = known(GRPOConfig) | known(SFTConfig)
    assert not set(GONE) & there
    for key, instead in GONE.items():
        if instead.startswith("give "):
            named = instead.removeprefix("give ").partition(",")[0].split(" or ")
            assert {word.split()[0] for word in named} <= there, key


@pytest.mark.parametrize(
    "key",
    [
        "max_prompt_length",
        "max_seq_length",
        "torch_dtype",
        "warmup_ratio",
        "evaluation_strategy",
        "vllm_device",
    ],
)
def test_a_key_that_trl_has_removed_is_told_so_and_hints_at_no_other(key: str) -> None:
    with pytest.raises(
        BadData, match=f"key '{key}' is not known: TRL and transformers have it no more"
    ) as told:
        load_recipe("quickstart", [f"--{key}", "3"], GRPOConfig)
    assert "did you mean" not in str(told.value)
    assert "max_completion_length" not in str(told.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("nun_generations", ["num_generations"]),
        ("num_generation", ["num_generations"]),
        ("learning_rtae", ["learning_rate"]),
        ("betta", ["beta"]),
        ("max_pixel", ["max_pixels"]),
        ("shared_prefx", ["shared_prefix"]),
        ("evaldata", ["eval_data"]),
        ("max_steps_", ["max_steps"]),
        ("bf8", []),
        ("lr", []),
        ("colour", []),
        ("batch_size", []),
        ("max_tokens", []),
        ("prompt_length", []),
        ("max_image_length", []),
    ],
)
def test_a_hint_is_given_for_a_slip_of_the_fingers_alone(typed: str, meant: list[str]) -> None:
    assert nearest(typed, known(GRPOConfig)) == meant


def test_a_key_of_the_other_command_is_told_so() -> None:
    with pytest.raises(
        BadData, match="key 'num_generations' is not known: it is a key of `perception-r1 grpo`"
    ):
        load_recipe("tiny-sft", ["--num_generations", "4"], SFTConfig)
    with pytest.raises(
        BadData, match="key 'packing' is not known: it is a key of `perception-r1 sft`"
    ):
        load_recipe("quickstart", ["--packing", "true"], GRPOConfig)
    assert (
        unknown_key("colour", ["beta"], {})
        == "see docs/task.md for ours and TRL's documentation for the rest"
    )


def test_no_in_yaml_is_the_word_and_not_false(tmp_path) -> None:
    text = "model: tiny\ndata: x.jsonl\nuse_cpu: true\nbf16: false\nreport_to: none\n"
    (tmp_path / "mine.yaml").write_text(text + "eval_strategy: no\nsave_strategy: no\n")
    _, args, _ = load_recipe(str(tmp_path / "mine.yaml"), [], GRPOConfig)
    assert (str(args.eval_strategy.value), str(args.save_strategy.value)) == ("no", "no")
