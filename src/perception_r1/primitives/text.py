"""Distances of texts and of sequences of words."""

import re
from collections.abc import Hashable, Sequence

from rapidfuzz.distance import Levenshtein

_CHINESE = re.compile("[\u4e00-\u9fa5]")
# Chinese and Japanese put no spaces between words: there each letter is one.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]++")


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


def text_agreement(found: Sequence[Hashable], true: Sequence[Hashable], most: int) -> float:
    """1 − Levenshtein distance / longer length, in [0, 1], of two texts or lists of words.

    Only the first `most` times the true length is compared; what follows counts as inserted. So
    it takes time with the square of the true length, and a longer text never earns more for it.

    >>> text_agreement("kitten", "sitting", 10), text_agreement("ab" * 4, "ab", 3)
    (0.5714285714285714, 0.25)
    """
    longest = max(len(found), len(true))
    if not longest:
        return 1.0
    limit = most * len(true)
    inserted = max(0, len(found) - limit)
    return 1 - (edits(found[:limit], true) + inserted) / longest


def words_of(text: str) -> list[str]:
    """A text's words: what white space separates, and each Chinese or Japanese letter.

    >>> words_of("page  1, 第1页")
    ['page', '1,', '第', '1', '页']
    """
    return _WORD.findall(text)


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
