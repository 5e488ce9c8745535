"""`torch_compile` works with a run's settings, or is refused in one line before anything is loaded."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor import cpp_builder, exc

from perception_r1.cli import main
from perception_r1.records import BadData
from perception_r1.training.compiling import check_compile


def asked(backend: str = "inductor", mode: str | None = None, device: str = "cpu") -> Any:
    """What transformers makes of `--torch_compile true`."""
    words = {"torch_compile_backend": backend, "torch_compile_mode": mode}
    return SimpleNamespace(torch_compile=True, device=torch.device(device), **words)


def refusal(args: Any) -> str:
    with pytest.raises(BadData) as found:
        check_compile(args)
    return str(found.value)


def no_compiler() -> str:
    raise exc.InvalidCxxCompiler


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_what_makes_no_machine_code_needs_no_compiler(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", no_compiler)
    check_compile(asked(backend))


def test_an_unknown_backend_or_mode_is_named_with_those_there_are() -> None:
    words = refusal(asked("indcutor"))
    assert words.startswith("torch_compile_backend: found 'indcutor', expected one of aot_eager, ")
    assert "inductor" in words
    words = refusal(asked(mode="fast"))
    assert words.startswith("torch_compile_mode: found 'fast', expected one of default, ")


def test_a_backend_of_a_package_that_is_not_there_is_refused_too() -> None:
    assert refusal(asked("tensorrt")).startswith("torch_compile_backend: found 'tensorrt'")


def test_without_a_compiler_the_default_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", no_compiler)
    assert refusal(asked()) == (
        "torch_compile: no C++ compiler (g++) was found, which the backend inductor needs on cpu: "
        "install it, or leave torch_compile out"
    )


def test_on_a_gpu_it_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    for works in (True, False):
        monkeypatch.setattr("torch.utils._triton.has_triton", lambda works=works: works)
        if works:
            check_compile(asked(device="cuda"))
        else:
            assert "no Triton that works was found" in refusal(asked(device="cuda"))


@pytest.mark.parametrize("command", [["grpo", "tiny-grpo"], ["sft", "tiny-sft"]], ids=" ".join)
def test_the_commands_say_it_in_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--torch_compile", "true", "--torch_compile_backend", "foo"])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if "found 'foo', expected one of" in line] == lines[-1:]
    assert "Traceback" not in "".join(lines)
