"""What PyTorch is told once, before a model runs on a GPU."""

import torch


def avoid_cudnn_attention() -> None:
    """Leaves attention to PyTorch's own kernels (flash, memory-efficient), which is where cuDNN's would come first.

    cuDNN makes a plan for each new length, which takes 0.1 to 3 s (seen on an H100), and a plan a token in decoding; pictures of
    all sizes bring a new length to nearly every step. docs/decisions/0014-on-a-gpu.md has the figures, and what it costs.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
