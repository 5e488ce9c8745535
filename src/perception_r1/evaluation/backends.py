"""A model folder (or hub id) that answers through transformers: batched, greedy or sampled, alone or in several processes."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError

from ..dialects import Dialect, dialect_named, dialect_of_model, smart_resize
from ..policy import SETTINGS_FILE, model_folder
from ..records import BadData, Frame
from .adapters import Base, base_of, is_adapter, load_merged, merge_remedy
from .asking import Batched, Reply, check_sampling, folder_revision

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


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


class LocalModel(Batched):
    """A model folder or hub id, with its processor: what transformers and vLLM share.

    `min_pixels` and `max_pixels` override the processor's limits. `dialect` overrides what perception_r1.json or the model's
    type say. A folder may hold an adapter where the engine `merges`: its base is loaded with it.
    """

    engine: str
    merges = False

    def __init__(
        self, model: str | Path, *, dialect: str | None = None, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> None:
        self.given = str(model)
        self.name = model_folder(model)
        self.settings = read_settings(self.name)
        """What perception_r1.json says (task, dialect, prompt, thinking); empty when the folder has none."""
        self.base = self._base()
        """What an adapter was trained on; None for a whole model."""
        if self.base is None:
            check_model_folder(self.name)
        whole = self.base or Base(self.name)
        self.processor = processor_of(self.name, whole) if self.base else load_processor(self.name)
        config = partial(transformers.AutoConfig.from_pretrained, whole.name, **whole.options())
        self.config = loaded(whole.name, config)
        self.model_type: str = self.config.model_type
        named = dialect or self.settings.get("dialect")
        self.dialect: Dialect = dialect_named(named) if named else dialect_of_model(self.model_type)
        limit_pixels(self.processor, min_pixels, max_pixels)

    def _base(self) -> Base | None:
        if not is_adapter(self.name):
            return None
        if not self.merges:
            found = f"model {self.name}: found an adapter, which {self.engine} is not given alone"
            raise BadData(f"{found}: {merge_remedy(self.name)}")
        return base_of(self.name, self.settings)

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
            "revision": revision_of(self.name, self.config, self.base),
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
    merges = True

    def __init__(
        self, model: str | Path, *, device: str | None = None, dtype: str | None = None, sharing: Sharing | None = None, **options: Any
    ) -> None:
        super().__init__(model, **options)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        usual = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.dtype = torch_dtype(dtype) if dtype else usual
        self.model = self._load()
        self.model.to(self.device).eval()
        self.sharing = sharing

    def _load(self) -> Any:
        if self.base:
            return load_adapted(self.name, self.base, self.dtype)
        load = transformers.AutoModelForImageTextToText.from_pretrained
        return loaded(self.name, partial(load, self.name, dtype=self.dtype))

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
        sized = "image_grid_thw" in inputs or self.dialect.reads_size_seen
        rows = zip(completions, stopped, frames, strict=True)
        return [
            Reply(text, "stop" if stop else "length", frame, sized) for text, stop, frame in rows
        ]

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


def check_model_folder(name: str | Path) -> None:
    """Raises BadData for a local folder that is no model with a processor; a hub id passes."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.is_absolute() or folder.exists() or len(folder.parts) > 2:  # a hub id is `owner/name`
            raise BadData(f"model {folder}: found no such folder, expected a folder with config, weights and processor, or a hub id owner/name")
        return
    if is_adapter(folder):
        found = f"model {folder}: found an adapter, expected a whole model"
        raise BadData(f"{found}: {merge_remedy(folder)}")
    if not (folder / "config.json").is_file():
        found = f"model {folder}: expected config.json in the folder, found none"
        raise BadData(f"{found}: name a checkpoint folder")
    for kind, names in (("processor", PROCESSOR_FILES), ("tokenizer", TOKENIZER_FILES)):
        if not has_any(folder, names):
            raise BadData(f"model {folder}: has no {kind} ({' or '.join(names)}): copy its base model's {kind} files into the folder")


def has_any(folder: str | Path, names: Sequence[str]) -> bool:
    """Whether one of these files lies in a folder."""
    return any((Path(folder) / name).is_file() for name in names)


def load_adapted(adapter: str | Path, base: Base, dtype: torch.dtype) -> Any:
    """The model that an adapter and its base make. Raises BadData for a base that is none."""
    check_model_folder(base.name)
    return loaded(f"{adapter} on {base.name}", lambda: load_merged(adapter, base, dtype))


def processor_of(adapter: str | Path, base: Base) -> Any:
    """The processor beside an adapter, which knows the run's image limits; else its base's."""
    if has_any(adapter, PROCESSOR_FILES) and has_any(adapter, TOKENIZER_FILES):
        return load_processor(str(adapter))
    check_model_folder(base.name)
    return load_processor(base.name, **base.options())


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name. Raises BadData."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise BadData(f"dtype {name!r} is not known: expected float32, bfloat16 or float16")
    return found


def loaded(name: str, load: Callable[[], Any]) -> Any:
    """What `load` gives of the model called `name`. Raises BadData in one line where its files do not allow it."""
    try:
        return load()
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadData(f"model {name!r} could not be loaded: {reason}: expected a folder with config, weights and processor, or a hub id") from error


def load_processor(name: str, **options: Any) -> Any:
    """The processor of a folder or hub id. Raises BadData where it is none of images and text."""
    processor = loaded(name, lambda: transformers.AutoProcessor.from_pretrained(name, **options))
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        found = type(processor).__name__
        raise BadData(f"model {name!r}: found {found}, expected a processor of images and text: copy its base model's processor files")
    return processor


def revision_of(name: str, config: Any, base: Base | None = None) -> str | None:
    """Which weights these are: a hub model's commit, a sha256 of what a folder's answers depend on.

    Those of an adapter are its own and its base's, whose `config` is given.
    """
    if base:
        return f"{folder_revision(Path(name))} on {revision_of(base.name, config)}"
    return folder_revision(Path(name)) if Path(name).is_dir() else getattr(config, "_commit_hash", None)


def image_limits(processor: Any) -> dict[str, Any]:
    """To what a processor resizes images: its smallest and largest number of pixels, or its one size."""
    images = processor.image_processor
    if hasattr(images, "merge_size"):
        return {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}
    return {"size": {name: value for name, value in dict(images.size).items() if value is not None}}


def pixel_limits(processor: Any) -> dict[str, int]:
    """A processor's limits, for vLLM's `mm_processor_kwargs`; {} where it resizes to one size."""
    limits = image_limits(processor)
    return limits if "max_pixels" in limits else {}


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
