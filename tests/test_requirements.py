"""What a run lacks is one line at once: before torch is imported, and long before a model is loaded."""

import ast
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

from perception_r1 import not_installed
from perception_r1.cli import EXTRA_OF, main
from perception_r1.records import BadData
from perception_r1.training import requirements
from perception_r1.training.requirements import OPTIMIZERS, TRACKERS, check_settings

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TORCH_FREE = """
import sys
for name in ("torch", "transformers", "trl", "accelerate"):
    sys.modules[name] = None
from perception_r1.cli import main
main(sys.argv[1:])
"""
"""Our command line where an import of torch would be an error of another kind."""

ABSENT = {
    "tracker": (
        ["--report_to", "wandb"],
        "report_to wandb: wandb is not installed: pip install wandb, or give --report_to none",
    ),
    "tracker=": (
        ["--report-to=mlflow"],
        "report_to mlflow: mlflow is not installed: pip install mlflow",
    ),
    "second of two": (
        ["--report_to", "none", "comet_ml"],
        "report_to comet_ml: comet_ml is not installed",
    ),
    "DeepSpeed": (
        ["--deepspeed", "zero3.json"],
        "deepspeed zero3.json: deepspeed is not installed: pip install -e '.[deepspeed]'",
    ),
    "8-bit Adam": (
        ["--optim", "adamw_bnb_8bit"],
        "optim adamw_bnb_8bit: bitsandbytes is not installed: pip install bitsandbytes",
    ),
    "its other name": (
        ["--optim", "adamw_8bit"],
        "optim adamw_8bit: bitsandbytes is not installed",
    ),
    "paged": (
        ["--optim", "paged_adamw_32bit"],
        "optim paged_adamw_32bit: bitsandbytes is not installed",
    ),
    "of torchao": (
        ["--optim", "adamw_torch_8bit"],
        "optim adamw_torch_8bit: torchao is not installed",
    ),
    "galore": (
        ["--optim", "galore_adamw_8bit"],
        "galore_torch is not installed: pip install galore-torch",
    ),
    "flash 2": (
        ["--attn_implementation", "flash_attention_2"],
        "attn_implementation flash_attention_2: flash_attn is not installed",
    ),
    "flash 3": (
        ["--attn_implementation", "flash_attention_3"],
        "flash_attn_interface is not installed",
    ),
    "a kernel": (
        ["--attn_implementation", "kernels-community/flash-attn2"],
        "kernels is not installed",
    ),
    "in kwargs": (
        ["--model_init_kwargs", '{"attn_implementation": "flash_attention_2"}'],
        "flash_attn is not installed",
    ),
    "liger": (["--use_liger_kernel"], "liger_kernel is not installed: pip install liger-kernel"),
    "no tracker": (
        ["--report_to", "wandbb"],
        "report_to: found 'wandbb', expected none, all or some of azure_ml",
    ),
    "eval_strategy": (
        ["--eval_strategy", "steps"],
        "eval_strategy steps: nothing is measured during training: name held-out samples",
    ),
    "eval_on_start": (["--eval_on_start", "true"], "eval_on_start true: nothing is measured"),
    "best model": (
        ["--load_best_model_at_end", "true"],
        "load_best_model_at_end true: nothing is measured",
    ),
    "model": (
        ["--model", "runs/nowhere/at-all"],
        "model runs/nowhere/at-all: found no such folder",
    ),
}


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has, the packages in question are absent."""
    asked = importlib.util.find_spec
    ours = {"perception_r1", "yaml", "numpy"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: asked(name) if name in ours else None
    )


@pytest.mark.parametrize(("words", "message"), ABSENT.values(), ids=ABSENT)
def test_what_is_absent_is_one_line_with_its_remedy(words: list[str], message: str) -> None:
    with pytest.raises(BadData) as told:
        check_settings("quickstart", words)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        "report_to: wandb",
        "report_to: [none, wandb]",
        "optim: lion_8bit",
        "deepspeed: z.json",
        "eval_strategy: epoch",
    ],
)
def test_a_recipe_file_is_looked_at_as_the_line_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"model: tiny\ndata: x.jsonl\n{text}\n")
    with pytest.raises(BadData, match=text.partition(":")[0]):
        check_settings(str(tmp_path / "mine.yaml"), [])
    overridden = {"report_to": "none", "optim": "sgd", "deepspeed": "", "eval_strategy": "no"}[
        text.partition(":")[0]
    ]
    check_settings(str(tmp_path / "mine.yaml"), [f"--{text.partition(':')[0]}={overridden}"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--report_to", "none"],
        ["--report_to", "all"],
        ["--optim", "adamw_torch_fused"],
        ["--optim", "adafactor"],
    ],
)
def test_what_needs_nothing_passes(words: list[str]) -> None:
    check_settings("quickstart", words)


def test_what_is_there_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "bitsandbytes", "flash_attn", "deepspeed"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    words = "--report_to wandb --optim adamw_8bit --attn_implementation flash_attention_2 --deepspeed z.json"
    check_settings("quickstart", words.split())


def test_a_launcher_that_asks_for_deepspeed_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(
        BadData, match="accelerate launch asks for DeepSpeed: deepspeed is not installed"
    ):
        check_settings("quickstart", [])


def test_every_tracker_and_optimizer_of_transformers_is_known() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.training_args import OptimizerNames

    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK)
    of_torch = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
    for name in (str(member.value) for member in OptimizerNames):
        assert any(part in name for part in OPTIMIZERS) != (name in of_torch), name


@pytest.mark.parametrize("command", ["grpo", "sft"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["countin"], "recipe 'countin' is not known: expected a YAML file or one of counting"),
        (
            ["nothing-like-it"],
            "recipe 'nothing-like-it' is not known: expected a YAML file or one of counting",
        ),
        (["quickstart", "--report_to", "wandbb"], "report_to: found 'wandbb'"),
        (["quickstart", "--model", "a/b/c"], "model a/b/c: found no such folder"),
    ],
)
def test_the_command_says_so_before_torch_is_imported(
    command: str, words: list[str], message: str, tmp_path: Path
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", TORCH_FREE, command, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: {message}")
    assert ran.stderr.count("\n") == 1
    assert ("did you mean counting?" in ran.stderr) == (words[0] == "countin")


def test_a_model_that_is_not_there_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    words = [
        "evaluate",
        "--model",
        "runs/nowhere/at-all",
        "--data",
        "scenes:counting?n=2",
        "-o",
        "x",
    ]
    ran = subprocess.run(
        [sys.executable, "-c", TORCH_FREE, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert (
        ran.stderr
        == "error: model runs/nowhere/at-all: found no such folder, expected a folder with config, weights and processor, or a hub id owner/name\n"
    )


# --- installing ------------------------------------------------------------------------------------------------------
def test_no_remedy_asks_pypi_for_us() -> None:
    for path in [
        *SOURCES,
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").glob("*.py"),
    ]:
        assert "perception-r1[" not in path.read_text(encoding="utf-8"), path


def test_the_remedy_of_every_extra_is_the_readmes() -> None:
    import tomllib

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(EXTRA_OF.values()) <= set(extras)
    assert "pip install -e '.[train,eval]' -c constraints.txt" in readme
    for extra in extras:
        assert "pip install -e '.[" in not_installed("x", extra)
    assert "constraints" not in not_installed("vLLM", "vllm")
    assert (
        not_installed("vLLM", "vllm")
        .partition(": ")[2]
        .partition(",  in")[0]
        .startswith("pip install -e '.[train,eval,vllm]'")
    )
    assert "pip install -e '.[train,eval,vllm]'" in readme


def test_a_missing_package_of_an_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "s.parquet").write_bytes(b"PAR1")
    with pytest.raises(SystemExit, match="1"):
        main(["check", "s.parquet"])
    assert capsys.readouterr().err.startswith(
        "error: pyarrow is not installed: pip install -e '.[data]' -c constraints.txt"
    )


# --- other systems ---------------------------------------------------------------------------------------------------
ONE_SYSTEM = {
    "fcntl",
    "resource",
    "termios",
    "pwd",
    "grp",
    "pty",
    "tty",
    "syslog",
    "posix",
    "msvcrt",
    "winreg",
    "nt",
}


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).partition(".")[0])
    return names


def test_no_module_is_imported_that_only_one_system_has() -> None:
    for path in SOURCES:
        found = imported(ast.parse(path.read_text(encoding="utf-8"))) & ONE_SYSTEM
        assert not found, path


def test_a_study_is_imported_without_fcntl() -> None:
    script = "import sys; sys.modules['fcntl'] = None; import perception_r1.study.run"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_nothing_that_is_looked_for_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(requirements, "installed", lambda name: looked.append(name) or True)
    before = set(sys.modules)
    check_settings("quickstart", ["--report_to", "wandb", "--optim", "lomo"])
    assert looked == ["wandb", "lomo_optim"]
    assert not {"wandb", "lomo_optim"} & (set(sys.modules) - before)
