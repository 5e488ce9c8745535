"""Mixed precision: what is computed in half is computed in half everywhere, once, and no number is worse for it."""

import functools
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tests.small_families import END, FAMILIES, IMAGE, START, VIDEO, completions, prompts, small_model
from tests.small_runs import make_trainer, save_policy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from perception_r1.training import rollouts
from perception_r1.training.group_shared import GroupSharedTrainer
from perception_r1.training.precision import halve_linears
from perception_r1.training.rollouts import prefill_once
from perception_r1.training.shared_prefix import pack, share_prefix, shared_logps

HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _own_accelerator():
    """accelerate keeps a process's first precision, which may be another test's."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    save_policy(folder)
    return folder


class Casts(TorchDispatchMode):
    """Counts the casts of a model's weights, and of whole caches, from float32 to bfloat16."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.weights = {weights.data_ptr() for weights in model.parameters()}
        self.seen: Counter[str] = Counter()
        self.times: Counter[int] = Counter()
        """How often each weight was cast."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and kwargs.get("dtype") == HALF and args[0].dtype == torch.float32:
            if args[0].data_ptr() in self.weights:
                self.seen["weights"] += 1
                self.times[args[0].data_ptr()] += 1
            self.seen["caches"] += args[0].dim() == 4 and args[0].shape[2] > 20  # longer than a step's own keys and values
        return function(*args, **kwargs)


def roll(model: Any, tokens: int, context: Any, count: Any = None) -> Tensor:
    given = prompts([[(8, 12)]])
    inputs = {"input_ids": given.ids, "attention_mask": given.mask, "mm_token_type_ids": given.types}
    inputs |= {"pixel_values": given.pixel_values, "image_grid_thw": given.grid}
    config = GenerationConfig(max_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=0)
    torch.manual_seed(0)
    with torch.no_grad(), context, prefill_once(model, 4), count or nullcontext():
        return model.generate(**inputs, generation_config=config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_casts_no_weight_and_no_cache(family: str) -> None:
    model = small_model(family, layers=3)
    share_prefix(model)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    model = accelerator.prepare_model(model)
    seen = {}
    for tokens in (4, 12):
        count = Casts(model)
        roll(model, tokens, accelerator.autocast(), count)
        seen[tokens] = count.seen
    assert seen[12]["weights"] == seen[4]["weights"] > 0
    assert seen[12]["caches"] == seen[4]["caches"]


ADAPTERS = {"peft_config": peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])}


@pytest.mark.parametrize("given", [{}, ADAPTERS], ids=["whole", "adapters"])
@pytest.mark.parametrize("share", ["on", "off"])
def test_a_rollout_casts_a_weight_once_whoever_trains_it(
    policy: Path, tmp_path: Path, share: str, given: dict[str, Any]
) -> None:
    """An autocast keeps what it has cast of trained weights only; those under adapters are not."""
    trainer = make_trainer(policy, tmp_path, given=given | {"share": share}, max_steps=1, bf16=True)
    trained = {name: weights.requires_grad for name, weights in trainer.model.named_parameters()}
    generate, counts = trainer._generate_single_turn, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        counts.append(Casts(trainer.model))
        with counts[-1]:
            return generate(*args, **kwargs)

    trainer._generate_single_turn = counted
    trainer.train()
    assert len(counts[0].times) > 10
    assert set(counts[0].times.values()) == {1}
    assert {name: one.requires_grad for name, one in trainer.model.named_parameters()} == trained


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_rollouts_of_a_mixed_precision_that_is_entered_inside_the_forward_do_not_crash_on_a_cpu(half: torch.dtype) -> None:
    model = small_model("qwen2_vl").eval()
    forward = model.forward

    @functools.wraps(forward)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", half):
            return forward(*args, **kwargs)

    model.forward = inside
    assert roll(model, 6, nullcontext()).shape[0] == 4


def towers_in(trainer: Any) -> list[torch.dtype]:
    """In what type the vision tower of the policy computes while it rolls out."""
    bare, found = trainer.accelerator.unwrap_model(trainer.model), []
    linear = next(module for module in bare.model.visual.modules() if isinstance(module, torch.nn.Linear))
    original = trainer._generate_single_turn

    def noted(*args: Any, **kwargs: Any) -> Any:
        hook = linear.register_forward_hook(lambda module, inputs, output: found.append(output.dtype))
        result = original(*args, **kwargs)
        hook.remove()
        return result

    trainer._generate_single_turn = noted
    trainer.train()
    return found


@pytest.mark.parametrize("share", ["on", "off"])
def test_the_vision_tower_of_rollouts_computes_in_the_autocast_shared_or_not(policy: Path, tmp_path: Path, share: str) -> None:
    trainer = make_trainer(policy, tmp_path, given={"share": share}, max_steps=1, bf16=True)
    assert set(towers_in(trainer)) == {HALF}


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_of_rollouts_are_closer_to_those_of_training_than_without_the_outer_autocast(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half as far apart on average (0.51 to 0.57 here), with a margin."""
    apart = {}
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    for outer in (True, False):
        model = accelerator.prepare_model(unending(family))
        kept: list[Tensor] = []
        with monkeypatch.context() as patched:
            patched.setattr(rollouts, "_next_tokens", noting(kept))
            if not outer:
                patched.setattr(rollouts, "as_attended", lambda states: states)
            ids = roll(model, 24, accelerator.autocast() if outer else nullcontext())
        given = prompts([[(8, 12)]])
        answers = ids[None, :, given.ids.shape[1] :]
        tokens = {"prompt_ids": given.ids, "prompt_mask": given.mask, "completion_ids": answers}
        tokens |= {"completion_mask": torch.ones_like(answers), "mm_token_type_ids": given.types}
        with torch.no_grad(), accelerator.autocast():
            packed = pack(model, **tokens, image_grid_thw=given.grid)
            logps = shared_logps(model, packed, pixel_values=given.pixel_values, image_grid_thw=given.grid)[0]
        apart[outer] = (logps[0] - torch.cat(kept, 1)).abs().mean().item()
    assert apart[True] < 0.75 * apart[False]


def unending(family: str) -> Any:
    """A model whose answers go on to the limit."""
    model = small_model(family, layers=3, initializer_range=0.07)
    model.generation_config.update(eos_token_id=None)
    model.config.get_text_config().eos_token_id = None
    share_prefix(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def noting(kept: list[Tensor]) -> Any:
    """Draws words only, no marks of images, and keeps their log-probabilities."""

    def pick(scores: Tensor, *_: Any) -> Tensor:
        words = scores.softmax(-1).index_fill(1, torch.tensor([START, END, IMAGE, VIDEO]), 0)
        tokens = torch.multinomial(words, 1)
        kept.append(scores.log_softmax(-1).gather(1, tokens))
        return tokens[:, 0]

    return pick


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reference_with_its_linear_weights_in_half_is_the_same_to_the_last_bit(family: str, half: torch.dtype) -> None:
    given, (ids, mask) = prompts([[(4, 6)], [(4, 4)]]), completions(2, 3, 5)
    tokens = {"prompt_ids": given.ids, "prompt_mask": given.mask, "completion_ids": ids, "completion_mask": mask}
    found = []
    for halved in (False, True):
        model = small_model(family, layers=3)
        if halved:
            assert halve_linears(model, half) > 10
            assert model.get_output_embeddings().weight.dtype == torch.float32  # tied to the embedding
            assert model.model.language_model.norm.weight.dtype == torch.float32
        share_prefix(model)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        with torch.no_grad(), torch.autocast("cpu", half):
            packed = pack(model, **tokens, mm_token_type_ids=given.types, image_grid_thw=given.grid)
            found.append(shared_logps(model, packed, pixel_values=given.pixel_values, image_grid_thw=given.grid)[0])
    assert torch.equal(*found)


def untied(family: str) -> Any:
    """A model whose head has weights of its own, as that of Qwen2.5-VL-7B."""
    model = small_model(family, layers=1)
    head = torch.nn.Linear(64, model.lm_head.out_features, bias=False)
    torch.nn.init.normal_(head.weight, std=0.2, generator=torch.Generator().manual_seed(1))
    model.lm_head = head
    return model


@pytest.mark.parametrize("float32_head", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_so_is_one_whose_head_is_its_own_in_float32_or_not(family: str, float32_head: bool) -> None:
    """TRL's `cast_lm_head_to_fp32` computes the head outside the autocast, in all its digits."""
    given, (ids, mask) = prompts([[(4, 6)], [(4, 4)]]), completions(2, 3, 5)
    tokens = {"prompt_ids": given.ids, "prompt_mask": given.mask}
    tokens |= {"completion_ids": ids, "completion_mask": mask, "mm_token_type_ids": given.types}
    images, found = {"pixel_values": given.pixel_values, "image_grid_thw": given.grid}, []
    for halved in (False, True):
        model = untied(family)
        if halved:
            halve_linears(model, HALF, float32_head=float32_head)
            assert model.lm_head.weight.dtype == (torch.float32 if float32_head else HALF)
        share_prefix(model)
        add_fused_lm_head(model, cast_lm_head_to_fp32=float32_head)
        with torch.no_grad(), torch.autocast("cpu", HALF):
            packed = pack(model, **tokens, image_grid_thw=given.grid)
            found.append(shared_logps(model, packed, **images)[0])
    assert torch.equal(*found)


def test_a_run_whose_head_is_computed_in_float32_keeps_that_of_its_reference(
    policy: Path, tmp_path: Path
) -> None:
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(policy)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.1)
    folder = Path(shutil.copytree(policy, tmp_path / "untied"))
    model.save_pretrained(folder)
    heads = []
    for float32_head in (False, True):
        trainer = make_trainer(folder, tmp_path, bf16=True, cast_lm_head_to_fp32=float32_head)
        head = trainer.ref_model.lm_head.weight
        assert head is not trainer.ref_model.get_input_embeddings().weight
        heads.append(head.dtype)
    assert heads == [HALF, torch.float32]


def linear_types(model: Any) -> set[torch.dtype]:
    embedding = model.get_input_embeddings().weight
    return {layer.weight.dtype for layer in model.modules() if type(layer) is torch.nn.Linear and layer.weight is not embedding}


def test_only_a_frozen_reference_of_a_mixed_precision_run_is_halved(policy: Path, tmp_path: Path) -> None:
    def reference(**settings: Any) -> Any:
        return make_trainer(policy, tmp_path, **settings).ref_model

    assert linear_types(reference(bf16=True)) == {HALF}
    assert linear_types(reference(bf16=False)) == {torch.float32}
    assert linear_types(reference(bf16=True, sync_ref_model=True)) == {torch.float32}  # it is updated, a little at a time
    adapters = {"peft_config": peft.LoraConfig(r=4, target_modules=["q_proj"])}
    trainer = make_trainer(policy, tmp_path, given=adapters, bf16=True)
    assert trainer.ref_model is None
    assert HALF not in linear_types(trainer.accelerator.unwrap_model(trainer.model))


def test_the_course_of_a_run_is_the_same_with_a_halved_reference(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = []
    for half in (True, False):
        if not half:
            monkeypatch.setattr(GroupSharedTrainer, "_half_reference", lambda self: False)
        trainer = make_trainer(policy, tmp_path, bf16=True, max_steps=3)
        trainer.train()
        logs.append([{name: row[name] for name in ("loss", "kl", "reward")} for row in trainer.state.log_history if "kl" in row])
    assert logs[0] == logs[1]
    assert len(logs[0]) == 3
    assert any(row["kl"] for row in logs[0])


def test_a_compiled_model_trains_as_an_ordinary_one(policy: Path, tmp_path: Path) -> None:
    """With dynamo's `eager` backend, which compiles nothing and so costs a test no minutes."""
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    courses = []
    for settings in ({}, compiled):
        trainer = make_trainer(policy, tmp_path, given={"share": "on"}, max_steps=2, **settings)
        trainer.train()
        courses.append(([row["loss"] for row in trainer.state.log_history if "loss" in row], trainer.parity.seen))
    assert courses[1][1] == courses[0][1]
    assert courses[1][0] == pytest.approx(courses[0][0], rel=1e-4, abs=1e-6)


def test_stock_rollouts_encode_images_in_float32(policy: Path, tmp_path: Path) -> None:
    """What the outer autocast is there for: when this fails, transformers encodes inside the forward again."""
    assert set(towers_in(make_trainer(policy, tmp_path, GRPOTrainer, max_steps=1, bf16=True))) == {torch.float32}
