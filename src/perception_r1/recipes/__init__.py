"""Named settings that come with the package: recipes of runs here, studies and their domains in folders of their own."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..records import BadData


def names(folder: str = "") -> list[str]:
    """What a folder of recipes holds, by name."""
    return sorted(entry.name.removesuffix(".yaml") for entry in (_root() / folder).iterdir() if entry.name.endswith(".yaml"))


def read(name: str, folder: str = "", kind: str = "recipe") -> dict[str, Any]:
    """The settings under a name, or in a YAML file. Raises BadData when there is no such, or no mapping in it.

    >>> read("quickstart")["num_generations"]
    8
    """
    named, path = _root() / folder / f"{name}.yaml", Path(name)
    if not named.is_file() and not path.is_file():
        expected = f"expected a YAML file or one of {', '.join(names(folder))}"
        raise BadData(f"{kind} {name!r} is not known: {expected}{_meant(name, folder)}")
    try:
        settings = yaml.safe_load((named if named.is_file() else path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BadData(f"{kind} {name}: expected YAML, found {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict):
        raise BadData(f"{kind} {name}: expected a mapping of keys to values, found {type(settings).__name__}")
    return settings


def _meant(name: str, folder: str) -> str:
    """The name of which this one is a slip of the fingers, in words."""
    near = difflib.get_close_matches(name, names(folder), n=1, cutoff=0.8)
    return f": did you mean {near[0]}?" if near else ""


def _root() -> Any:
    return resources.files("perception_r1.recipes")
