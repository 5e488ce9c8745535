"""Questions to a model and its replies: what every backend shares. No backend, and no torch, is loaded before it is needed."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from ..data.samples import open_image
from ..dialects import Dialect
from ..policy import model_folder
from ..records import BadData, Frame, Sample
from .adapters import is_adapter
from .model_files import check_model_folder

ANSWERING_FILES = (
    *("config.json", "adapter_config.json", "generation_config.json", "chat_template*"),
    *("*.safetensors", "pytorch_model*.bin", "*processor_config.json"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
)
"""Files of a model folder on which its answers depend."""

VLLM_WAY = (
    "It needs a torch of its own, so make it an environment of its own, in the project's folder: "
    "python -m venv .venv-vllm && .venv-vllm/bin/pip install -e '.[train,eval,vllm]', "
    "and run .venv-vllm/bin/perception-r1; or leave vLLM out"
)


class Question(NamedTuple):
    """What is asked about one sample."""

    sample: Sample
    prompt: str

    def image(self) -> Image.Image:
        """The sample's image in RGB, pixels as stored. Raises BadData."""
        return open_image(self.sample)


class Reply(NamedTuple):
    """One completion, special tokens kept; why it ended, "stop" or "length"; and the sizes its coordinates refer to."""

    completion: str
    finish: str
    frame: Frame
    sized: bool = True
    """Whether the frame says what size the model saw; else nobody knows, and the dialect needs none."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How a server is called."""

    parallel: int = 8
    """Questions that wait for a reply at a time."""
    timeout: float = 300.0
    """Seconds after which a question is asked again."""
    retries: int = 8
    """Times that a question is asked again; the waits between double from half a second to eight, with jitter."""

    def __post_init__(self) -> None:
        if self.parallel < 1 or self.retries < 0 or not 0 < self.timeout < math.inf:
            raise BadData(f"found {self}, expected parallel of at least 1, retries of at least 0 and a timeout of some seconds")


class Backend(Protocol):
    """A model that answers. `settings` is what its perception_r1.json says, {} where there is none."""

    dialect: Dialect
    settings: Mapping[str, Any]

    def about(self, max_new_tokens: int) -> dict[str, Any]:
        """What metrics.json records of the model: its revision, the image limits in force, how it decodes."""
        ...

    def as_sent(self, prompt: str) -> str | None:
        """The text that the model reads for a prompt, with the chat template's own words; None where only a server knows."""
        ...

    def replies(self, questions: Sequence[Question], *, max_new_tokens: int, batch_size: int) -> Iterator[tuple[Question, Reply]]:
        """Yields every question with its greedy reply, as soon as there is one, in any order."""
        ...


class Batched:
    """A backend that answers batches, by its `generate`."""

    def generate(self, prompts: Sequence[str], images: Sequence[Image.Image], *, max_new_tokens: int, batch_size: int) -> list[Reply]:
        raise NotImplementedError

    def replies(self, questions: Sequence[Question], *, max_new_tokens: int, batch_size: int) -> Iterator[tuple[Question, Reply]]:
        """Yields the questions with their replies, in order, a batch at a time."""
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            prompts, images = [question.prompt for question in batch], [question.image() for question in batch]
            yield from zip(batch, self.generate(prompts, images, max_new_tokens=max_new_tokens, batch_size=batch_size), strict=True)


class Processes:
    """The processes that share one evaluation. This is one alone; see waiting.LaunchedProcesses."""

    index: int = 0
    count: int = 1
    device: str | None = None
    """Where this process should put its model; None for the backend's own choice."""

    def wait(self) -> None:
        """Returns when every process has come here."""


def load_backend(model: str | Path, samples: Sequence[Sample], *, vllm: bool = False, **options: Any) -> Any:
    """The backend of a local model (folder or hub id) with its options: transformers, or vLLM offline.

    An absent vLLM, and an image of the samples that is missing or too narrow for the model, raise
    BadData before any weights are loaded.
    """
    if vllm:
        installed_vllm()
    check_images(samples)
    name = model_folder(model)
    if not is_adapter(name):
        check_model_folder(name)  # before torch is imported
    from .backends import TransformersBackend
    from .checkpoint import check_sides

    check_sides(model, samples)
    if vllm:
        from .vllm_backend import VllmBackend

        return VllmBackend(model, **options)
    return TransformersBackend(model, **options)


def installed_vllm() -> Any:
    """The module vllm, little of it loaded. Raises BadData with the way to it where it is absent."""
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as missing:
        if missing.name != "vllm":
            raise
        raise BadData(f"vLLM is not installed here. {VLLM_WAY}") from missing
    return vllm


def check_images(samples: Sequence[Sample]) -> None:
    """Raises BadData for the first of the samples whose image is missing."""
    if missing := next((sample for sample in samples if not sample.image_path.is_file()), None):
        open_image(missing)  # raises, naming it


def folder_revision(folder: Path) -> str:
    """Which weights a model folder holds: the sha256 of the files that its answers depend on. Takes seconds for gigabytes."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in ANSWERING_FILES for path in folder.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def check_sampling(prompts: Sequence[str], images: Sequence[Image.Image], samples: int, temperature: float) -> None:
    """Raises BadData where prompts and images are not as many, or several replies are asked for that would all be the same."""
    if len(prompts) != len(images):
        raise BadData(f"expected one image for each prompt, found {len(prompts)} prompts and {len(images)} images")
    if samples > 1 and not temperature:
        raise BadData(f"found {samples} samples at temperature 0, expected one: greedy replies are all the same")
