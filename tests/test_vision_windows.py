"""All windows in one call of attention are the loop's numbers."""

import pytest
import torch
from tests.small_families import FAMILIES, small_model
from torch import Tensor

from perception_r1.evaluation.vision_windows import batch_windows

GRIDS = {"one picture": [(8, 12)], "odd edges": [(6, 10)], "several": [(8, 12), (6, 10), (4, 4)], "unequal": [(2, 2), (16, 16)]}


def encoded(model: torch.nn.Module, grids: list[tuple[int, int]]) -> tuple[Tensor, list[Tensor]]:
    """What the tower makes of random patches, and the gradients of its weights."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.tensor([(1, *sizes) for sizes in grids])
    pixels = torch.randn(int(grid.prod(1).sum()), 96, generator=generator, dtype=torch.float64)
    model.zero_grad()
    found = model.model.visual(pixels, grid_thw=grid).pooler_output
    (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
    return found.detach(), [weights.grad.clone() for weights in model.model.visual.parameters() if weights.grad is not None]


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
def test_windows_at_once_are_the_loop(grids: list[tuple[int, int]]) -> None:
    model = small_model("qwen2_5_vl").double()
    expected, gradients = encoded(model, grids)
    assert batch_windows(model) == 2
    found, others = encoded(model, grids)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert all(torch.allclose(mine, theirs, rtol=0, atol=1e-10) for mine, theirs in zip(others, gradients, strict=True))


def test_a_layer_with_windows_is_one_call_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, attend = [], torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Tensor, **kwargs: object) -> Tensor:
        calls.append(len(args[0]))
        return attend(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    model = small_model("qwen2_5_vl").double()
    encoded(model, [(8, 12)])
    loop = len(calls)
    calls.clear()
    batch_windows(model)
    encoded(model, [(8, 12)])
    assert len(calls) == 2 < loop
    assert max(calls) == loop - 1  # the windows of the one layer that has them; the other looks everywhere


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen2_5_vl"])
def test_families_without_windows_are_left_alone(family: str) -> None:
    assert batch_windows(small_model(family)) == 0
