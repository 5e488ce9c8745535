"""Every block of README.md and docs/ runs as it is printed, in order, in a folder that has what the document says its reader has.

A real model is a small random one, published data are small and local, and a training takes a step (tests/printed_commands.py).
What is not run says why in the document: `<!-- not run: reason -->`.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.chat_server import Act, said, serving
from tests.conftest import DATA
from tests.printed_commands import blocks, programs
from tests.printed_place import TRAINED, lay_out

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAPER = ROOT / "src" / "perception_r1" / "recipes" / "data" / "paper.yaml"
ANSWER = '[{"bbox_2d": [100, 100, 300, 300], "label": "dog"}]'
SHELL = "bash"
READ_ELSEWHERE = {"python", "text", "bibtex"}
"""Examples of Python run as doctests, or are part of a script that runs (tests/test_docs.py)."""
MADE = {
    "README.md": [
        "data/train.jsonl",
        "pictures.html",
        "runs/counting/model.safetensors",
        "comparison.html",
    ],
    "evaluation.md": [
        "runs/counting/general/general.json",
        "comparison.html",
        "refcoco.html",
        "coco.html",
    ],
    "data.md": ["refcoco_train.jsonl", "coco_counting.jsonl", "fox_zh.jsonl", "data/manifest.json"],
    "task.md": ["data/difficulty.jsonl", "runs/curriculum/model.safetensors"],
    "studies.md": ["runs/study/matching/table.md"],
}
"""What a document's commands leave, by document."""
BEFORE = {
    "evaluation.md": "perception-r1 evaluate --model Qwen/Qwen2-VL-2B-Instruct --data data/val.jsonl -o runs/base\n"
}
"""What a document takes as done, by document: the README's commands."""


def shell_blocks(path: Path) -> list[tuple[int, str, str]]:
    return [
        (line, content, reason)
        for line, language, content, reason in blocks(path.read_text(encoding="utf-8"))
        if language == SHELL
    ]


WITH_COMMANDS = [path for path in DOCUMENTS if shell_blocks(path)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random policy that stands for every model that a document names."""
    small = pytest.importorskip("tests.small_runs")
    folder = tmp_path_factory.mktemp("policy")
    small.save_policy(folder)
    (folder / "perception_r1.json").write_text(
        '{"task": "counting", "dialect": "qwen3-vl", "thinking": false}'
    )
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("printed")
    recipe = folder / "paper.yaml"
    recipe.write_text(re.sub(r"sample: \d+k", "sample: 2", PAPER.read_text(encoding="utf-8")))
    with (
        serving(lambda body, before: Act(body=said(ANSWER)), models=("m",)) as heard,
        programs(folder, heard.url, recipe) as made,
    ):
        yield made


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: path.name)
def test_every_command_of_a_document_runs_as_it_is_printed(
    path: Path, policy: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    place, own = tmp_path / "checkout", set(MADE.get(path.name, ()))
    place.mkdir()
    makes_its_own = tuple(
        name for name in TRAINED if any(made.startswith(f"{name}/model") for made in own)
    )
    lay_out(
        place, policy, DATA, trained=tuple(name for name in TRAINED if name not in makes_its_own)
    )
    skipped = []
    before = [(0, BEFORE[path.name], "")] if path.name in BEFORE else []
    for line, content, reason in [*before, *shell_blocks(path)]:
        if reason:
            continue
        if "../shared/data" in content and not DATA.is_dir():
            skipped.append(line)
            continue
        ran = subprocess.run(
            ["bash", "-euc", content],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=600,
        )
        assert ran.returncode == 0, (
            f"{path.name}:{line}\n{content}\n{ran.stdout[-2000:]}\n{ran.stderr[-3000:]}"
        )
    missing = [name for name in own if not (place / name).exists()]
    assert not missing
    if skipped:
        pytest.skip(
            f"real data not found in {DATA}: set PERCEPTION_R1_DATA; not run: blocks of lines {skipped}"
        )


def test_a_block_that_is_not_run_says_why_and_few_are_not() -> None:
    reasons = [reason for path in WITH_COMMANDS for _, _, reason in shell_blocks(path) if reason]
    assert all(len(reason.split()) > 3 for reason in reasons)
    assert len(reasons) <= 2


def test_every_kind_of_block_is_tried_somewhere() -> None:
    languages = {
        language
        for path in DOCUMENTS
        for _, language, _, _ in blocks(path.read_text(encoding="utf-8"))
    }
    assert languages <= READ_ELSEWHERE | {SHELL, "yaml"}


def test_the_yaml_of_a_study_and_of_its_domains_is_read(tmp_path: Path) -> None:
    from perception_r1.study.grid import read_domains, read_study

    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    domains, study = (content for _, language, content, _ in blocks(text) if language == "yaml")
    for name, content in (("domains", domains), ("study", study)):
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
        assert yaml.safe_load(content)
    assert list(read_domains(str(tmp_path / "domains.yaml"))) == ["counting"]
    assert len(read_study(str(tmp_path / "study.yaml")).arms) == 3


def test_the_test_can_fail(policy: Path, environment: dict[str, str], tmp_path: Path) -> None:
    for content in (
        "perception-r1 grpo countin\n",
        "pip install -e '.[trian]'\n",
        "wget http://example.org/x.zip\n",
    ):
        ran = subprocess.run(
            ["bash", "-euc", content], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ran.returncode != 0, content
