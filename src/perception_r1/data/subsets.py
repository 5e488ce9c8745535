"""How many of a data set's samples are wanted, and which: random subsets in which every source keeps its share."""

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from fractions import Fraction

from ..records import BadData, Sample


def parse_count(text: str) -> int:
    """A number of samples as people write it.

    >>> parse_count("500"), parse_count("5k"), parse_count("1.5k"), parse_count("2M")
    (500, 5000, 1500, 2000000)
    """
    digits = text.strip().lower()
    unit = {"k": 1000, "m": 1_000_000}.get(digits[-1:], 1)
    number = digits[:-1] if unit > 1 else digits
    if not number.replace(".", "", 1).isascii() or not number.replace(".", "", 1).isdecimal() or Fraction(number) * unit % 1 or Fraction(number) == 0:
        raise BadData(f"sample: found {text!r}, expected a whole number of at least 1, as 500 or 5k")
    return int(Fraction(number) * unit)


def subset(samples: Sequence[Sample], number: int, seed: int = 0) -> list[Sample]:
    """A random `number` of samples in their old order, the same for the same seed. Raises BadData when there are fewer.

    Stratified: every source (in counting: every source and asked label) keeps its share; see `draw`.
    """
    strata = [(sample.task, sample.source or "", sample.query if sample.task == "counting" else "") for sample in samples]
    return [samples[index] for index in draw(strata, number, seed)]


def draw(strata: Sequence[Hashable], number: int, seed: int = 0) -> list[int]:
    """Which `number` of the items whose strata are given; indices in order. Raises BadData when there are fewer.

    Of every stratum its share of the whole is taken, rounded up or down. Each item is as likely as any other: all are laid in
    one line, stratum after stratum and shuffled within, and taken at even steps from a random start.
    """
    if not 1 <= number <= len(strata):
        raise BadData(f"sample: found {len(strata)} samples, expected at least the {number} asked for, and to be asked for 1 or more")
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        members[stratum].append(index)
    rng = random.Random(seed)
    line = [index for _, indices in sorted(members.items()) for index in rng.sample(indices, len(indices))]
    start = rng.randrange(len(line))
    return sorted(line[(k * len(line) + start) // number] for k in range(number))
