"""What a GPU run is told, seen without one: PyTorch's switches are there on a CPU too."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.small_runs import make_trainer, save_policy

from perception_r1.evaluation.backends import TransformersBackend


@pytest.fixture(autouse=True)
def cudnn() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("share", ["on", "off"])
def test_training_leaves_attention_to_pytorchs_kernels(tmp_path: Path, share: str) -> None:
    save_policy(tmp_path)
    make_trainer(tmp_path, tmp_path, given={"share": share})
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


def test_evaluation_does_too() -> None:
    TransformersBackend("tiny", device="cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
