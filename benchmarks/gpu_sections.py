"""The sections of `gpu.py` that look at one model: attention, windows, decoding, forward. Not a benchmark itself."""

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from random_model import REAL, config_of
from torch import Tensor
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from trl.trainer.utils import add_fused_lm_head

from perception_r1.evaluation.gpu import avoid_cudnn_attention
from perception_r1.evaluation.vision_windows import batch_windows
from perception_r1.training import rollouts
from perception_r1.training.precision import halve_linears
from perception_r1.training.rollouts import prefill_once
from perception_r1.training.shared_prefix import Packed, pack, share_prefix, shared_logps

GROUP = 8
IMAGE, START, END = 151655, 151652, 151653
"""Qwen2-VL's tokens of an image and around it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a section is told."""

    device: str
    small: bool
    folder: Path
    """Where models may be written."""
    say: Callable[..., None]
    """Prints a line, and keeps it."""

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of the picture's patches, about 1,000,000 pixels."""
        return (8, 10) if self.small else (70, 72)

    @property
    def answer(self) -> int:
        return 6 if self.small else 40

    @property
    def model(self) -> str:
        return "prototype" if self.small else "qwen2-vl-2b"

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16)




def synchronized() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def milliseconds(work: Callable[[], Any]) -> float:
    start = synchronized()
    work()
    return (synchronized() - start) * 1e3


def median_ms(work: Callable[[], Any], times: int = 5) -> float:
    """The median of `times`, after one that is not counted."""
    work()
    return statistics.median(milliseconds(work) for _ in range(times))


def peak_gib(work: Callable[[], Any]) -> float:
    """Memory that `work` takes above what was held, 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    work()
    synchronized()
    return (torch.cuda.max_memory_allocated() - held) / 2**30


def held_gib() -> float:
    return torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def real_shape(setting: Setting) -> Any:
    """The policy as a recipe loads it, with random weights, ready for packed rows."""
    marks = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
    small = {"image_token_id": 5, "vision_start_token_id": 3, "vision_end_token_id": 4}
    torch.manual_seed(0)
    with torch.device(setting.device):
        config: Any = config_of(setting.model, **(small if setting.small else marks))
        model: Any = Qwen2VLForConditionalGeneration(config)
    model.float().generation_config.update(eos_token_id=None, pad_token_id=0)
    model.config.get_text_config().eos_token_id = None
    share_prefix(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def question(model: Any, setting: Setting) -> dict[str, Tensor]:
    """A prompt with one picture and about twenty words, and a group of answers."""
    height, width = setting.patches
    config = model.config
    picture = [config.image_token_id] * (height * width // 4)
    words = list(range(20, 42))
    row = [config.vision_start_token_id, *picture, config.vision_end_token_id, *words]
    ids = torch.tensor([row], device=setting.device)
    volume = 3 * config.vision_config.temporal_patch_size * config.vision_config.patch_size**2
    return {
        "ids": ids,
        "types": (ids == config.image_token_id).int(),
        "pixel_values": torch.randn(height * width, volume, device=setting.device),
        "image_grid_thw": torch.tensor([[1, height, width]], device=setting.device),
        "answers": torch.randint(20, 1000, (1, GROUP, setting.answer), device=setting.device),
    }


def images_of(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: given[name] for name in ("pixel_values", "image_grid_thw")}


def packed_of(model: Any, given: dict[str, Tensor]) -> Packed:
    return pack(
        model,
        prompt_ids=given["ids"],
        prompt_mask=torch.ones_like(given["ids"]),
        completion_ids=given["answers"],
        completion_mask=torch.ones_like(given["answers"]),
        mm_token_type_ids=given["types"],
        image_grid_thw=given["image_grid_thw"],
    )


def attention(setting: Setting) -> None:
    if setting.device != "cuda":
        setting.say(skipped="needs a GPU")
        return
    for cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for prefix, suffix in ((1203, 39), (1217, 41), (1229, 44)):
            setting.say(cudnn=cudnn, prefix=prefix, suffix=suffix, **_attention_ms(prefix, suffix))


def _attention_ms(prefix: int, suffix: int) -> dict[str, float]:
    """Forward and backward of the two attentions of a packed row: the first of its shape, and the next."""
    drawn = partial(torch.randn, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    query, key, value = drawn(1, 12, prefix, 128), drawn(1, 2, prefix, 128), drawn(1, 2, prefix, 128)
    whole = prefix + suffix
    asked, keys, values = drawn(8, 12, suffix, 128), drawn(8, 12, whole, 128), drawn(8, 12, whole, 128)
    mask = torch.ones(1, 1, suffix, whole, dtype=torch.bool, device="cuda")
    attend = F.scaled_dot_product_attention

    def causal() -> None:
        attend(query, key, value, is_causal=True, enable_gqa=True).sum().backward()

    def masked() -> None:
        attend(asked, keys, values, attn_mask=mask).sum().backward()

    found = {}
    for name, work in (("prefix", causal), ("suffixes", masked)):
        found[f"{name}_first_ms"] = milliseconds(work)
        found[f"{name}_again_ms"] = median_ms(work)
    return found


@torch.no_grad()
def decoding(setting: Setting) -> None:
    avoid_cudnn_attention()
    model = real_shape(setting).eval()
    given = question(model, setting)
    tokens = {}
    for name, record in (("graph", rollouts.can_record), ("kernel by kernel", _never)):
        rollouts.can_record = record
        roll = partial(_rollouts, model, given, setting)
        few = median_ms(partial(roll, 4), 3)
        whole = median_ms(partial(roll, setting.answer), 3)
        peak = peak_gib(partial(roll, setting.answer))
        token = (whole - few) / (setting.answer - 4)
        tokens[name], logps = roll(setting.answer)
        with setting.autocast():
            packed = packed_of(model, given | {"answers": tokens[name][None]})
            apart = (shared_logps(model, packed, **images_of(given))[0][0] - logps).abs()
        found = {"whole_ms": whole, "token_ms": token, "peak_gib": peak}
        setting.say(decode=name, **found, mean_from_training=apart.mean().item())
    same = tokens["graph"] == tokens["kernel by kernel"]
    setting.say(share_of_equal_tokens=same.float().mean().item())


def _never(*_: Any) -> bool:
    return False


def _rollouts(model: Any, given: dict[str, Tensor], setting: Setting, count: int) -> tuple[Tensor, Tensor]:
    """`count` tokens of each answer (G, count), from the same random numbers, and their log-probabilities."""
    torch.manual_seed(0)
    config = GenerationConfig(max_new_tokens=count, do_sample=True, top_k=0, pad_token_id=0)
    settings = {"mm_token_type_ids": given["types"], "generation_config": config}
    pick, kept = rollouts._next_tokens, []

    def noted(scores: Tensor, *rest: Any) -> Tensor:
        tokens = pick(scores, *rest)
        kept.append(scores.log_softmax(-1).gather(1, tokens[:, None]))
        return tokens

    rollouts._next_tokens = noted
    with setting.autocast(), prefill_once(model, GROUP):
        ids = model.generate(given["ids"], **settings, **images_of(given))
    rollouts._next_tokens = pick
    return ids[:, given["ids"].shape[1] :], torch.cat(kept, 1)


def windows(setting: Setting) -> None:
    avoid_cudnn_attention()
    settings = json.loads((REAL / "qwen2_5_vl_3b_config.json").read_text())
    config: Any = Qwen2_5_VLConfig(**settings).vision_config
    config.depth = 2 if setting.small else config.depth
    config._attn_implementation = "sdpa"
    with torch.device(setting.device):
        tower: Any = Qwen2_5_VisionTransformerPretrainedModel(config)
    tower.to(torch.bfloat16)
    height, width = setting.patches
    pixels = torch.randn(height * width, 1176, device=setting.device, dtype=torch.bfloat16)
    grid = torch.tensor([[1, height, width]], device=setting.device)

    def encode() -> Tensor:
        with torch.no_grad():
            return tower(pixels, grid).pooler_output

    def train() -> None:
        tower(pixels, grid).pooler_output.sum().backward()

    loop = {"loop_ms": median_ms(encode, 3), "loop_backward_ms": median_ms(train, 3)}
    expected = encode().float()
    layers = batch_windows(tower)
    found = {"at_once_ms": median_ms(encode, 3), "at_once_backward_ms": median_ms(train, 3)}
    apart = ((encode() - expected).norm() / expected.norm()).item()
    setting.say(layers=layers, **loop, **found, relative_difference=apart)


def forward(setting: Setting) -> None:
    avoid_cudnn_attention()
    model = real_shape(setting).train()
    given = question(model, setting)
    parameters = sum(weights.numel() for weights in model.parameters())
    setting.say(parameters=parameters, prompt_tokens=given["ids"].shape[1], held_gib=held_gib())

    def logps() -> Tensor:
        with setting.autocast():
            return shared_logps(model, packed_of(model, given), **images_of(given))[0]

    def policy() -> None:
        model.zero_grad(set_to_none=True)
        logps().sum().backward()

    with torch.no_grad():
        encode = partial(model.model.get_image_features, *images_of(given).values())
        alone = median_ms(encode, 3)
        with setting.autocast():
            setting.say(vision_float32_ms=alone, vision_autocast_ms=median_ms(encode, 3))
        _reference(model, logps, setting)
    for checkpointing in (True, False):
        if checkpointing:
            model.gradient_checkpointing_enable()
        else:
            model.gradient_checkpointing_disable()
        found = {"policy_ms": median_ms(policy, 3), "peak_gib": peak_gib(policy)}
        setting.say(checkpointing=checkpointing, **found, **_kernels(policy, setting))


def _reference(model: Any, logps: Callable[[], Tensor], setting: Setting) -> None:
    """The frozen reference with its linear weights in float32, and in bfloat16 as ours holds them."""
    held, found = held_gib(), {"float32_ms": median_ms(logps, 3)}
    exact = logps()
    kept = {name: weights.data for name, weights in model.named_parameters()}
    halve_linears(model, torch.bfloat16)
    found |= {"half_ms": median_ms(logps, 3), "peak_gib": peak_gib(logps)}
    identical = torch.equal(logps(), exact)
    for name, weights in model.named_parameters():
        weights.data = kept.pop(name)
    setting.say(reference=found, identical=identical, held_gib=held)


def _kernels(work: Callable[[], Any], setting: Setting) -> dict[str, Any]:
    """How many kernels `work` launches, and those that take longest."""
    if setting.device != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        synchronized()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
    longest = [[event.key[:60], event.count, event.self_device_time_total / 1e3] for event in events[:6]]
    total = sum(event.self_device_time_total for event in events) / 1e3
    return {"kernels": sum(event.count for event in events), "kernel_ms": total, "longest": longest}
