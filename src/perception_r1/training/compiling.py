"""What `torch_compile` needs, checked before anything is loaded."""

from typing import Any

import torch
from accelerate.utils import DynamoBackend

from ..records import BadData

INDUCTOR = "inductor"
"""torch.compile's own backend, the only one that makes machine code of its own."""


def check_compile(args: Any) -> None:
    """Raises BadData where `torch_compile` cannot work as transformers' TrainingArguments ask."""
    if not args.torch_compile:
        return
    _check_known("torch_compile_backend", args.torch_compile_backend, _backends())
    if args.torch_compile_backend != INDUCTOR:
        return
    if args.torch_compile_mode is not None:
        modes = torch._inductor.list_mode_options()
        _check_known("torch_compile_mode", args.torch_compile_mode, list(modes))
    if missing := _missing(args.device):
        raise BadData(
            f"torch_compile: {missing}, which the backend inductor needs on {args.device.type}: "
            "install it, or leave torch_compile out"
        )


def _backends() -> list[str]:
    """What accelerate can pass on, where torch has it here."""
    here = torch.compiler.list_backends(None)
    names = [backend.value.lower() for backend in DynamoBackend]
    return [name for name in names if name in here]


def _check_known(key: str, found: str, known: list[str]) -> None:
    if found not in known:
        raise BadData(f"{key}: found {found!r}, expected one of {', '.join(sorted(known))}")


def _missing(device: torch.device) -> str | None:
    """The compiler that inductor lacks for a device, in words."""
    from torch._inductor import cpp_builder, exc
    from torch.utils._triton import has_triton

    if device.type == "cuda":
        return None if has_triton() else "no Triton that works was found"
    if device.type != "cpu":
        return None
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "no C++ compiler (g++) was found"
    return None
