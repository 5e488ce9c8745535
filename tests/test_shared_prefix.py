"""A packed row gives each completion the numbers of a row of its own: against plain float64 forwards and against TRL's own path."""

import importlib.util
import inspect
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from tests.small_families import FAMILIES, Prompts, completions, prompts, small_model
from tests.two_processes import in_two_processes
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from perception_r1.training.shared_prefix import Packed, pack, share_prefix, shared_logps, why_not

GRIDS = [[(4, 4)], [(4, 8), (8, 4)]]
"""Two prompts of unequal length: one image of 4 tokens; two images of 8 tokens and different shapes."""
GROUPS = (1, 2, 8)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _norm_float64(module: torch.nn.Module, states: Tensor) -> Tensor:
    return module.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)


def _rotate_float64(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def rotated(states: Tensor) -> Tensor:
        first, second = states.chunk(2, dim=-1)
        return states * cos.unsqueeze(-2) + torch.cat([-second, first], dim=-1) * sin.unsqueeze(-2)

    return rotated(query), rotated(key)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch):
    """`exact(family)` is a float64 model. The families' norms and vision rotations go through float32: here they do not."""

    def build(family: str) -> transformers.PreTrainedModel:
        model = small_model(family).double().eval()
        norms = {type(module) for module in model.modules() if type(module).__name__.endswith("RMSNorm")}
        assert norms
        for kind in norms:
            monkeypatch.setattr(kind, "forward", _norm_float64)
        monkeypatch.setattr(inspect.getmodule(type(model)), "apply_rotary_pos_emb_vision", _rotate_float64)
        return model

    return build


def fused(family: str, **settings: object) -> transformers.PreTrainedModel:
    """Log-probabilities of about -5, one unit of whose last place is 5e-7 in float32; TRL's head."""
    model = small_model(family, initializer_range=0.07, **settings).eval()
    add_fused_lm_head(model, temperature=0.9, outputs=("log_probs", "entropy"))
    return model


def sharing(family: str, **settings: object) -> transformers.PreTrainedModel:
    model = fused(family, **settings)
    share_prefix(model)
    return model


def packed_of(model: torch.nn.Module, given: Prompts, ids: Tensor, mask: Tensor) -> Packed:
    masks = {"prompt_mask": given.mask, "completion_mask": mask}
    return pack(model, prompt_ids=given.ids, completion_ids=ids, mm_token_type_ids=given.types, image_grid_thw=given.grid, **masks)


def only(given: Prompts, number: int) -> Prompts:
    """One prompt of several, without the padding that it has only because of the others."""
    start, patches = sum(given.images[:number]), given.grid.prod(1).tolist()
    end, seen = start + given.images[number], given.mask[number] == 1
    rows = {name: getattr(given, name)[number : number + 1, seen] for name in ("ids", "mask", "types")}
    pixels = given.pixel_values[sum(patches[:start]) : sum(patches[:end])]
    return Prompts(**rows, pixel_values=pixels, grid=given.grid[start:end], images=[given.images[number]])


def images(given: Prompts) -> dict[str, Tensor]:
    return {"pixel_values": given.pixel_values, "image_grid_thw": given.grid}


def rows_of(given: Prompts, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The same prompts and completions as rows of their own, with every row's pixels."""
    group = ids.shape[1]
    pairs = {"input_ids": (given.ids, ids), "attention_mask": (given.mask, mask), "mm_token_type_ids": (given.types, torch.zeros_like(ids).int())}
    rows = {name: torch.cat([prompt.repeat_interleave(group, 0), own.flatten(0, 1)], dim=1) for name, (prompt, own) in pairs.items()}
    return rows | given.rows(group)


def alone(model: torch.nn.Module, given: Prompts, ids: Tensor, mask: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
    """TRL's own path, every completion in a row of its own: log-probabilities and entropies (P, G, S). The head must be TRL's fused one."""
    rows = rows_of(given, ids, mask)
    counts = [count for count in given.images for _ in range(ids.shape[1])]
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=lambda: context or nullcontext()))
    method = inspect.unwrap(GRPOTrainer._get_per_token_logps_and_entropies)
    full = (rows.pop("input_ids"), rows.pop("attention_mask"), ids.shape[2])
    logps, entropies, _ = method(trainer, model, *full, compute_entropy=True, num_images=counts, **rows)
    return logps.view(ids.shape), entropies.view(ids.shape)


def ours(model: torch.nn.Module, given: Prompts, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    logps, entropies = shared_logps(model, packed_of(model, given, ids, mask), **images(given))
    assert entropies is not None
    return logps, entropies


def plain(model: torch.nn.Module, given: Prompts, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities (P, G, S) by their definition, every completion in a row of its own."""
    logits = model(**rows_of(given, ids, mask)).logits[:, -ids.shape[2] - 1 : -1]
    return logits.log_softmax(-1).gather(-1, ids.flatten(0, 1)[..., None])[..., 0].view(ids.shape) * mask


def packed_plain(model: torch.nn.Module, given: Prompts, ids: Tensor, mask: Tensor) -> Tensor:
    packed = packed_of(model, given, ids, mask)
    logits = model(**packed.inputs, **images(given)).logits[:, :-1]
    return packed.unpack(logits.log_softmax(-1).gather(-1, packed.labels[:, 1:].clamp(min=0)[..., None])[..., 0]) * mask


def weights_of(values: Tensor) -> Tensor:
    """Weights of a loss (P, G, S), different from token to token."""
    return torch.linspace(-1, 1, values.numel(), dtype=values.dtype if values.is_floating_point() else torch.float32).view(values.shape)


def gradients(model: torch.nn.Module, values: Tensor) -> Tensor:
    """All gradients of a weighted sum of log-probabilities (P, G, S), as one vector."""
    model.zero_grad()
    (values * weights_of(values)).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def apart(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, where there is something to expect."""
    assert found.shape == expected.shape
    assert expected.norm() > 1e-3
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_in_float64_packed_rows_have_the_log_probabilities_and_gradients_of_rows_of_their_own(exact, family: str, group: int) -> None:
    reference, shared = exact(family), exact(family)
    share_prefix(shared)
    given, (ids, mask) = prompts(GRIDS, dtype=torch.float64), completions(2, group, 7)
    expected, found = plain(reference, given, ids, mask), packed_plain(shared, given, ids, mask)
    assert expected.min() < -1
    assert (found - expected).abs().max() <= 1e-9
    assert apart(gradients(shared, found), gradients(reference, expected)) <= 1e-7


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_they_are_those_of_the_stock_trainer_and_so_are_the_entropies(family: str, group: int) -> None:
    reference, shared = fused(family), sharing(family)
    given, (ids, mask) = prompts(GRIDS), completions(2, group, 7)
    (expected, expected_entropy), (found, entropy) = alone(reference, given, ids, mask), ours(shared, given, ids, mask)
    assert (found - expected).abs().max() <= 2e-6
    assert (entropy - expected_entropy).abs().max() <= 2e-6
    assert expected_entropy[mask == 1].min() > 0.1
    assert torch.equal(found == 0, mask == 0)
    assert apart(gradients(shared, found), gradients(reference, expected)) <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_packed_with_any_number_of_images_of_any_size(exact, family: str) -> None:
    reference, shared = exact(family), exact(family)
    share_prefix(shared)
    for number, grids in enumerate([[[(2, 2), (12, 4), (4, 12)]], [[(4, 4)], [(10, 6)], [(2, 8), (2, 2), (6, 6)], [(4, 4)]]]):
        given, (ids, mask) = prompts(grids, seed=number, dtype=torch.float64), completions(len(grids), 3, 5, seed=number)
        with torch.no_grad():
            assert (packed_plain(shared, given, ids, mask) - plain(reference, given, ids, mask)).abs().max() <= 1e-9


def test_prompts_without_an_image_are_packed_too() -> None:
    reference, shared = fused("qwen3_vl"), sharing("qwen3_vl")
    ids, mask = torch.tensor([[0, 0, 20, 21, 22], [30, 31, 32, 33, 34]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    own, own_mask = completions(2, 3, 6)
    parts = {"prompt_ids": ids, "prompt_mask": mask, "completion_ids": own, "completion_mask": own_mask}
    rows, row_mask = (torch.cat([a.repeat_interleave(3, 0), b.flatten(0, 1)], 1) for a, b in ((ids, own), (mask, own_mask)))
    with torch.no_grad():
        found, _ = shared_logps(shared, pack(shared, **parts, mm_token_type_ids=torch.zeros_like(ids)))
        labels = rows.masked_fill(row_mask == 0, -100)
        outputs = reference(input_ids=rows, attention_mask=row_mask, labels=labels, fused_lm_head=True)
    assert (found - outputs.log_probs[:, -6:].view(2, 3, 6) * own_mask).abs().max() <= 2e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_completion_is_seen_by_no_other_and_does_see_its_own_prompt(family: str) -> None:
    shared = sharing(family)
    given, (ids, mask) = prompts(GRIDS), completions(2, 4, 7)
    changed = ids.clone()
    changed[0, 1, :2] = (ids[0, 1, :2] + 7) % 100 + 10
    with torch.no_grad():
        (before, _), (after, _) = ours(shared, given, ids, mask), ours(shared, given, changed, mask)
        given.pixel_values[:16] += 1.0  # the first prompt's image
        (seeing, _) = ours(shared, given, ids, mask)
    others = torch.ones(2, 4, dtype=torch.bool)
    others[0, 1] = False
    assert torch.equal(before[others], after[others])
    assert (before - after)[0, 1].abs().max() > 1e-3
    assert ((before - seeing)[0].abs().amax(1) > 1e-3).all()
    assert torch.equal(before[1], seeing[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_in_the_padding_does_not_matter(family: str) -> None:
    shared = sharing(family)
    given, (ids, mask) = prompts(GRIDS), completions(2, 4, 7)
    with torch.no_grad():
        before, entropy = ours(shared, given, ids, mask)
        given.ids = torch.where(given.mask == 1, given.ids, 77)
        after, entropy_after = ours(shared, given, torch.where(mask == 1, ids, 88), mask)
        # wider padding on both sides: a last bit may differ, because sums are cut elsewhere
        given.ids, given.mask, given.types = (torch.nn.functional.pad(rows, (5, 0)) for rows in (given.ids, given.mask, given.types))
        wider, _ = ours(shared, given, torch.nn.functional.pad(ids, (0, 3)), torch.nn.functional.pad(mask, (0, 3)))
    assert torch.equal(before, after)
    assert torch.equal(entropy, entropy_after)
    assert (wider[:, :, :7] - before).abs().max() <= 2e-6
    assert not wider[:, :, 7:].any()


def test_a_completion_masked_as_a_whole_counts_for_nothing_and_disturbs_no_one() -> None:
    shared = sharing("qwen2_5_vl")
    given, (ids, mask) = prompts(GRIDS), completions(2, 4, 7)
    masked = mask.clone()
    masked[1, 2] = 0  # mask_truncated_completions
    with torch.no_grad():
        (whole, _), (found, entropy) = ours(shared, given, ids, mask), ours(shared, given, ids, masked)
    assert not found[1, 2].any()
    assert not entropy[1, 2].any()
    assert torch.equal(found * masked, whole * masked)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(family: str, reentrant: bool) -> None:
    shared = sharing(family)
    given, (ids, mask) = prompts(GRIDS), completions(2, 4, 7)
    expected = gradients(shared, ours(shared, given, ids, mask)[0])
    calls = []
    shared.model.language_model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    shared.gradient_checkpointing_enable({"use_reentrant": reentrant})
    shared.enable_input_require_grads()
    found = gradients(shared.train(), ours(shared, given, ids, mask)[0])
    assert len(calls) == 2  # forward, and again for the backward
    assert apart(found, expected) <= 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_trained_as_on_rows_of_their_own(family: str) -> None:
    def adapted(model: transformers.PreTrainedModel) -> peft.PeftModel:
        torch.manual_seed(1)
        return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False))

    reference, shared = adapted(fused(family)), adapted(sharing(family))
    given, (ids, mask) = prompts(GRIDS), completions(2, 4, 7)
    expected, found = alone(reference, given, ids, mask)[0], ours(shared, given, ids, mask)[0]
    assert (found - expected).abs().max() <= 2e-6
    assert apart(gradients(shared, found), gradients(reference, expected)) <= 1e-4
    with shared.disable_adapter(), reference.disable_adapter(), torch.no_grad():
        without = ours(shared, given, ids, mask)[0]
        assert (without - alone(reference, given, ids, mask)[0]).abs().max() <= 2e-6
    assert (without - found).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_they_are_as_near_to_the_truth_as_the_stock_trainer(family: str) -> None:
    reference, shared = fused(family), sharing(family)
    given, (ids, mask) = prompts(GRIDS), completions(2, 4, 7)
    with torch.no_grad():
        truth, _ = alone(reference, given, ids, mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, _ = alone(reference, given, ids, mask)
            found, _ = ours(shared, given, ids, mask)
    assert 1e-4 < apart(expected, truth) < 0.05
    assert apart(found, truth) <= 1.5 * apart(expected, truth)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_shares_still_does_everything_else_as_before(family: str) -> None:
    reference, shared = small_model(family).eval(), small_model(family).eval()
    share_prefix(shared)
    given, (ids, mask) = prompts(GRIDS), completions(2, 3, 7)
    rows = rows_of(given, ids, mask)
    own = {"input_ids": given.ids, "attention_mask": given.mask, "mm_token_type_ids": given.types, **images(given)}
    with torch.no_grad():
        assert torch.equal(shared(**rows).logits, reference(**rows).logits)
        assert torch.equal(shared.generate(**own, max_new_tokens=6), reference.generate(**own, max_new_tokens=6))
        whole = {name: value[1:] if value.shape[0] == 2 else value for name, value in own.items()}  # no padding: transformers passes no mask
        whole |= {"pixel_values": given.pixel_values[16:], "image_grid_thw": given.grid[1:]}
        assert torch.equal(shared(**whole).logits, reference(**whole).logits)


def test_teaching_a_model_twice_is_teaching_it_once_and_its_vision_is_left_alone() -> None:
    model = small_model("qwen2_vl")
    share_prefix(model)
    once = model.config.get_text_config()._attn_implementation
    share_prefix(model)
    assert model.config.get_text_config()._attn_implementation == once
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert why_not(model) is None


def test_a_saved_model_that_shares_loads_as_any_other(tmp_path: Path) -> None:
    model = small_model("qwen2_vl")
    share_prefix(model)
    model.save_pretrained(tmp_path)
    assert "shared_prefix" not in (tmp_path / "config.json").read_text()
    assert transformers.AutoModelForImageTextToText.from_pretrained(tmp_path).config.get_text_config()._attn_implementation == "sdpa"


def test_long_completions_are_exact_and_no_mask_over_the_whole_row_is_made() -> None:
    reference, shared = fused("qwen2_vl", layers=1), sharing("qwen2_vl", layers=1)
    given, (ids, mask) = prompts([[(4, 4)]]), completions(1, 4, 512)
    packed = packed_of(shared, given, ids, mask)
    assert packed.inputs["attention_mask"].numel() == 513 * (packed.prefix + 513)
    (expected, _), (found, _) = alone(reference, given, ids, mask), ours(shared, given, ids, mask)
    assert (found - expected).abs().max() <= 4e-6
    assert apart(gradients(shared, found), gradients(reference, expected)) <= 1e-4


def test_an_unknown_architecture_or_attention_is_refused_with_its_name() -> None:
    eager = small_model("qwen2_vl")
    eager.set_attn_implementation("eager")
    assert why_not(eager) == "the attention eager is not one of sdpa, flash_attention_2, flash_attention_3"
    sliding = small_model("qwen2_vl", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert why_not(sliding) == "its text layers attend within a sliding window"
    words = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2))
    assert why_not(words) == "the architecture qwen2 is not one of qwen2_vl, qwen2_5_vl, qwen3_vl"


HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


@pytest.mark.parametrize("job", ["sharded", pytest.param("zero3", marks=pytest.mark.skipif(not HAS_DEEPSPEED, reason="needs deepspeed, an extra"))])
def test_two_processes_that_share_the_weights_have_the_log_probabilities_gradients_and_rollouts_of_one(tmp_path: Path, job: str) -> None:
    in_two_processes(job, tmp_path)
    given, (ids, mask) = prompts(GRIDS), completions(2, 4, 7)
    for family in FAMILIES:
        model = sharing(family)
        found = ours(model, given, ids, mask)[0]
        expected = gradients(model, found) / 2  # both take the mean over processes
        for rank in range(2):
            together, own = torch.load(tmp_path / f"{family}-{rank}.pt"), only(given, rank)
            assert (together["logps"] - found).abs().max() <= 2e-6
            assert apart(together["gradients"], expected) <= 1e-4
            inputs = {"input_ids": own.ids, "attention_mask": own.mask, "mm_token_type_ids": own.types, **images(own)}
            assert torch.equal(together["tokens"][1:2], model.generate(**inputs, do_sample=False, max_new_tokens=4 + 6 * rank))
