"""Models that bring code, or files that would run some when loaded, or that are broken: one line, no question, nothing run."""

import builtins
import importlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from perception_r1.cli import main
from perception_r1.evaluation.asking import load_backend
from perception_r1.evaluation.backends import TransformersBackend
from perception_r1.evaluation.checkpoint import known_config, loaded
from perception_r1.evaluation.general import run_general
from perception_r1.evaluation.model_files import check_model_folder
from perception_r1.evaluation.stored_tensors import check_checkpoint, check_pickles, check_weights
from perception_r1.policy import WEIGHTS, tiny
from perception_r1.records import BadData
from perception_r1.training import grpo, sft


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_untrained(folder)
    return folder


@pytest.fixture
def model(untrained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(untrained, tmp_path / "model")


@pytest.fixture(autouse=True)
def _never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked anything on the terminal."""

    def asked(prompt: str = "") -> str:
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr(builtins, "input", asked)


def declare(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def custom_config(model: Path) -> None:
    declare(
        model / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"},
    )


def custom_head(model: Path) -> None:
    """A config that transformers knows, of a model that it has for no pictures, with a class of its own for them."""
    declare(
        model / "config.json",
        model_type="llama",
        auto_map={"AutoModelForImageTextToText": "own.Model"},
    )


def custom_processor(model: Path) -> None:
    declare(
        model / "processor_config.json",
        processor_class="Own",
        auto_map={"AutoProcessor": "own.Processor"},
    )


def custom_part(model: Path) -> None:
    config = json.loads((model / "processor_config.json").read_text())
    config["image_processor"] |= {
        "image_processor_type": "Own",
        "auto_map": {"AutoImageProcessor": "own.Images"},
    }
    (model / "processor_config.json").write_text(json.dumps(config))


def custom_tokenizer(model: Path) -> None:
    declare(
        model / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": ["own.Tokenizer", None]},
    )


CUSTOM = [custom_config, custom_head, custom_processor, custom_part, custom_tokenizer]


def loading(model: Path, tmp_path: Path) -> dict[str, Callable[[], Any]]:
    """Every way in which a model folder is loaded."""
    run = [
        "--model",
        str(model),
        "--data",
        "scenes:ocr?n=4",
        "--use_cpu",
        "true",
        "--output_dir",
        str(tmp_path / "run"),
        "--max_steps",
        "1",
    ]
    return {
        "evaluate": lambda: TransformersBackend(model, device="cpu"),
        "probe": lambda: load_backend(model, [], device="cpu"),
        "grpo": lambda: grpo.run("quickstart", [*run, "--eval_data", "", "--task", "ocr"]),
        "sft": lambda: sft.run("tiny-sft", [*run, "--task", "ocr"]),
        "a dialect named": lambda: grpo.run(
            "quickstart", [*run, "--eval_data", "", "--dialect", "qwen3-vl", "--task", "ocr"]
        ),
    }


@pytest.mark.parametrize("way", ["evaluate", "probe", "grpo", "sft", "a dialect named"])
@pytest.mark.parametrize("custom", CUSTOM)
def test_code_that_comes_with_a_model_is_refused_in_one_line(
    custom: Callable, way: str, model: Path, tmp_path: Path
) -> None:
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    custom(model)
    with pytest.raises(
        BadData,
        match=r"config\.json: found auto_map, which names code that comes with the model .*never run",
    ) as told:
        loading(model, tmp_path)[way]()
    assert "\n" not in str(told.value)
    assert not (tmp_path / "ran").exists()


def test_a_hub_model_that_needs_code_of_its_own_is_refused_in_one_line(model: Path) -> None:
    """What transformers says where it may not ask; a hub's folder is not looked at beforehand."""
    custom_config(model)
    with pytest.raises(BadData, match="needs code that comes with it, which is never run") as told:
        known_config(str(model))
    assert "\n" not in str(told.value)


def test_a_model_without_pictures_is_refused_before_its_weights_are_read(model: Path) -> None:
    declare(model / "config.json", model_type="llama")
    with pytest.raises(
        BadData, match="found model_type 'llama', expected a model of images and text"
    ):
        TransformersBackend(model, device="cpu")


def test_lmms_eval_has_nobody_to_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import subprocess

    given: dict[str, Any] = {}

    def run(command: Any, **options: Any) -> Any:
        given.update(options)
        return subprocess.CompletedProcess(command, 1, "0.7.3")

    monkeypatch.setattr(
        "perception_r1.evaluation.general.find_program", lambda python: (["lmms"], "0.7.3")
    )
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(BadData, match="lmms-eval ended with exit code 1"):
        run_general("mmstar", "tiny", tmp_path)
    assert given["stdin"] == subprocess.DEVNULL


# --- files of tensors ------------------------------------------------------------------------------------------------
class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def unsafe(path: Path, mark: Path) -> None:
    torch.save({"x": Evil(mark)}, path)


def old_unsafe(path: Path, mark: Path) -> None:
    torch.save({"x": Evil(mark)}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(mark)))


def cut_off(path: Path, mark: Path) -> None:
    torch.save({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:700])


def garbage(path: Path, mark: Path) -> None:
    path.write_bytes(b"broken bytes" * 50)


def nothing(path: Path, mark: Path) -> None:
    path.write_bytes(b"")


BAD = [unsafe, old_unsafe, bare_pickle, cut_off, garbage, nothing]


@pytest.mark.parametrize("write", BAD)
@pytest.mark.parametrize("way", ["evaluate", "grpo"])
def test_weights_that_are_unsafe_or_broken_are_refused_in_one_line(
    write: Callable, way: str, model: Path, tmp_path: Path
) -> None:
    (model / "model.safetensors").unlink()
    write(model / "pytorch_model.bin", tmp_path / "ran")
    with pytest.raises(BadData, match=r"pytorch_model\.bin: (refused|found a broken file)") as told:
        loading(model, tmp_path)[way]()
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 450
    assert not (tmp_path / "ran").exists()


def test_good_weights_of_torch_load(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    assert TransformersBackend(model, device="cpu").model_type == "qwen3_vl"


def test_weights_that_are_not_read_are_not_looked_at(model: Path, tmp_path: Path) -> None:
    unsafe(model / "pytorch_model.bin", tmp_path / "ran")
    check_weights(model)


def test_broken_safetensors_are_named(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_bytes(b"broken" * 9)
    for way in ("evaluate", "grpo"):
        with pytest.raises(BadData, match=r"model\.safetensors could not be loaded: found a broken file"):
            loading(model, tmp_path)[way]()


def run_words(untrained: Path, output: Path, *more: str) -> list[str]:
    words = "--task ocr --data scenes:ocr?n=8&seed=3 --max_completion_length 4 --per_device_train_batch_size 4 --num_generations 4"
    words += " --max_steps 1 --save_steps 1 --learning_rate 1e-3"
    return [
        "--model",
        str(untrained),
        *words.split(),
        "--eval_data",
        "",
        "--output_dir",
        str(output),
        *more,
    ]


@pytest.fixture(scope="module")
def stopped(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grpo.run("quickstart", run_words(untrained, tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "stopped")


def test_a_checkpoint_that_is_whole_passes(stopped: Path) -> None:
    check_checkpoint(stopped / "checkpoint-1")
    assert {path.name for path in (stopped / "checkpoint-1").glob("*.pt*")} >= {
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    }


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("write", BAD)
def test_a_state_that_is_unsafe_or_broken_is_refused_on_resume(
    write: Callable,
    name: str,
    untrained: Path,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(run / "checkpoint-1" / name, tmp_path / "ran")
    with pytest.raises(BadData, match=rf"{name}: (refused|found a broken file)") as told:
        grpo.run("quickstart", run_words(untrained, run, "--resume", "true", "--max_steps", "2"))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", b"cut"), ("trainer_state.json", b'{"global_step": 1')],
)
def test_a_checkpoint_with_a_broken_file_is_refused_on_resume(
    name: str, content: bytes, untrained: Path, run: Path
) -> None:
    (run / "checkpoint-1" / name).write_bytes(content)
    with pytest.raises(BadData, match=name):
        grpo.run("quickstart", run_words(untrained, run, "--resume", "true", "--max_steps", "2"))


def test_what_torch_refuses_of_a_hub_model_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unsafe(tmp_path / "x.bin", tmp_path / "ran")
    with pytest.raises(BadData, match="refused, since loading its weights could run code"):
        loaded("some/model", lambda: torch.load(tmp_path / "x.bin", weights_only=True))
    # by its name, as the command line imports it: another test may have had the package loaded anew
    module = importlib.import_module("perception_r1.training.grpo")
    monkeypatch.setattr(module, "run", lambda *_: torch.load(tmp_path / "x.bin", weights_only=True))
    with pytest.raises(SystemExit, match="1"):
        main(["grpo", "quickstart"])
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_numbers_are_not_read_to_check_them(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(3, 1000)}, tmp_path / "a.pt")
    torch.save({"x": torch.zeros(3, 1000)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    check_pickles([tmp_path / "a.pt", tmp_path / "b.pt"])


def test_a_folder_of_the_bundled_policy_passes() -> None:
    from perception_r1.policy import WEIGHTS

    check_model_folder(WEIGHTS)
    check_weights(WEIGHTS)


@pytest.mark.parametrize("name", ["./nope", "../nope", "here/nope", "/nope", "~/nope"])
def test_a_mistyped_folder_is_not_asked_of_a_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(BadData, match="found no such folder, expected a folder with config, weights and processor"):
        check_model_folder(name)
    check_model_folder("owner/nope")  # may be a hub's


def test_weights_of_another_config_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadData, match="found weights of other sizes than config.json says: expected the config and"):
        TransformersBackend(folder, device="cpu")


def test_what_has_been_said_is_not_said_twice() -> None:
    def refuse() -> None:
        raise BadData("adapter x: expected adapter_model.safetensors, found none")

    with pytest.raises(BadData) as told:
        loaded("x on y", refuse)
    assert str(told.value) == "adapter x: expected adapter_model.safetensors, found none"
