"""Training on a CPU: keep memory that was freed, because getting it back from the kernel costs more than small models' arithmetic."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc's malloc not to return freed memory to the kernel; whether it did. Elsewhere than on Linux: nothing, False.

    Seen on 2 cores with the tiny policy: a supervised step of 32 conversations takes 0.7 s instead of 1.1 s, half of which
    went into page faults.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(name, value) for name, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28), (_MMAP_MAX, 0)))
