"""The trainer that shares what a group shares is TRL's trainer in every number, and TRL's trainer itself where it cannot share."""

import hashlib
import inspect
import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import trl
from datasets import Dataset
from tests.small_runs import Parity, Told, make_trainer, save_policy, weights
from tests.two_processes import in_two_processes
from transformers.models.qwen2_vl import Qwen2VLImageProcessor
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer
from trl.trainer import utils as trl_utils

from perception_r1.policy import tiny
from perception_r1.records import BadData
from perception_r1.training.group_shared import GroupSharedTrainer

ON = {"share": "on"}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    save_policy(folder)
    return folder


def trained(trainer: Any) -> torch.Tensor:
    trainer.train()
    return weights(trainer)


def assert_same_course(policy: Path, output: Path, given: Any = dict, **settings: Any) -> tuple[Any, Any]:
    """Trains stock and ours: the same rollouts, and weights as far from each other as 1e-4 of the way from the start."""
    stock = make_trainer(policy, output, GRPOTrainer, given=given(), **settings)
    start, end = weights(stock), trained(stock)
    ours = make_trainer(policy, output, given=given() | ON, **settings)
    assert torch.equal(weights(ours), start)
    found = trained(ours)
    assert ours.parity.seen == stock.parity.seen
    assert len({len(ids) for ids in ours.parity.seen}) >= 4  # answers of many lengths
    assert (end - start).norm() >= 1e-3
    assert (found - end).norm() <= 1e-4 * (end - start).norm()
    return stock, ours


def test_ten_steps_are_those_of_the_stock_trainer(policy: Path, tmp_path: Path) -> None:
    stock, ours = assert_same_course(policy, tmp_path)
    assert len(stock.state.log_history) == len(ours.state.log_history) == 11
    for expected, found in zip(stock.state.log_history[:10], ours.state.log_history[:10], strict=True):
        assert found.keys() == expected.keys()
        # entropy and KL are means over micro-batches, which hold other rows where groups stay whole
        same = expected.keys() - {"step_time", "entropy", "kl", "learning_rate"}
        assert {name: found[name] for name in same} == pytest.approx({name: expected[name] for name in same}, rel=1e-4, abs=1e-6)


def test_going_over_a_batch_twice_is_too(policy: Path, tmp_path: Path) -> None:
    assert_same_course(policy, tmp_path, num_iterations=2, loss_type="grpo", max_steps=4, mask_truncated_completions=True, beta=0.0)


def test_several_steps_a_generation_are_too_where_both_take_the_rows_in_one_order(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw_but_leave(batch: dict[str, Any]) -> dict[str, Any]:
        torch.randperm(len(next(value for value in batch.values() if value is not None)))
        return batch

    monkeypatch.setattr(grpo_trainer, "shuffle_sequence_dict", draw_but_leave)
    assert_same_course(policy, tmp_path, steps_per_generation=4, gradient_accumulation_steps=1, max_steps=8, loss_type="bnpo", learning_rate=0.02)


def test_adapters_with_gradient_checkpointing_are_too(policy: Path, tmp_path: Path) -> None:
    def adapters() -> dict[str, Any]:
        return {"peft_config": peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])}

    assert_same_course(policy, tmp_path, adapters, max_steps=4, gradient_checkpointing=True, learning_rate=1.0)


def test_an_evaluation_is_that_of_the_stock_trainer(policy: Path, tmp_path: Path) -> None:
    found = []
    for kind, given in ((GRPOTrainer, {}), (GroupSharedTrainer, ON)):
        trainer = make_trainer(policy, tmp_path, kind, given=given, per_device_eval_batch_size=4, num_generations_eval=2)
        torch.manual_seed(5)
        trainer.evaluate()
        figures = trainer.state.log_history[-1]
        found.append(({name: figures[name] for name in ("eval_loss", "eval_reward", "eval_kl", "eval_entropy")}, trainer.parity.seen))
    assert found[1][1] == found[0][1]
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4, abs=1e-6)


def test_a_prompt_is_preprocessed_once_and_its_pixels_are_kept_once(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, prepared = Qwen2VLImageProcessor.preprocess, []

    def counted(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        found = prepare(self, images, *args, **kwargs)
        prepared.append(len(found["image_grid_thw"]))
        return found

    monkeypatch.setattr(Qwen2VLImageProcessor, "preprocess", counted)
    counts, pixels = {}, {}
    for kind, given in ((GRPOTrainer, {}), (GroupSharedTrainer, ON)):
        prepared.clear()
        trainer = make_trainer(policy, tmp_path, kind, given=given, max_steps=1)
        trainer.train()
        counts[kind] = sum(prepared)
        pixels[kind] = sum(batch["pixel_values"].shape[0] for batch in trainer._buffered_inputs)
    assert counts == {GRPOTrainer: 2 * 16, GroupSharedTrainer: 4}  # 4 prompts of 4 rollouts; TRL prepares for rollouts and for forwards
    assert pixels[GRPOTrainer] == 4 * pixels[GroupSharedTrainer] > 0


def test_groups_stay_whole_through_shuffling_and_every_group_is_used_once(policy: Path, tmp_path: Path) -> None:
    trainer = make_trainer(policy, tmp_path, given=ON, steps_per_generation=4, max_steps=1)
    trainer.train()
    groups = [
        [ids[mask == 1].tolist() for ids, mask in zip(answers, masks, strict=True)]
        for batch in trainer._buffered_inputs
        for answers, masks in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    made = [trainer.parity.seen[start : start + 4] for start in range(0, 32, 4)]
    assert sorted(groups) == sorted(made)
    assert groups != made  # they were shuffled
    assert all(abs(group.sum()) < 1e-4 for batch in trainer._buffered_inputs for group in batch["advantages"])


TORN = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}
WHY_TORN = "per_device_train_batch_size (6) is not a multiple of num_generations (4), so groups are torn apart"


def words_trainer(output: Path, **given: Any) -> GroupSharedTrainer:
    """A trainer of a model of words only."""
    tokenizer = tiny.make_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(vocab_size=len(tokenizer), **sizes))
    args = GRPOConfig(output_dir=str(output), report_to="none", use_cpu=True, bf16=False, per_device_train_batch_size=8, num_generations=4)
    rows = Dataset.from_list([{"prompt": "all boxes"}])
    return GroupSharedTrainer(model=model, reward_funcs=Parity(), args=args, train_dataset=rows, processing_class=tokenizer, **given)


def test_sharing_demanded_where_it_cannot_be_is_one_clear_error(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData) as torn:
        make_trainer(policy, tmp_path, given=ON, **TORN)
    assert str(torn.value) == f"shared_prefix is on, but {WHY_TORN}: change that, or set shared_prefix to auto or off"
    with pytest.raises(BadData, match="the architecture qwen2 is not one of qwen2_vl, qwen2_5_vl, qwen3_vl"):
        words_trainer(tmp_path, share="on")


def test_where_it_cannot_share_it_warns_once_and_is_the_stock_trainer_to_the_last_bit(
    policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "perception_r1")
    ours = make_trainer(policy, tmp_path, given={"share": "auto"}, max_steps=2, **TORN)
    assert not ours.group_shared
    warned = [record.getMessage() for record in caplog.records if record.name.startswith("perception_r1")]
    assert warned == [f"shared_prefix: every rollout computes its prompt anew (TRL's own path), because {WHY_TORN}"]
    found = trained(ours)
    assert torch.equal(found, trained(make_trainer(policy, tmp_path, GRPOTrainer, max_steps=2, **TORN)))
    caplog.clear()
    words_trainer(tmp_path)
    assert [record.getMessage() for record in caplog.records if "because the architecture qwen2 is not one of" in record.getMessage()]


def test_off_is_silent_and_auto_shares_where_it_can(policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "perception_r1")
    off = make_trainer(policy, tmp_path, given={"share": "off"})
    assert not off.group_shared
    assert off.model.config.get_text_config()._attn_implementation == "sdpa"
    assert make_trainer(policy, tmp_path).group_shared
    assert not [record for record in caplog.records if record.name.startswith("perception_r1")]


class FakeVLLM:
    """Answers as TRL's vLLM backend does in `mode`: "colocate" gives n answers to each prompt, "server" one to each row."""

    def __init__(self, mode: str) -> None:
        self.mode, self.tensor_parallel_size, self.generation_kwargs = mode, 1, {"seed": 1}
        self.prompts: list[list[int]] = []
        self.images: list[Any] = []

    def sync_weights(self) -> None:
        pass

    def generate(self, *, prompts: list[list[int]], images: list[Any], num_generations: int, profiler: Any) -> tuple[Any, ...]:
        self.prompts, self.images = prompts, images
        each = self.generation_kwargs.get("n", 1)
        answers = [[20 + len(prompts[k // each]) % 7, 30 + k] for k in range(len(prompts) * each)]
        return prompts, answers, [[[-1.0], [-2.0]] for _ in answers], None


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_vllm_is_asked_for_n_answers_to_one_prompt_and_its_server_client_gets_every_row(policy: Path, tmp_path: Path, mode: str) -> None:
    trainer = make_trainer(policy, tmp_path, given=ON)
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, FakeVLLM(mode), -1
    rows = [trainer.train_dataset[number] for number in (0, 1, 2) for _ in range(4)]
    batch = trainer._generate_and_score_completions(rows)
    fake, once = trainer.vllm_generation, mode == "colocate"
    assert len(fake.prompts) == len(fake.images) == (3 if once else 12)
    assert fake.generation_kwargs == ({"seed": 1, "n": 4} if once else {"seed": 1})
    rows_asked = [ids for ids in fake.prompts for _ in range(4 if once else 1)]
    kept = [ids[mask == 1].tolist() for ids, mask in zip(batch["prompt_ids"].flatten(0, 1), batch["prompt_mask"].flatten(0, 1), strict=True)]
    assert kept == rows_asked
    assert [ids[-1].item() for ids in batch["completion_ids"].flatten(0, 1)] == [30 + k for k in range(12)]
    assert batch["completion_ids"].shape == (3, 4, 2)
    assert torch.equal(batch["sampling_per_token_logps"], torch.tensor([-1.0, -2.0]).expand(3, 4, 2))


def test_two_processes_have_the_losses_and_weights_of_one(policy: Path, tmp_path: Path) -> None:
    in_two_processes("trained", policy)
    one = make_trainer(policy, tmp_path, Told, given=ON, per_device_train_batch_size=16, gradient_accumulation_steps=1, max_steps=3)
    start, end = weights(one), trained(one)
    losses = [row["loss"] for row in one.state.log_history if "loss" in row]
    assert (end - start).norm() >= 1e-3
    for rank in range(2):
        two = torch.load(policy / f"trained-{rank}.pt")
        assert two["losses"] == pytest.approx(losses, rel=1e-4, abs=1e-6)
        assert (two["weights"] - end).norm() <= 1e-4 * (end - start).norm()


RELIED_ON = {
    (GRPOTrainer, "_tokenize_prompts"): ("d2d27f7c9bfda85f", "_tokenize_prompts: one prompt a group is tokenized and preprocessed"),
    (GRPOTrainer, "_generate_single_turn"): ("e0f02e4fc094cefd", "_generate_single_turn and rollouts.py: prompts once, G answers each, in order"),
    (GRPOTrainer, "_generate"): ("2a27fdf8f5e6f356", "_tokenize_prompts, _generate_single_turn: what is passed between them, a row a completion"),
    (GRPOTrainer, "_generate_and_score_completions"): (
        "1fa48922792dcd5c",
        "_Prepared, _by_group: one call of the processor",
    ),
    (GRPOTrainer, "_prepare_inputs"): ("f824e7fb07147956", "_prepare_inputs: one shuffle a generation batch, and what is drawn for it"),
    (GRPOTrainer, "_compute_loss"): ("80295546bbdbf6f7", "_compute_loss, _by_row: the batch is read a row a completion"),
    (GRPOTrainer, "_get_per_token_logps_and_entropies"): (
        "ea73c3909275851d",
        "_images_of: arguments and results of the same name",
    ),
    (GRPOTrainer, "_get_train_sampler"): ("36497afb4d311dc9", "_group: the rows of a group follow each other"),
    (GRPOTrainer, "_get_eval_sampler"): ("115d885d2f0292c2", "_group: the rows of a group follow each other"),
    (VLLMGeneration, "generate"): (
        "2d2ac2be5b1309c4",
        "_generate_single_turn: generation_kwargs hold n, answers come prompt by prompt; vllm_rollouts: "
        "every colocated prompt goes through llm.generate as prompt_token_ids and multi_modal_data",
    ),
    (VLLMGeneration, "_place_features"): (
        "5150ee5f57eb83d0",
        "vllm_rollouts._place: a server's pictures are placed by runs of the trainer's image tokens",
    ),
    (trl_utils, "shuffle_sequence_dict"): ("bab038755e57ed2b", "_prepare_inputs: one randperm of the first field's length"),
    (trl_utils, "split_pixel_values_by_grid"): ("3aca66e33a7978d3", "_by_group: num_images counts the images of each prompt"),
    (trl_utils, "split_tensor_dict"): ("b61a5760a03e95db", "_by_group: the first field's length is the number of groups"),
    (trl_utils, "add_fused_lm_head"): (
        "422d009f04b66659",
        "shared_prefix.shared_logps: labels are shifted, kwargs reach the model",
    ),
}
"""TRL's private code that training/ overrides or stands on: its digest when it was last read, and what of ours stands on it."""


@pytest.mark.parametrize("owner, name", RELIED_ON, ids=lambda part: part if isinstance(part, str) else getattr(part, "__name__", ""))
def test_trl_is_as_it_was_when_it_was_last_read(owner: Any, name: str) -> None:
    known, ours = RELIED_ON[owner, name]
    source = inspect.getsource(inspect.unwrap(getattr(owner, name)))
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    where = f"{owner.__name__}.{name}"
    assert digest == known, (
        f"TRL {trl.__version__} has changed {where}. Read it again against training/group_shared.py's {ours}; when this file's other tests pass "
        f"and nothing in the new code escapes them, write its digest {digest} here."
    )


def test_overridden_methods_take_what_trl_passes() -> None:
    """Every parameter of TRL's method is one of ours by the same name, or is taken by *args or **kwargs."""
    for name in ("_tokenize_prompts", "_generate_single_turn", "_get_per_token_logps_and_entropies", "_prepare_inputs", "_compute_loss"):
        theirs = inspect.signature(inspect.unwrap(getattr(GRPOTrainer, name))).parameters
        ours = inspect.signature(vars(GroupSharedTrainer)[name]).parameters
        named = [parameter for parameter in ours.values() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        assert [parameter.name for parameter in named] == list(theirs)[: len(named)], f"read TRL's {name} again: its parameters have changed"
        kinds = {parameter.kind for parameter in ours.values()}
        takes_rest = kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        assert takes_rest or len(named) == len(theirs), f"read TRL's {name} again: it takes more than ours"
