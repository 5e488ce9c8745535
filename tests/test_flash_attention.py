"""Packed rows over flash attention, which transformers imports by its name. Its kernels need a GPU: here they have a stand-in."""

import pytest
import torch
from tests import flash_stand_in
from tests.small_families import FAMILIES, completions, prompts, small_model
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl.trainer.utils import add_fused_lm_head

from perception_r1.training.rollouts import prefill_once
from perception_r1.training.shared_prefix import pack, share_prefix, shared_logps, why_not

GRIDS = [[(4, 6)], [(4, 4)]]


def packed_logps(model: torch.nn.Module) -> Tensor:
    given, (ids, mask) = prompts(GRIDS), completions(2, 3, 5)
    tokens = {"prompt_ids": given.ids, "prompt_mask": given.mask, "completion_ids": ids, "completion_mask": mask}
    packed = pack(model, **tokens, mm_token_type_ids=given.types, image_grid_thw=given.grid)
    return shared_logps(model, packed, pixel_values=given.pixel_values, image_grid_thw=given.grid)[0] * mask


def model_with(attention: str, family: str) -> torch.nn.Module:
    model = small_model(family, initializer_range=0.07)  # log-probabilities of about -5, as in test_shared_prefix.py
    model.set_attn_implementation(attention)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    assert why_not(model) is None
    return model


def numbers(model: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Log-probabilities and gradients."""
    model.zero_grad()
    logps = packed_logps(model)
    (logps * torch.linspace(-1, 1, logps.shape[2])).sum().backward()
    return logps.detach(), torch.cat([weights.grad.flatten() for weights in model.parameters() if weights.grad is not None])


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_over_flash_attention_are_those_over_sdpa(family: str, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flash = flash_stand_in.install(monkeypatch, version)
    found = {}
    for attention in ("sdpa", flash):
        model = model_with(attention, family)
        share_prefix(model)
        found[attention] = numbers(model)
    (expected, gradients), (logps, others) = found["sdpa"], found[flash]
    assert (logps - expected).abs().max() <= 3e-6
    assert (others - gradients).norm() <= 1e-4 * gradients.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_over_flash_attention_are_those_over_sdpa(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flash, given, tokens = flash_stand_in.install(monkeypatch, 2), prompts(GRIDS), {}
    inputs = {"input_ids": given.ids, "attention_mask": given.mask, "mm_token_type_ids": given.types}
    inputs |= {"pixel_values": given.pixel_values, "image_grid_thw": given.grid}
    for attention in ("sdpa", flash):
        model = model_with(attention, family).eval()
        share_prefix(model)
        with prefill_once(model, 3):
            tokens[attention] = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    assert torch.equal(tokens[flash], tokens["sdpa"])


def test_a_model_that_does_not_share_keeps_its_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    flash, given = flash_stand_in.install(monkeypatch, 2), prompts(GRIDS)
    inputs = {"input_ids": given.ids, "attention_mask": given.mask, "mm_token_type_ids": given.types}
    inputs |= {"pixel_values": given.pixel_values, "image_grid_thw": given.grid}
    other = model_with(flash, "qwen2_vl").eval()
    before = other(**inputs).logits
    sharing = model_with(flash, "qwen2_vl")
    share_prefix(sharing)
    wrapped = ALL_ATTENTION_FUNCTIONS[flash]
    share_prefix(sharing)
    share_prefix(other)
    assert ALL_ATTENTION_FUNCTIONS[flash] is wrapped  # wrapped once, however many models share
    assert torch.equal(other(**inputs).logits, before)
    assert sharing.config.get_text_config()._attn_implementation == flash


KERNELS = ["kernels-community/flash-attn2", "kernels-community/vllm-flash-attn3@v1"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_flash_attention_from_the_kernels_hub_is_refused_by_its_name(kernel: str) -> None:
    """transformers makes it of flash_attention_2 where `kernels` is there and flash_attn is not."""
    model = small_model("qwen2_vl")
    model.config.get_text_config()._attn_implementation_internal = kernel
    known = "sdpa, flash_attention_2, flash_attention_3"
    assert why_not(model) == f"the attention {kernel} is not one of {known}"
