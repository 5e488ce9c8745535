"""The README.md of a checkpoint: from what it was trained, on what, how it is asked, what changed.

TRL's own says "fine-tuned version of None" of a model in a folder, and nothing of the task.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .. import __version__
from ..data.samples import replacing
from .recipe import RecipeArguments

METHODS = {
    "grpo": "reinforcement learning (GRPO) with rewards computed from the truth",
    "sft": "supervised fine-tuning on the true answers",
}


def own_card(trainer: Any, card: str) -> None:
    """Lets a trainer of TRL write this card, with each checkpoint, instead of its own."""

    def create_model_card(*_: Any, **__: Any) -> None:
        if trainer.is_world_process_zero():
            write_card(Path(str(trainer.args.output_dir)), card)

    trainer.create_model_card = create_model_card


def write_card(folder: Path, card: str) -> None:
    with replacing(folder / "README.md") as part:
        part.write_text(card, encoding="utf-8")


def model_card(
    method: str,
    ours: RecipeArguments,
    ready: Any,
    output: Path,
    results: Mapping[str, Any] | None = None,
) -> str:
    """A card in Markdown; `method` is grpo or sft, `results` a comparison's by when it measured."""
    about: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if not Path(ready.model).is_dir():  # a hub knows its own ids alone
        about["base_model"] = ready.model
    about["tags"] = ["perception-r1", method]
    thought = " after a thought" if ours.thinking else ""
    prompts = {name: task.template() for name, task in ready.tasks.items()}
    lines = [
        f"---\n{yaml.safe_dump(about, sort_keys=False).strip()}\n---",
        f"# {output.name}",
        f"`{ours.model}` after {METHODS[method]}, by Perception-R1 {__version__}.",
        "\n".join(
            f"- Task `{name}`, asked as {json.dumps(prompt, ensure_ascii=False)}"
            for name, prompt in prompts.items()
        ),
        f"- Answers are written in the dialect `{ready.dialect.name}`{thought}.\n"
        f"- Training samples: `{ours.data}`. Nothing else about the data is known here.",
        *_figures(ours, results or {}),
        f"```bash\nperception-r1 evaluate --model {output.name} --data SAMPLES -o evaluation\n```",
    ]
    return "\n\n".join(lines) + "\n"


def _figures(ours: RecipeArguments, results: Mapping[str, Any]) -> list[str]:
    """Held-out samples measured before and after, as a table, where there are any."""
    if not {"before", "after"} <= results.keys():
        return []
    before, after = (results[when]["metrics"] for when in ("before", "after"))
    rows = [
        f"| {name} | {_cell(before.get(name))} | {_cell(found)} |" for name, found in after.items()
    ]
    head = "| metric | before | after |\n|---|---:|---:|"
    count = results["after"]["data"]["samples"]
    return [
        f"Greedy answers to {count:,} held-out samples (`{ours.eval_data}`), with 95 % intervals:",
        "\n".join([head, *rows]),
    ]


def _cell(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry["value"] is None:
        return "–"
    edges = entry["ci95"]
    return f"{entry['value']:.3f}" + (f" [{edges[0]:.3f}, {edges[1]:.3f}]" if edges else "")
