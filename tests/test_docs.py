"""The documents say what is there: links, the tree, tables, commands, and examples that run."""

import ast
import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from perception_r1.cli import app, main
from perception_r1.dialects import DIALECTS, dialect_named, frame_of
from perception_r1.records import Sample, Truth
from perception_r1.study.table import HOW
from perception_r1.tasks import TASKS, make_task

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "perception_r1"
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
TASK = (ROOT / "docs" / "task.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands(text: str) -> list[str]:
    """Every command line of ours in the bash blocks of a document, as `perception-r1 …`."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    launched = [re.sub(r"^accelerate launch .*-m perception_r1\.cli", "perception-r1", line) for line in lines]
    return [line for line in launched if line.startswith("perception-r1 ")]


def test_every_relative_link_leads_somewhere() -> None:
    links = [
        (path, link.partition("#")[0])
        for path in DOCUMENTS
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:|#", link)
    ]
    assert len(links) > 5
    broken = [f"{path.name}: {link}" for path, link in links if not (path.parent / link).exists()]
    assert not broken


def tree() -> dict[str, str]:
    """Path → comment of the README's tree, folders with a `/` at the end."""
    found, folders = {}, []
    for line in blocks(section(README, "The repository"), "text")[0].splitlines():
        name, _, comment = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        found["".join(folders) + name] = comment.strip()
        if name.endswith("/"):
            folders.append(name)
    return found


def test_the_tree_names_every_file_of_the_package_and_no_other() -> None:
    told = {path.removeprefix("src/perception_r1/") for path in tree() if path.startswith("src/perception_r1/") and not path.endswith("/")}
    there = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and PACKAGE / "policy" / "weights" not in path.parents
    }
    assert told == there


def test_the_tree_names_every_file_and_folder_at_the_top_with_a_comment() -> None:
    told = tree()
    assert all(comment for path, comment in told.items() if not path.endswith(("__init__.py", "/")))
    missing = [path for path in told if not path.startswith("src/") and not (ROOT / path).exists()]
    assert not missing


def test_the_table_of_tasks_is_the_book() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section(README, "Tasks"), re.MULTILINE))
    assert list(rows) == list(TASKS)
    for name, row in rows.items():
        task = make_task(name)
        sample = Sample(id="", task=name, image="", width=1, height=1, query="{query}", categories=("{categories}",), truth=Truth(text=""))
        assert row == f"`{task.prompt(sample)}` | {' + '.join(f'`{term}`' for term in task.TERMS)} | `{task.MAIN_METRIC}`"


def test_the_table_of_dialects_shows_what_each_writes() -> None:
    rows = dict(re.findall(r"^\| `([\w.-]+)` \| `([^`]*)`.* \|$", section(README, "Score the answers of any model"), re.MULTILINE))
    assert list(rows) == list(DIALECTS)
    box = Truth(boxes=[[160, 120, 480, 360]], labels=("dog",))  # type: ignore[arg-type]
    for name, text in rows.items():
        dialect = dialect_named(name)
        assert text.replace("\\|", "|") == dialect.write(box.boxes, box.labels, frame_of(640, 480, dialect))


def test_the_table_of_recipes_is_the_folder() -> None:
    column = re.findall(r"^\| (`[^|]*`) \| .* \|$", section(README, "Recipes and ablations"), re.MULTILINE)
    told = {name for cell in column for name in re.findall(r"`([\w-]+)`", cell)}
    assert told == {path.stem for path in (PACKAGE / "recipes").glob("*.yaml")}


def test_the_table_of_recipe_keys_is_the_dataclass() -> None:
    module = ast.parse((PACKAGE / "training" / "recipe.py").read_text(encoding="utf-8"))
    ours = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "RecipeArguments")
    fields = [node.target.id for node in ours.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    assert re.findall(r"^\| `(\w+)` \|", section(TASK, "Recipe keys"), re.MULTILINE) == fields


def test_every_reader_has_its_commands_in_the_data_document() -> None:
    told = {line.split()[2] for line in commands(DATA) if line.split()[1] == "data"}
    assert told == set(get_command(app).commands["data"].commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", commands(README) + commands(DATA) + commands(EVALUATION))
def test_every_command_of_the_readme_and_the_documents_parses(line: str) -> None:
    command, words = get_command(app), shlex.split(line)[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    with command.make_context(line, list(words)) as context:
        assert context.command is command
    if command.name in ("grpo", "sft"):
        recipe = pytest.importorskip("perception_r1.training.recipe")
        trl = pytest.importorskip("trl")
        config = trl.GRPOConfig if command.name == "grpo" else trl.SFTConfig
        recipe.load_recipe(words[0], [*words[1:], "--use_cpu", "true", "--bf16", "false"], config)


def test_the_evaluation_document_declares_every_published_set_and_no_other() -> None:
    from perception_r1.evaluation.tables import PUBLISHED_SIZES

    rows = dict(re.findall(r"^\| ((?:`[\w+]+` ?)+)\| (.*) \|$", section(EVALUATION, "The report"), re.MULTILINE))
    told = {}
    for names, sizes in rows.items():
        numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", sizes)]
        told |= dict(zip(re.findall(r"`([^`]+)`", names), numbers or [None, None], strict=True))
    assert told == PUBLISHED_SIZES
    declared = {name for line in commands(EVALUATION) for name in re.findall(r"--as (?:[\w/]+=)?([\w+]+)", line)}
    assert declared <= set(PUBLISHED_SIZES)


def test_the_readme_shows_the_commands_that_it_promises() -> None:
    told = {line.split()[1] for line in commands(README)}
    assert {"score", "evaluate", "data", "check", "grpo", "report", "show"} <= told


def test_every_make_word_of_the_documents_is_a_target() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = {word for path in DOCUMENTS for word in re.findall(r"`(?:\w+=\w+ )?make ([a-z]+)", path.read_text(encoding="utf-8"))}
    assert {"quickstart", "test", "check"} <= told <= targets


def test_the_scoring_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    part = section(README, "Score the answers of any model")
    command = tmp_path / "bin" / "perception-r1"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m perception_r1.cli "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    environment |= {"PYTHONUTF8": "1", "COLUMNS": "80"}
    script = blocks(part, "bash")[0]
    ran = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert ran.returncode == 0, ran.stderr
    printed = [line.rstrip() for line in ran.stdout.splitlines()]
    assert printed == blocks(part, "text")[0].splitlines()
    assert (tmp_path / "evaluation" / "metrics.json").is_file()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_python_example_of_a_document_runs(path: Path) -> None:
    failed, _ = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert failed == 0


def test_the_worked_example_is_the_script_that_runs() -> None:
    script = (ROOT / "examples" / "new_task.py").read_text(encoding="utf-8")
    assert len(blocks(TASK, "python")) == 1
    assert blocks(TASK, "python")[0] in script


@pytest.mark.parametrize("words", re.findall(r"^### `perception-r1 study (.*)`$", RESULTS, re.MULTILINE))
def test_tables_and_plots_of_the_studies_are_what_their_command_makes_of_the_kept_runs(words: str, tmp_path: Path) -> None:
    kept, name = ROOT / "docs" / "measured" / "study", words.split()[0]
    (tmp_path / "runs").symlink_to(kept / "runs")
    with pytest.raises(SystemExit, match="0"):
        main(["study", *shlex.split(words), "--max-runs", "0", "-o", str(tmp_path)])
    table = (tmp_path / name / "table.md").read_text(encoding="utf-8").partition(HOW)[0]
    assert table.count("\n| ") > 2
    assert table.strip() in RESULTS
    for file in ("table.md", "table.json", "plot.svg"):
        assert (tmp_path / name / file).read_text(encoding="utf-8") == (kept / name / file).read_text(encoding="utf-8")


def test_the_documents_are_plain_about_where_they_were_written() -> None:
    for path in [*DOCUMENTS, *(ROOT / "examples").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w./])/(?:work|home|root|tmp)/", text), path
