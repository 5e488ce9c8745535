"""Where a thought ends and an answer begins: the tags in which a completion thinks.

Some chat templates open `<think>` in the prompt (Qwen3's and GLM's thinking models, DeepSeek-R1).
The completion then begins inside the thought, and its first tag is `</think>`. No reward is told
what the prompt held; the text says it: a thought that is closed was opened.
"""

import re

OPEN, CLOSE = "<think>", "</think>"
THOUGHT_TAGS = (OPEN, CLOSE)
ANSWER_TAGS = ("<answer>", "</answer>")
_TAG = re.compile("</?think>")


def opened(completion: str) -> str:
    """The completion with the `<think>` that its prompt held, if its first tag closes a thought.

    Cheats gain nothing: leaving `<think>` out earns what writing it earns, never more.

    >>> opened("I look.</think><answer>none</answer>")
    '<think>I look.</think><answer>none</answer>'
    """
    first = _TAG.search(completion)
    return OPEN + completion if first and first.group() == CLOSE else completion


def outside_thoughts(completion: str) -> tuple[str, bool]:
    """The text outside of all thoughts, and whether there was no thought.

    A thought that is still open at the end hides all that follows. A stray `</think>` closes
    nothing that opens later.

    >>> outside_thoughts("<think>dog: [1, 2, 3, 4]</think>none")
    ('none', False)
    """
    text = opened(completion)
    pieces, depth, end = [], 0, 0
    for tag in _TAG.finditer(text):
        if depth == 0:
            pieces.append(text[end : tag.start()])
        depth = max(0, depth + (1 if tag.group() == OPEN else -1))
        end = tag.end()
    if depth == 0:
        pieces.append(text[end:])
    return "\n".join(pieces).strip(), end == 0


def inside_thought(text: str) -> bool:
    """Whether a thought is still open where the text ends."""
    depth = 0
    for tag in _TAG.finditer(text):
        depth = max(0, depth + (1 if tag.group() == OPEN else -1))
    return depth > 0
