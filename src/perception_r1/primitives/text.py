"""Distances of texts."""

from rapidfuzz.distance import Levenshtein


def normalised_edit_distance(a: str, b: str) -> float:
    """Levenshtein distance of two texts, in characters, over the longer length: in [0, 1], 0 for two empty texts.

    >>> normalised_edit_distance("kitten", "sitting")
    0.42857142857142855
    >>> normalised_edit_distance("", "")
    0.0
    """
    return Levenshtein.normalized_distance(a, b)
