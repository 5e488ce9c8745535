"""An adapter and its base become one model folder, which needs no PEFT to be loaded."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..policy import SETTINGS_FILE
from ..records import BadData
from .adapters import CONFIG, base_of, is_adapter
from .checkpoint import load_adapted, processor_of, read_settings, torch_dtype


def merge(folder: str | Path, output: str | Path, *, dtype: str | None = None) -> Path:
    """Writes the model that an adapter and its base make to a new folder `output`; returns that.

    `folder` is an adapter (a checkpoint-N of a run with LoRA, or any that PEFT wrote), or a run's
    folder that holds it as `adapter/`. `dtype` is that of the written weights: by default as
    trained, float32 where that is not known. `output` holds weights, processor and
    perception_r1.json, and appears whole or not at all. Raises BadData.
    """
    adapter, target = _adapter_in(Path(folder)), Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadData(
            f"output {target}: found something there, expected a folder to be made: name another"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    part.chmod(0o755)  # mkdtemp's own is for nobody else
    try:
        write_merged(adapter, part, dtype=dtype)
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _adapter_in(folder: Path) -> Path:
    if is_adapter(folder):
        return folder
    if is_adapter(folder / "adapter"):
        return folder / "adapter"
    if not folder.is_dir():
        raise BadData(
            f"merge {folder}: found no such folder, expected one with {CONFIG}: name a checkpoint"
        )
    found = (
        "a whole model, which needs no merging"
        if (folder / "config.json").is_file()
        else f"no {CONFIG}"
    )
    raise BadData(
        f"merge {folder}: found {found}, expected an adapter: name a checkpoint of a run with LoRA"
    )


def write_merged(adapter: str | Path, output: str | Path, *, dtype: str | None = None) -> None:
    """Writes the weights that an adapter and its base make, processor and settings, to `output`.

    perception_r1.json comes last: a folder that has it is whole.
    """
    settings = read_settings(adapter)
    base = base_of(adapter, settings)
    kind = torch_dtype(dtype or settings.get("dtype") or "float32")
    model = load_adapted(adapter, base, kind)
    model.save_pretrained(output)
    processor_of(adapter, base).save_pretrained(output)
    write_settings(output, settings or {"base": base.name})


def write_settings(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Writes perception_r1.json beside weights, so that `evaluate` and `demo` need no more."""
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (Path(folder) / SETTINGS_FILE).write_text(text, encoding="utf-8")
