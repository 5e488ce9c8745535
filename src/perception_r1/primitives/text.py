"""Distances of texts and of sequences of words."""

import re
from collections.abc import Hashable, Sequence

from rapidfuzz.distance import Levenshtein

_CHINESE = re.compile("[\u4e00-\u9fa5]")


def normalised_edit_distance(a: str, b: str) -> float:
    """Levenshtein distance of two texts, in characters, over the longer length: in [0, 1], 0 for two empty texts.

    >>> normalised_edit_distance("kitten", "sitting")
    0.42857142857142855
    >>> normalised_edit_distance("", "")
    0.0
    """
    return Levenshtein.normalized_distance(a, b)


def edits(found: Sequence[Hashable], true: Sequence[Hashable]) -> int:
    """Levenshtein distance: how many characters of a text, or words of a list, are inserted, deleted or replaced.

    >>> edits("kitten", "sitting"), edits(["a", "b", "c"], ["a", "c"])
    (3, 1)
    """
    return Levenshtein.distance(found, true)


def set_agreement(found: Sequence[Hashable], true: Sequence[Hashable]) -> tuple[float, float, float]:
    """F1, precision and recall of the set of found words against the set of true ones; 0 where nothing is in common.

    >>> set_agreement(["a", "b", "b"], ["b", "c", "d"])
    (0.4, 0.5, 0.3333333333333333)
    """
    found_set, true_set = set(found), set(true)
    common = len(found_set & true_set)
    if not common:
        return 0.0, 0.0, 0.0
    return 2 * common / (len(found_set) + len(true_set)), common / len(found_set), common / len(true_set)


def has_chinese(text: str) -> bool:
    """Whether a text has a Chinese character of the basic block.

    >>> has_chinese("page 1"), has_chinese("第1页")
    (False, True)
    """
    return bool(_CHINESE.search(text))
