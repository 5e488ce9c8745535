"""Data recipes: several sample files in one command, with a manifest that says where all came from.

    seed: 0
    files:
      refcoco:                     # a name for --only
        file: refcoco_train.jsonl  # below the output folder
        reader: refcoco            # one of READERS, with its options
        from: [refcoco, refcoco+]  # below the root, as every path among the options
        options: {split: train, by: [unc, umd], images: [train2014]}
        sample: 5k                 # left out: all
        get: where the sources come from, for the error that misses them

`manifest.json`, beside the files, has an entry a file: its hash, the sources' hashes, the seed, what was counted and left out
and why, and versions. An entry follows from its sources alone: made again from the same, it is the same.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from os.path import commonpath
from pathlib import Path
from typing import Any

import yaml

from .. import versions
from ..records import BadData, Sample
from .downloads import DownloadSettings, Track, as_they_are, download_images, file_sha256
from .pixmo import pixmo_links
from .readers import MANY, READERS, Found, read_source, several, typed
from .samples import Skipped, read_json, replacing, unique, write_samples
from .subsets import parse_count, subset

MANIFEST = "manifest.json"
LISTED = 50
"""Up to so many source files are listed one by one; of more, the hash of their list."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One sample file to make."""

    name: str
    file: str
    reader: str
    sources: tuple[str, ...]
    """Paths below the root."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The reader's options, typed, tuples for those of MANY; a Path starts at the root."""
    sample: int | None = None
    """How many samples; None for all."""
    seed: int = 0
    get: str = ""

    def placed(self, root: Path) -> dict[str, Any]:
        """The options with their paths below `root`."""
        return {name: _placed(value, root) for name, value in self.options.items()}


@dataclass(frozen=True, kw_only=True)
class Making:
    """How files are made, whatever the recipe."""

    root: Path
    output: Path
    download: DownloadSettings | None = None
    """Fetch the images of pixmo that are not there; its sample is then drawn first, and dead links leave it smaller."""
    skip_bad: bool = False
    """Leave out referring expressions that are bad or lack their image, and annotations that cannot
    be right, and count them.
    """
    track: Track = as_they_are


def recipe_names() -> list[str]:
    """Names of the data recipes that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files("perception_r1.recipes") / "data"


def read_recipe(recipe: str, *, seed: int | None = None, only: Sequence[str] = ()) -> list[Plan]:
    """The files of a data recipe (a name, or a YAML path), or those of them named in `only`. Raises BadData."""
    path = _folder() / f"{recipe}.yaml" if recipe in recipe_names() else Path(recipe)
    if not path.is_file():
        raise BadData(f"data recipe {recipe!r} is not known: expected a YAML file or one of {', '.join(recipe_names())}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise BadData(f"data recipe {recipe}: expected YAML, found {str(problem).splitlines()[0]}") from problem
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict) or not set(content) <= {"seed", "files"}:
        raise BadData(f"data recipe {recipe}: found {str(content)[:80]}, expected `seed` and `files`, each file with its name")
    seed = content.get("seed", 0) if seed is None else seed
    plans = [_plan(f"data recipe {recipe}: {name}", str(name), entry, seed) for name, entry in content["files"].items()]
    if unknown := set(only) - {plan.name for plan in plans}:
        raise BadData(f"data recipe {recipe}: found no file {sorted(unknown)[0]!r}, expected one of {', '.join(plan.name for plan in plans)}")
    if len({plan.file for plan in plans}) < len(plans):
        raise BadData(f"data recipe {recipe}: found a file name twice, expected one for each")
    return [plan for plan in plans if not only or plan.name in only]


def _plan(where: str, name: str, entry: Any, seed: Any) -> Plan:
    """An entry of a recipe, checked. Raises BadData."""
    if not isinstance(entry, dict) or not {"file", "reader", "from"} <= set(entry) <= {"file", "reader", "from", "options", "sample", "get"}:
        raise BadData(f"{where}: found {str(entry)[:80]}, expected file, reader and from, and if need be options, sample and get")
    reader, options = entry["reader"], entry.get("options") or {}
    if reader not in READERS or not isinstance(options, dict) or not isinstance(seed, int):
        known = ", ".join(READERS)
        raise BadData(f"{where}: found reader {reader!r}, options {options!r:.40}, seed {seed!r}: expected one of {known}, names, a number")
    return Plan(
        name=name,
        file=str(entry["file"]),
        reader=reader,
        sources=tuple(map(str, several(entry["from"]))),
        options={option: _typed(where, reader, option, value) for option, value in options.items()},
        sample=parse_count(str(entry["sample"])) if entry.get("sample") is not None else None,
        seed=seed,
        get=str(entry.get("get", "")),
    )


def _typed(where: str, reader: str, name: str, value: Any) -> Any:
    values = [typed(reader, name, str(item).lower() if isinstance(item, bool) else str(item)) for item in several(value)]
    if name in MANY.get(reader, ()):
        return tuple(values)
    if len(values) != 1:
        raise BadData(f"{where}: option {name}: found {value!r:.60}, expected one value")
    return values[0]


def _placed(value: Any, root: Path) -> Any:
    if isinstance(value, tuple):
        return tuple(_placed(item, root) for item in value)
    return root / value if isinstance(value, Path) else value


def make_files(plans: Sequence[Plan], making: Making) -> Iterator[dict[str, Any]]:
    """Makes the file of each plan and yields its entry of the manifest, which is written as soon as the file is.

    Raises BadData before anything is read when sources are missing, naming all of them.
    """
    _expect_sources(plans, making)
    for plan in plans:
        try:
            entry = _make(plan, making)
        except BadData as problem:
            raise BadData(f"{plan.name}: {problem}") from problem
        _add(making.output / MANIFEST, entry)
        yield entry


def _expect_sources(plans: Iterable[Plan], making: Making) -> None:
    missing: dict[str, list[str]] = {}
    for plan in plans:
        named = [making.root / source for source in plan.sources if plan.reader != "scenes"]
        paths = [path for value in plan.placed(making.root).values() for path in several(value) if isinstance(path, Path)]
        needed = named if plan.reader == "pixmo" and making.download else [*named, *paths]
        if absent := [str(path) for path in needed if not path.exists()]:
            missing[plan.name] = [*absent, plan.get]
    if missing:
        words = "; ".join(f"{name}: {', '.join(absent)}" + (f" (get {get})" if get else "") for name, (*absent, get) in missing.items())
        raise BadData(f"found no {words}; expected all: docs/data.md says how each looks and how to get it, --only NAME,NAME leaves out the others")


def _make(plan: Plan, making: Making) -> dict[str, Any]:
    file, options, number = making.output / plan.file, plan.placed(making.root), plan.sample
    folder = file.parent / f"{file.stem}_images"
    drawn = (number, plan.seed) if number and plan.reader == "pixmo" and making.download else None
    found, fetched = list[Found](), {}
    for source in plan.sources:
        path = source if plan.reader == "scenes" else making.root / source
        if plan.reader == "pixmo" and making.download:
            settings = replace(making.download, check_hash=not options.get("any_hash", False))
            links = pixmo_links(path, split=options.get("split"), truth=options.get("truth", "points"), drawn=drawn)
            fetched[source] = dict(download_images(links, options.get("images", Path(path) / "images"), settings, track=making.track).report)
        skipped = Skipped() if making.skip_bad else None
        found.append(read_source(plan.reader, path, options, folder=folder, skipped=skipped, drawn=drawn, track=making.track))
    samples = list(unique((sample for part in found for sample in part.samples), plan.file))
    chosen = subset(samples, number, plan.seed) if number and not drawn else samples
    write_samples(making.track(chosen, "writing", len(chosen)), file)
    return _entry(plan, making.root, file, samples, chosen) | {
        "downloads": fetched,
        "reports": {source: dict(part.report) for source, part in zip(plan.sources, found, strict=True)},
        "left_out_first": [problem for part in found for problem in part.problems],
        "read": [entry for part in found for entry in _hashes(part.files, making)],
    }


def _entry(plan: Plan, root: Path, file: Path, samples: Sequence[Sample], chosen: Sequence[Sample]) -> dict[str, Any]:
    return {
        "name": plan.name,
        "file": plan.file,
        "bytes": file.stat().st_size,
        "sha256": file_sha256(file),
        "samples": len(chosen),
        "found": len(samples),
        "tasks": dict(Counter(sample.task for sample in chosen)),
        "sources": dict(sorted(Counter(sample.source or "" for sample in chosen).items())),
        "asked": plan.sample,
        "seed": plan.seed,
        "reader": plan.reader,
        "from": list(plan.sources),
        "options": {name: _as_text(value) for name, value in plan.options.items()},
        "versions": versions("numpy", "pillow", "pyarrow", "pypdfium2"),
    }


def _as_text(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_text(item) for item in value]
    return value.as_posix() if isinstance(value, Path) else value


def _hashes(files: Sequence[Path], making: Making) -> list[dict[str, Any]]:
    """Path below the root, size in bytes and SHA-256 of each file; of many, one entry with the SHA-256 of their list, a line
    `<sha256>  <path>` each, as sha256sum prints it.
    """
    listed = []
    for file in making.track(files, "hashing", len(files)):
        name = file.relative_to(making.root) if file.is_relative_to(making.root) else file
        listed.append({"path": name.as_posix(), "bytes": file.stat().st_size, "sha256": file_sha256(file)})
    if len(listed) <= LISTED:
        return listed
    lines = "".join(f"{entry['sha256']}  {entry['path']}\n" for entry in listed)
    total = sum(entry["bytes"] for entry in listed)
    folder = commonpath([entry["path"] for entry in listed])
    return [{"path": folder, "files": len(listed), "bytes": total, "sha256_of_list": hashlib.sha256(lines.encode()).hexdigest()}]


def _add(manifest: Path, entry: Mapping[str, Any]) -> None:
    """Puts the entry into the manifest, in place of the one of its name; the others stay."""
    content = read_json(manifest, "a manifest") if manifest.exists() else {}
    if not isinstance(content, dict) or not isinstance(content.setdefault("files", {}), dict):
        raise BadData(f"{manifest}: found {str(content)[:60]}, expected a manifest: move it away")
    content["files"][entry["name"]] = {name: value for name, value in entry.items() if name != "name"}
    with replacing(manifest) as part:
        part.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
