"""Files that can be read to their end. A FIFO or a device, which a reader would wait for, is
refused before it is opened.
"""

import os
import stat
from pathlib import Path

from ..records import BadData

OTHERS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))

MISSING = "no such file"


def expect_file(path: Path | str, expected: str) -> None:
    """Raises BadData, with what was `expected` there, unless `path` is a file: no FIFO, device,
    socket or folder. Links are followed.
    """
    if found := what_else(path):
        raise BadData(f"{path}: found {found}, expected {expected}")


def what_else(path: Path | str) -> str:
    """What is at `path` in place of a file, in words; "" where a file is."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character
        return MISSING
    except OSError as problem:
        return f"a file that cannot be opened ({problem.strerror})"
    if stat.S_ISREG(mode):
        return ""
    return next((words for is_it, words in OTHERS if is_it(mode)), "a device")
