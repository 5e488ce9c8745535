"""General understanding (MMStar, MMBench, AI2D, …): lmms-eval's benchmarks, run by lmms-eval as a process in an environment of its own.

Nothing of them is rebuilt here. The figures are lmms-eval's, folded into `general.json`: `{benchmark: {metric: value}}`, which a
report shows; `general-run.json` says of which weights they are and what was called; lmms-eval's own output lies in `general/`.
"""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data.samples import replacing
from ..policy import model_folder
from ..records import BadData
from .adapters import is_adapter, merge_remedy
from .asking import folder_revision

ENVIRONMENT = ".venv-general"
INSTALL = f"python -m venv {ENVIRONMENT} && {ENVIRONMENT}/bin/pip install lmms-eval decord, then give --general-python {ENVIRONMENT}/bin/python"
KINDS = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl", "qwen3_vl_moe": "qwen3_vl"}
"""lmms-eval's name for the `model_type` of a config. For another, `--general-args "--model NAME"` says it."""


def run_general(
    benchmarks: str, model: str | Path, output: Path, *, python: Path | None = None, arguments: str = "", device: str | None = None
) -> dict[str, dict[str, float]]:
    """Lets lmms-eval measure a model (folder or hub id) on `benchmarks`, names with commas between, and returns all of `output`'s figures.

    `python` has lmms-eval; by default the one in `.venv-general`, this one, or that of the command `lmms-eval`. `arguments` are more
    words for lmms-eval. Raises BadData where lmms-eval is absent, or ends without a figure for a benchmark.
    """
    names = [name.strip() for name in benchmarks.split(",") if name.strip()]
    if not names:
        raise BadData("--general: expected names of benchmarks such as mmstar,mmbench_en_dev, found none")
    (program, version), folder = find_program(python), model_folder(model)
    if is_adapter(folder):
        found = f"--general: found an adapter in {folder}, expected a whole model"
        raise BadData(f"{found}: {merge_remedy(folder)}")
    revision = folder_revision(Path(folder)) if Path(folder).is_dir() else None
    earlier = _earlier(output, str(model), revision)
    words = ["--model", _kind(folder, arguments), "--model_args", _model_args(folder, device), "--tasks", ",".join(names)]
    words += ["--output_path", str(output / "general"), "--log_samples", *(["--device", device] if device else []), *shlex.split(arguments)]
    results = _call([*program, *words], output / "general")
    found = fold(results, names)
    whole = earlier | found
    run = {"model": str(model), "revision": revision, "called": words, "lmms_eval": version, "benchmarks": list(whole)}
    for name, content in (("general.json", whole), ("general-run.json", run)):
        with replacing(output / name) as part:
            part.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    for name, figures in found.items():
        Console().print(f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in figures.items()), markup=False, soft_wrap=True)
    return whole


def find_program(python: Path | None) -> tuple[list[str], str | None]:
    """The words that call lmms-eval, and its version where its Python tells. Raises BadData, with the commands that install it."""
    own = Path(ENVIRONMENT) / "bin" / "python"
    tried = [str(python)] if python else [str(own)] * own.is_file() + [sys.executable]
    for name in tried:
        if shutil.which(name) is None:
            raise BadData(f"--general-python {name}: found no such program, expected a Python that has lmms-eval: {INSTALL}")
        look = "import importlib.metadata as packages; print(packages.version('lmms_eval'))"
        found = subprocess.run([name, "-c", look], env=_environment(), capture_output=True, text=True)
        if found.returncode == 0:
            return [name, "-m", "lmms_eval"], found.stdout.strip()
    if python is None and (command := shutil.which("lmms-eval")):
        return [command], None
    raise BadData(f"lmms-eval is not installed in {' or '.join(tried)}: {INSTALL}")


def _environment() -> dict[str, str]:
    """This process's variables but those by which its Python finds packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _kind(folder: str, arguments: str) -> str:
    words = shlex.split(arguments)
    if "--model" in words[:-1]:
        return words[words.index("--model") + 1]
    config = _json(Path(folder) / "config.json")
    if not config and not Path(folder).is_dir():
        from .checkpoint import known_config  # a hub id: its config is looked up there

        config = known_config(folder).to_dict()
    found = config.get("model_type")
    if found not in KINDS:
        remedy = "name lmms-eval's with --general-args '--model …'"
        raise BadData(f"model {folder}: found model_type {found!r}, expected one of {', '.join(KINDS)}: {remedy}")
    return KINDS[found]


def _model_args(folder: str, device: str | None) -> str:
    """`pretrained`, and the image limits of the model's own processor: lmms-eval would set others."""
    if set(folder) & set(",="):
        raise BadData(f"model {folder}: lmms-eval cannot take a name with a comma or an equals sign: rename the folder")
    args = {"pretrained": str(Path(folder).resolve()) if Path(folder).is_dir() else folder}
    whole = _json(Path(folder) / "processor_config.json")
    images = whole.get("image_processor") or _json(Path(folder) / "preprocessor_config.json")
    size = images.get("size") or {}
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if (limit := images.get(name) or size.get(edge)) and "merge_size" in images:
            args[name] = str(limit)
    if device:
        args["device_map"] = device
    return ",".join(f"{name}={value}" for name, value in args.items())


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _call(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Runs lmms-eval and returns the results that it wrote. It may fail and still exit with 0, so only a new file counts."""
    folder.mkdir(parents=True, exist_ok=True)
    log, before = folder / "log.txt", set(folder.rglob("*_results.json"))
    Console().print(f"lmms-eval runs; its log is {log}", soft_wrap=True, markup=False)
    with log.open("w", encoding="utf-8") as file:
        # What it asks on the terminal, such as whether to run a model's code, has no answer.
        talk: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        code = subprocess.run(command, stdout=file, env=_environment(), **talk).returncode
    new = sorted(set(folder.rglob("*_results.json")) - before)
    if code or not new:
        text = re.sub("\x1b\\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace"))  # it colours its log
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = (lines or ["no word"])[-1].rpartition(" - ")[2][:300]
        raise BadData(f"lmms-eval ended with exit code {code} and {len(new)} files of results, expected 0 and one: {said}: see {log}")
    return _json(new[-1])


def fold(results: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """`{benchmark: {metric: value}}` of lmms-eval's results: its metrics without the filter `none`, their standard errors included.

    A group is there with its parts. Raises BadData for a benchmark of `names` that has no figure.

    >>> fold({"results": {"mmstar": {"alias": "mmstar", "average,none": 0.5, "average_stderr,none": "N/A"}}}, ["mmstar"])
    {'mmstar': {'average': 0.5}}
    """
    found = {}
    for name, row in (results.get("results") or {}).items():
        figures = {metric.removesuffix(",none"): float(value) for metric, value in row.items() if _is_figure(value)}
        if figures:
            found[name] = figures
    parts = results.get("group_subtasks") or {}
    if missing := [name for name in names if name not in found and not any(part in found for part in parts.get(name, ()))]:
        raise BadData(f"lmms-eval gave no figure for {', '.join(missing)}, only for {', '.join(found) or 'none'}: does it need a judge, or a key?")
    return found


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _earlier(output: Path, model: str, revision: str | None) -> dict[str, dict[str, float]]:
    """The figures that the folder has already, of the same weights. Raises BadData where they are of others."""
    run = _json(output / "general-run.json")
    key, now = ("model", model) if revision is None else ("revision", revision)
    if run and run.get(key) != now:
        raise BadData(f"{output} holds general figures of {run.get('model')} ({run.get(key)}), expected {model} ({now}): name another folder with -o")
    return _json(output / "general.json") if run else {}
