"""A model folder (or hub id) that answers through transformers: batched, greedy or sampled, alone or in several processes."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from PIL import Image
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from ..dialects import Dialect, dialect_named, dialect_of_model, smart_resize
from ..policy import SETTINGS_FILE, model_folder
from ..records import BadData, Frame, Sample
from .asking import Batched, Processes, Reply, check_sampling, folder_revision
from .model_files import check_model_folder
from .stored_tensors import check_weights

NARROW = 100
"""Longer over shorter side from which on an image is looked at closely; Qwen's refuse 200."""

Sharing = Callable[[Any, int], AbstractContextManager[None] | None]
"""What lets a model answer each prompt so many times with the prompt computed once, or None where it cannot."""


def end_token_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that end a completion: the tokenizer's end token and those of the model's generation config."""
    declared = generation_config.eos_token_id
    several = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in (*several, tokenizer.eos_token_id) if token is not None)


def decode_completions(tokenizer: Any, ids: Iterable[Any]) -> list[str]:
    """Texts of completions given as token ids (lists or tensors (T,)), KEEPING special tokens except end and padding.

    A completion is cut at its first end token. The boxes of Qwen2-VL are special tokens, so rewards and evaluation must
    read this text and no other.
    """
    texts = []
    for row in ids:
        tokens = row.tolist() if hasattr(row, "tolist") else list(row)
        if tokenizer.eos_token_id in tokens:
            tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
        kept = [token for token in tokens if token != tokenizer.pad_token_id]
        texts.append(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return texts


def frames_from_inputs(inputs: Mapping[str, Any], sizes: Sequence[tuple[int, int]], processor: Any) -> list[Frame]:
    """Frames of a batch with one image each: original `sizes` (width, height), and what the processor really made of them.

    Read from `image_grid_thw` (B, 3: frames, rows, columns of patches). Processors without one resize to a fixed size and
    their families write relative coordinates, for which the size seen does not matter: it is then the original's.
    """
    if "image_grid_thw" not in inputs:
        return [Frame(width=width, height=height, seen_width=width, seen_height=height) for width, height in sizes]
    patch = processor.image_processor.patch_size
    grid_B3 = inputs["image_grid_thw"].tolist()
    return [
        Frame(width=width, height=height, seen_width=columns * patch, seen_height=rows * patch)
        for (width, height), (_, rows, columns) in zip(sizes, grid_B3, strict=True)
    ]


def frame_by_processor(processor: Any, width: int, height: int) -> Frame:
    """The frame of an image of that size in pixels: original size, and the size to which this processor resizes it.

    A processor without `merge_size` resizes to a fixed size; as in `frames_from_inputs`, that size does not matter.
    """
    images, seen = processor.image_processor, (width, height)
    if hasattr(images, "merge_size"):
        limits = {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}
        seen = smart_resize(width, height, factor=images.patch_size * images.merge_size, **limits)
    return Frame(width=width, height=height, seen_width=seen[0], seen_height=seen[1])


def chat_messages(prompt: str) -> list[dict[str, Any]]:
    """The conversation of one question about one image; the system prompt is the chat template's own."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


class LaunchedProcesses(Processes):
    """The processes that `accelerate launch` or `torchrun` has started. They share one disk, through which their answers meet."""

    def __init__(self) -> None:
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
        self.index, self.count, self.device = state.process_index, state.num_processes, str(state.device)
        self.wait = state.wait_for_everyone


class LocalModel(Batched):
    """A model folder or hub id, with its processor: what transformers and vLLM share.

    `min_pixels` and `max_pixels` override the processor's limits. `dialect` overrides what perception_r1.json or the model's
    type say.
    """

    engine: str

    def __init__(
        self, model: str | Path, *, dialect: str | None = None, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> None:
        self.given = str(model)
        self.name = model_folder(model)
        self.settings = read_settings(self.name)
        """What perception_r1.json says (task, dialect, prompt, thinking); empty when the folder has none."""
        check_model_folder(self.name)
        check_weights(Path(self.name))
        self.config = known_config(self.name)
        self.processor = load_processor(self.name)
        self.model_type: str = self.config.model_type
        named = dialect or self.settings.get("dialect")
        self.dialect: Dialect = dialect_named(named) if named else dialect_of_model(self.model_type)
        limit_pixels(self.processor, min_pixels, max_pixels)

    def ends(self) -> frozenset[int]:
        """Ids of the tokens that end a completion."""
        raise NotImplementedError

    def as_sent(self, prompt: str) -> str:
        """The text that the model reads for a prompt, with the chat template's own words; images are one token each."""
        return self.processor.apply_chat_template(chat_messages(prompt), add_generation_prompt=True, tokenize=False)

    def about(self, max_new_tokens: int) -> dict[str, Any]:
        """What metrics.json records: name and revision, image limits in force, and how it decodes."""
        ends = self.processor.tokenizer.convert_ids_to_tokens(sorted(self.ends()))
        return {
            "name": self.given,
            "revision": revision_of(self.name, self.config),
            "backend": self.engine,
            "model_type": self.model_type,
            "image": image_limits(self.processor),
            "decoding": {"greedy": True, "max_new_tokens": max_new_tokens, "ends": ends, "special_tokens": "kept"},
        }


class TransformersBackend(LocalModel):
    """A local model through transformers.

    `device` and `dtype` default to the GPU with bfloat16 when there is one, else the CPU with float32. `sharing` lets several
    samples of a prompt share its prefill, where it can.
    """

    engine = "transformers"

    def __init__(
        self, model: str | Path, *, device: str | None = None, dtype: str | None = None, sharing: Sharing | None = None, **options: Any
    ) -> None:
        super().__init__(model, **options)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = _dtype(dtype) if dtype else (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        self.model = loaded(self.name, lambda: transformers.AutoModelForImageTextToText.from_pretrained(self.name, dtype=self.dtype))
        self.model.to(self.device).eval()
        self.sharing = sharing

    def about(self, max_new_tokens: int) -> dict[str, Any]:
        """As any local model, and where and in what precision it ran."""
        return super().about(max_new_tokens) | {"device": self.device.type, "dtype": str(self.dtype).removeprefix("torch.")}

    def ends(self) -> frozenset[int]:
        return end_token_ids(self.model.generation_config, self.processor.tokenizer)

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Image.Image],
        *,
        max_new_tokens: int,
        batch_size: int = 32,
        temperature: float = 0.0,
        samples: int = 1,
        seed: int = 0,
    ) -> list[Reply]:
        """Replies to one prompt about one image each, at most `batch_size` at a time. Images may differ in size.

        Greedy at temperature 0. Above it, `samples` replies to each prompt, one after the other, are drawn with `seed`
        from the model's whole distribution, as GRPO's rollouts are.
        """
        check_sampling(prompts, images, samples, temperature)
        if temperature:
            torch.manual_seed(seed)
        step = max(1, batch_size // samples)
        parts = (
            self._batch(prompts[at : at + step], images[at : at + step], max_new_tokens, temperature, samples) for at in range(0, len(prompts), step)
        )
        return list(chain.from_iterable(parts))

    @torch.inference_mode()
    def _batch(self, prompts: Sequence[str], images: Sequence[Image.Image], max_new_tokens: int, temperature: float, samples: int) -> list[Reply]:
        tokenizer = self.processor.tokenizer
        texts = [self.as_sent(prompt) for prompt in prompts]
        pictures = [[image.convert("RGB")] for image in images]
        inputs = self.processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt").to(self.device, self.dtype)
        frames = [frame for frame in frames_from_inputs(inputs, [image.size for image in images], self.processor) for _ in range(samples)]
        ends = self.ends()
        shared = self.sharing(self.model, samples) if self.sharing and samples > 1 else None
        with shared or nullcontext():
            config = self._decoding(max_new_tokens, ends, temperature, 1 if shared else samples)
            output_BT = self.model.generate(**inputs, generation_config=config)
        new_ids = [row[inputs["input_ids"].shape[1] :].tolist() for row in output_BT]
        stopped = [not ends.isdisjoint(row) for row in new_ids]
        completions = decode_completions(tokenizer, [_until_end(row, ends) for row in new_ids])
        return [Reply(text, "stop" if stop else "length", frame) for text, stop, frame in zip(completions, stopped, frames, strict=True)]

    def _decoding(self, max_new_tokens: int, ends: frozenset[int], temperature: float, samples: int) -> transformers.GenerationConfig:
        # The checkpoint's own generation config may sample and penalise repetition; a list of boxes is all repetition.
        pad = self.processor.tokenizer.pad_token_id
        plain = {"num_beams": 1, "repetition_penalty": 1.0, "top_p": 1.0, "num_return_sequences": samples}
        way = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False, "temperature": 1.0, "top_k": 50}
        return transformers.GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=pad, **plain, **way)


def _until_end(ids: Sequence[int], ends: frozenset[int]) -> list[int]:
    return list(ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))])


def read_settings(model_dir: str | Path) -> dict[str, Any]:
    """What a checkpoint's perception_r1.json says (task, dialect, prompt, thinking); {} when there is none."""
    path = Path(model_dir) / SETTINGS_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadData(f"{path}: expected JSON, found {error}: write it again with `perception-r1 grpo` or delete it") from error
    if not isinstance(found, dict):
        raise BadData(f"{path}: expected a JSON object with task, dialect, prompt, thinking; found {type(found).__name__}")
    return found


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise BadData(f"dtype {name!r} is not known: expected float32, bfloat16 or float16")
    return found


def loaded(name: str, load: Callable[[], Any]) -> Any:
    """What `load` gives of the model called `name`. Raises BadData in one line where its files do not allow it."""
    try:
        return load()
    except UnpicklingError as error:
        found = f"model {name!r}: refused, since loading its weights could run code"
        raise BadData(f"{found}: expected safetensors, or tensors alone") from error
    except (OSError, ValueError, SafetensorError) as error:
        if "custom code" in str(error):
            found = f"model {name!r} needs code that comes with it, which is never run"
            raise BadData(f"{found}: expected a model that transformers itself knows") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadData(f"model {name!r} could not be loaded: {reason}: expected a folder with config, weights and processor, or a hub id") from error


def known_config(name: str, **options: Any) -> Any:
    """The config of a model (folder or hub id) of images and text. Raises BadData for any other.

    Whoever loads the model after this is never asked on the terminal whether to run such code.
    """
    read = transformers.AutoConfig.from_pretrained
    config = loaded(name, lambda: read(name, trust_remote_code=False, **options))
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        found = f"model {name!r}: found model_type {config.model_type!r}"
        expected = "expected a model of images and text that transformers itself knows"
        raise BadData(f"{found}, {expected}")
    return config


def load_processor(name: str) -> Any:
    """The processor of images and text of a model (folder or hub id). Raises BadData for any."""
    read = transformers.AutoProcessor.from_pretrained
    processor = loaded(name, lambda: read(name, trust_remote_code=False))
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        found = type(processor).__name__
        raise BadData(f"model {name!r}: found {found}, expected a processor of images and text: copy its base model's processor files")
    return processor


def check_sides(model: str | Path, samples: Iterable[Sample]) -> None:
    """Raises BadData for an image that is too narrow for a model's processor, which is loaded where
    one may be.
    """
    if not (narrow := [sample for sample in samples if _is_narrow(sample)]):
        return
    processor = load_processor(model_folder(model))
    for sample in narrow:
        try:
            frame_by_processor(processor, sample.width, sample.height)
        except BadData as problem:
            found = f"{sample.image_path} of sample {sample.id!r}"
            raise BadData(f"{found}: {problem}") from problem


def _is_narrow(sample: Sample) -> bool:
    return max(sample.width, sample.height) > NARROW * min(sample.width, sample.height)


def revision_of(name: str, config: Any) -> str | None:
    """Which weights these are: a hub model's commit, a folder's sha256 over the files that its answers depend on."""
    return folder_revision(Path(name)) if Path(name).is_dir() else getattr(config, "_commit_hash", None)


def image_limits(processor: Any) -> dict[str, Any]:
    """To what a processor resizes images: its smallest and largest number of pixels, or its one size."""
    images = processor.image_processor
    if hasattr(images, "merge_size"):
        return {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}
    return {"size": {name: value for name, value in dict(images.size).items() if value is not None}}


def limit_pixels(processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Sets the smallest and largest image, in pixels, to which a processor resizes; None leaves its own limit."""
    if min_pixels is None and max_pixels is None:
        return
    images = processor.image_processor
    if not hasattr(images, "merge_size"):
        raise BadData(f"pixel limits: {type(images).__name__} resizes to a fixed size: leave out min_pixels and max_pixels")
    low, high = min_pixels or images.size["shortest_edge"], max_pixels or images.size["longest_edge"]
    if low > high:
        raise BadData(f"pixel limits: found min_pixels {low} above max_pixels {high}, expected at most that")
    images.size = {"shortest_edge": low, "longest_edge": high}
