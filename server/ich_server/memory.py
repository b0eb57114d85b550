"""A server's process gives large pieces of memory back to the system as soon as they are done with."""

import ctypes
import gc
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Of glibc's mallopt(3)."""

_PIECE: Final = 2**20


def give_back() -> None:
    """To be called once, when everything is imported.

    Models travel in pieces of 5 MB, in threads that come and go. glibc would move the limit above which a piece has
    memory of its own up to 32 MB, and keep the gaps that are left; it is held at 1 MB. What is there already is never
    garbage: looking for garbage, which the link does after every large piece, passes it over.
    """
    gc.collect()
    gc.freeze()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not musl
            libc.mallopt(_M_MMAP_THRESHOLD, _PIECE)
            libc.mallopt(_M_TRIM_THRESHOLD, _PIECE)
