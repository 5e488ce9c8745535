"""What a real vLLM needs on a machine without a GPU; on a GPU nothing is changed.

All of it is here. `prepare()` comes before any other import.

- torchvision from the package index is a CUDA build, whose operators do not load beside vLLM's
  torch for the CPU, and importing it fails on the first that it looks up: two are declared, and
  never called.
- vLLM looks at a model's class in a process of its own, which knows nothing of that: it looks here.
- vLLM packs linear weights when it loads them and drops the originals, so TRL's sync of weights
  would find nothing to write to: they are kept, and torch's own linear layer uses them.
- Nothing is compiled, so that it starts at once. TRL states no dtype, for which vLLM halves
  float32: it is kept, since two engines can be compared in it.
"""

import os
from typing import Any

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, where the patches are
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; by default it would take most of the memory
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the machine is shared
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}

KEPT: list[Any] = []
"""What is declared lives as long as its library does."""


def prepare() -> None:
    """Makes vLLM run here, and TRL's colocate mode with it."""
    import torch

    if torch.cuda.is_available():
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    _declare_operators()
    _inspect_here()
    _keep_weights()
    _run_plainly()


def _declare_operators() -> None:
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)


def _inspect_here() -> None:
    import vllm.model_executor.models.registry as registry  # pyright: ignore[reportMissingImports]

    registry._run_in_subprocess = lambda inspect: inspect()


def _keep_weights() -> None:
    import torch
    import vllm.model_executor.layers.utils as layers  # pyright: ignore[reportMissingImports]

    def keep(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    layers.dispatch_cpu_unquantized_gemm = keep


def _run_plainly() -> None:
    import trl.generation.vllm_generation as theirs
    import vllm  # pyright: ignore[reportMissingImports]

    class Plain(vllm.LLM):
        def __init__(self, *words: Any, **settings: Any) -> None:
            super().__init__(*words, **{"dtype": "float32", **settings}, enforce_eager=True)

    vllm.LLM = theirs.LLM = Plain  # type: ignore[attr-defined]
