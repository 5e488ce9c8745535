"""A model folder (or hub id) that answers through transformers: batched, greedy or sampled, alone or in several processes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from ..dialects import Dialect, dialect_named, dialect_of_model
from ..policy import model_folder
from ..records import BadData, Frame
from .adapters import Base, base_of, is_adapter, merge_remedy
from .asking import Batched, Reply, check_sampling
from .checkpoint import (
    image_limits,
    known_config,
    limit_pixels,
    load_adapted,
    load_processor,
    loaded,
    processor_of,
    read_settings,
    revision_of,
    torch_dtype,
)
from .gpu import avoid_cudnn_attention
from .model_files import check_model_folder
from .stored_tensors import check_weights
from .vision_windows import batch_windows

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
        whole = self.base or Base(self.name)
        check_model_folder(whole.name)
        check_weights(Path(self.name))
        self.config = known_config(whole.name, **whole.options())
        self.processor = processor_of(self.name, whole) if self.base else load_processor(self.name)
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
        batch_windows(self.model)
        avoid_cudnn_attention()
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


