"""Where a completion ends and where it begins, in texts of engines that keep special tokens."""

import re
from functools import lru_cache

from .records import BadData

END_TOKENS = {
    "Qwen, InternVL, LLaVA-OneVision": ("<|im_end|>", "<|endoftext|>"),
    "Llama 2, Vicuna, Mistral, InternLM": ("</s>", "<pad>"),
    "Llama 3": ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
    "Phi": ("<|end|>",),
    "Gemma": ("<end_of_turn>", "<eos>"),
    "DeepSeek": ("<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"),
    "SmolVLM, Idefics": ("<end_of_utterance>",),
    "GLM": ("<|user|>", "<|observation|>"),
}
"""By family, the tokens that end a reply or fill a batch behind it, as their tokenizers write
them.
"""
_ENDS = tuple(token for tokens in END_TOKENS.values() for token in tokens)

PLACEHOLDERS = {
    "<|image_pad|>": r"(?:<\|image_pad\|>)++",
    "<image>": r"(?:<img>(?:<IMG_CONTEXT>)++</img>|(?:<image>)++)",
    "<IMG_CONTEXT>": r"(?:<img>)?+(?:<IMG_CONTEXT>)++(?:</img>)?+",
}
"""What stands for an image in a prompt, and the pattern of what a processor makes of it.

Qwen's; LLaVA's, and InternVL's in some templates; InternVL's.
"""
_PLACEHOLDER = re.compile("|".join(f"(?:{re.escape(token)})+" for token in PLACEHOLDERS))
_GAP = r"\s*+"


def without_ends(text: str) -> str:
    """A completion without the end and padding tokens behind it. One that has none stays as it is.

    >>> without_ends("none<|im_end|>\\n<|endoftext|>"), without_ends("a </s> b ")
    ('none', 'a </s> b ')
    """
    end = kept = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        token = next((token for token in _ENDS if text.endswith(token, 0, end)), None)
        if token is None:
            return text[:kept]
        kept = end = end - len(token)


def response_of(query: str, prompt: str) -> str:
    """What follows the prompt in a query, whose image placeholders may be written once a patch.

    White space may differ, as decoding changes it beside special tokens. Raises BadData for a query
    that does not begin with its prompt.

    >>> response_of("<|image_pad|><|image_pad|>Find it.[]", "<|image_pad|>Find it.")
    '[]'
    """
    if query.startswith(prompt):
        return query.removeprefix(prompt)
    began = re.match(_prompt_pattern(prompt), query)
    if began is None:
        expected = "expected prompt and response, image placeholders expanded or not"
        raise BadData(
            f"found a query that does not begin with its prompt, {expected}: {query[:60]!r}"
        )
    return query[began.end() :]


@lru_cache(maxsize=1024)
def _prompt_pattern(prompt: str) -> re.Pattern[str]:
    pieces = [_GAP.join(map(re.escape, re.split(r"\s+", it))) for it in _PLACEHOLDER.split(prompt)]
    pattern = pieces[0]
    for image, piece in zip(_PLACEHOLDER.findall(prompt), pieces[1:], strict=True):
        token = next(token for token in PLACEHOLDERS if image.startswith(token))
        pattern += f"{_GAP}{PLACEHOLDERS[token]}{_GAP}{piece}"
    return re.compile(pattern)
