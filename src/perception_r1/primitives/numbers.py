"""Numbers in text that others wrote: one strict way to read them."""

import math
import re

# Only ASCII: Python's float takes digits of any script and underscores, and disagrees with
# str.strip about what white space is (U+001C to U+001F).
_NUMBER = re.compile(
    r"[ \t\n\r\f\v]*+"
    r"([+-]?+(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?+[0-9]++)?)"
    r"[ \t\n\r\f\v]*+"
)


def number_in(text: str) -> float | None:
    """The finite number that a text is, in ASCII digits with ASCII white space around; else None.

    No underscores, no digits of other scripts, no `inf` and `nan`, nothing that overflows.

    >>> number_in(" -1.5e1 "), number_in("1_000"), number_in("１"), number_in("1e999")
    (-15.0, None, None, None)
    """
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    value = float(found[1])
    return value if math.isfinite(value) else None
