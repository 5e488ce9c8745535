"""Prompts with pictures for vLLM, so that it reads what the trainer trains on.

TRL 1.16 hands vLLM prompts in which the processor has already written a picture's N image tokens.
vLLM writes them once more in the place of the first, and reads 2N − 1. And it resizes pictures by
the limits in the model's folder, which a recipe may have narrowed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from ..evaluation.checkpoint import pixel_limits
from ..records import BadData


def read_as_trained(generation: Any, processor: Any) -> None:
    """Lets TRL's `VLLMGeneration` ask vLLM so that it reads the prompts that `processor` made.

    Colocated, each run of image tokens goes to vLLM as one token, and each picture with the
    processor's pixel limits. A server is given the trainer's own tokens by TRL, and keeps limits
    of its own. Where vLLM reads another prompt than the trainer, BadData says so at once.
    """
    if generation.mode == "colocate":
        generation.llm.generate = partial(_generate, generation.llm.generate, processor)
    else:
        generation._place_features = partial(_place, generation._place_features, processor)


def collapsed(ids: Sequence[int], pads: frozenset[int]) -> list[int]:
    """The token ids with every run of one of `pads` as a single token."""
    kept: list[int] = []
    for token, run in groupby(ids):
        kept += [token] if token in pads else run
    return kept


def _pads(processor: Any) -> frozenset[int]:
    """The tokens of which a picture takes many: an image's, and a video's where there is one."""
    found = (getattr(processor, f"{kind}_token_id", None) for kind in ("image", "video"))
    return frozenset(token for token in found if token is not None)


def _generate(
    generate: Callable[..., list[Any]],
    processor: Any,
    prompts: Sequence[Mapping[str, Any]],
    *args: Any,
    **kwargs: Any,
) -> list[Any]:
    """vLLM's `LLM.generate` of the trainer's prompts. Raises BadData where it has read others."""
    pads, limits = _pads(processor), pixel_limits(processor)
    found = generate([_asked(prompt, pads, limits) for prompt in prompts], *args, **kwargs)
    for prompt, output in zip(prompts, found, strict=True):
        _check_same(prompt["prompt_token_ids"], output.prompt_token_ids, processor)
    return found


def _asked(
    prompt: Mapping[str, Any], pads: frozenset[int], limits: Mapping[str, int]
) -> Mapping[str, Any]:
    if not prompt.get("multi_modal_data"):
        return prompt  # nothing is expanded in a text
    asked = {**prompt, "prompt_token_ids": collapsed(prompt["prompt_token_ids"], pads)}
    return {**asked, "mm_processor_kwargs": dict(limits)} if limits else asked


def _check_same(trained: Sequence[int], read: Sequence[int], processor: Any) -> None:
    if list(trained) == list(read):
        return
    token = processor.image_token_id
    raise BadData(
        f"use_vllm: vLLM read a prompt of {len(read)} tokens, {list(read).count(token)} of them "
        f"image tokens, expected the trainer's {len(trained)} and {list(trained).count(token)}: "
        "it prepares this model's pictures in another way: leave use_vllm out"
    )


def _place(
    place: Callable[..., Any],
    processor: Any,
    features: Mapping[str, Any] | None,
    prompt_ids: Sequence[int],
) -> Any:
    """TRL's `_place_features`: points a server's pictures at the trainer's image tokens.

    Raises BadData where the server's pictures are of another number of tokens.
    """
    placed = place(features, prompt_ids)
    if features is None:
        return placed
    served, trained = (
        [part["length"] for part in found["mm_placeholders"]["image"]]
        for found in (features, placed)
    )
    if served != trained:
        limits = ", ".join(f'"{name}": {value}' for name, value in pixel_limits(processor).items())
        raise BadData(
            f"use_vllm: the vLLM server makes {served} image tokens of a prompt's pictures, "
            f"expected {trained} as the trainer does: "
            f"start it with vllm serve --mm-processor-kwargs '{{{limits}}}'"
        )
    return placed
