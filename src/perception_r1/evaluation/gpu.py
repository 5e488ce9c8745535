"""What PyTorch is told once, before a model runs on a GPU."""

import torch


def avoid_cudnn_attention() -> None:
    """Leaves attention to PyTorch's own kernels (flash, memory-efficient), which is where cuDNN's would come first.

    cuDNN makes a plan for each new length: seen on an H100, 0.12 s for a causal prompt and 2.4 s for the masked suffixes of a
    group, forward and backward, and a plan a token in decoding; pictures of all sizes bring a new length in nearly every step.
    Its kernels were not faster there either (`benchmarks/gpu.py --only attention`).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
