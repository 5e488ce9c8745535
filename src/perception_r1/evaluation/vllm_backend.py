"""A local model through vLLM's offline engine: the same prompt, image limits, ends and reading of tokens as through transformers.

vLLM pins a torch of its own, so it has an environment of its own, and is imported when a model is loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from PIL import Image

from ..records import BadData
from .asking import Reply, check_sampling, installed_vllm
from .backends import LocalModel, decode_completions, end_token_ids
from .checkpoint import frame_by_processor, loaded, pixel_limits


class VllmBackend(LocalModel):
    """A model folder or hub id in vLLM. `dtype` is as in transformers; vLLM's own choice by default."""

    engine = "vllm"

    def __init__(self, model: str | Path, *, device: str | None = None, dtype: str | None = None, **options: Any) -> None:
        self._vllm = installed_vllm()
        if device not in (None, "cuda"):
            raise BadData(f"--vllm: found device {device!r}, expected none: CUDA_VISIBLE_DEVICES chooses the GPUs")
        super().__init__(model, **options)
        self.dtype = dtype or "auto"
        self._generation = loaded(self.name, self._generation_config)
        limits = pixel_limits(self.processor)
        self._sized = bool(limits) or self.dialect.reads_size_seen
        kwargs = {"mm_processor_kwargs": limits} if limits else {}
        self._llm = self._vllm.LLM(model=self.name, dtype=self.dtype, limit_mm_per_prompt={"image": 1}, **kwargs)

    def _generation_config(self) -> Any:
        try:
            return transformers.GenerationConfig.from_pretrained(self.name)
        except OSError:  # a checkpoint need not have one: then its config says how it ends
            return transformers.GenerationConfig.from_model_config(self.config)

    def about(self, max_new_tokens: int) -> dict[str, Any]:
        """As any local model, and the precision that was asked for."""
        return super().about(max_new_tokens) | {"dtype": self.dtype}

    def ends(self) -> frozenset[int]:
        return end_token_ids(self._generation, self.processor.tokenizer)

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
        """Replies to one prompt about one image each, as `TransformersBackend.generate` gives them. vLLM batches by itself."""
        check_sampling(prompts, images, samples, temperature)
        asked = [
            {"prompt": self.as_sent(prompt), "multi_modal_data": {"image": image.convert("RGB")}}
            for prompt, image in zip(prompts, images, strict=True)
        ]
        # Everything that a checkpoint's generation config might change is stated, as for transformers.
        params = self._vllm.SamplingParams(
            n=samples, temperature=temperature, top_p=1.0, top_k=-1, repetition_penalty=1.0, max_tokens=max_new_tokens, seed=seed,
            stop_token_ids=sorted(self.ends()), skip_special_tokens=False, spaces_between_special_tokens=False,
        )  # fmt: skip
        found = self._llm.generate(asked, params, use_tqdm=False)
        frames = [frame_by_processor(self.processor, *image.size) for image in images]
        return [self._reply(output, frame) for request, frame in zip(found, frames, strict=True) for output in request.outputs]

    def _reply(self, output: Any, frame: Any) -> Reply:
        ends = self.ends()
        ids = [token for token in output.token_ids if token not in ends]  # the last may be the end itself
        text = decode_completions(self.processor.tokenizer, [ids])[0]
        finish = "length" if output.finish_reason == "length" else "stop"
        return Reply(text, finish, frame, self._sized)
