"""The section of `gpu.py` that compares packed rows with TRL's rows. Not a benchmark itself."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_sections import Setting
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

sys.path.append(str(Path(__file__).parents[1]))
from tests.small_families import FAMILIES, completions, prompts, small_model

from perception_r1.training.shared_prefix import pack, share_prefix, shared_logps


def exactness(setting: Setting) -> None:
    for family in FAMILIES:
        model: Any = small_model(family, layers=3)
        share_prefix(model)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        model.to(setting.device)
        rows = _both_ways(model, setting)
        exact, exact_gradient = rows["stock", False]
        found = {}
        for (arm, half), (values, gradient) in rows.items():
            kind = "bfloat16" if half else "float32"
            found[f"{arm}_{kind}_logps"] = (values - exact).abs().max().item()
            distance = (gradient - exact_gradient).norm() / exact_gradient.norm()
            found[f"{arm}_{kind}_gradient"] = distance.item()
        setting.say(family=family, against="stock in float32", **found)


def _both_ways(model: Any, setting: Setting) -> dict[tuple[str, bool], tuple[Tensor, Tensor]]:
    """Log-probabilities and gradients by (arm, bfloat16)."""
    given = prompts([[(4, 6)], [(4, 4)]])
    answers, mask = completions(2, 3, 5)
    on = partial(torch.Tensor.to, device=setting.device)
    mask = on(mask)
    here = {"prompt_ids": given.ids, "prompt_mask": given.mask, "mm_token_type_ids": given.types}
    here |= {"completion_ids": answers, "image_grid_thw": given.grid}
    here = {name: on(value) for name, value in here.items()}
    ids = torch.cat([given.ids.repeat_interleave(3, 0), answers.flatten(0, 1)], 1)
    seen = torch.cat([given.mask.repeat_interleave(3, 0), mask.cpu().flatten(0, 1)], 1)
    labels = ids.masked_fill(seen == 0, -100)
    labels[:, : given.ids.shape[1]] = -100
    row_inputs = {"input_ids": ids, "attention_mask": seen, "labels": labels}
    row_inputs |= {"mm_token_type_ids": (ids == 5).int()} | given.rows(3)
    row_inputs = {name: on(value) for name, value in row_inputs.items()}

    def ours() -> Tensor:
        packed = pack(model, completion_mask=mask, **here)
        images = {"pixel_values": on(given.pixel_values), "image_grid_thw": here["image_grid_thw"]}
        return shared_logps(model, packed, **images)[0]

    def stock() -> Tensor:
        logps = model(**row_inputs, fused_lm_head=True).log_probs[:, -answers.shape[2] :]
        return logps.unflatten(0, (2, 3))

    found = {}
    for name, work in (("ours", ours), ("stock", stock)):
        for half in (False, True):
            model.zero_grad()
            with torch.autocast(setting.device, torch.bfloat16, enabled=half):
                logps = work() * mask
            weights = torch.linspace(-1, 1, logps.shape[2], device=setting.device)
            (logps * weights).sum().backward()
            parts = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
            found[name, half] = (logps.detach(), torch.cat(parts))
    return found
