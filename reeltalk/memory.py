"""Memory that a step frees is kept for its next allocation, instead of being faulted in again; and how much it was."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1
_DEFAULT_MAPPED = 1 << 16
_LARGE = 32 << 20  # as high as glibc lets it be


def keep_freed_memory(*, but_large: bool = False) -> bool:
    """Ask glibc to keep what the process frees; True where it agreed, False where the C library is another one.

    Training and encoding allocate the same large tensors again and again. By default glibc maps each block above 32 MiB
    anew, and the system clears every page on first touch: filling a fresh tensor of 64 MiB took 26 ms of processor
    time, one in kept memory 8 ms (32 MiB: 12.5 and 2.7 ms). The price: the process stays as large as it once was.

    `but_large`: blocks from 32 MiB on are mapped anew as before. Kept ones fall to pieces, and the next does not fit.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    mapped = _DEFAULT_MAPPED if but_large else 0
    options = ((_M_MMAP_THRESHOLD, _LARGE), (_M_MMAP_MAX, mapped), (_M_TRIM_THRESHOLD, _NEVER))
    return all([libc.mallopt(*option) for option in options])


def forget_peak() -> bool:
    """Free what nobody holds, give it back and count the peak anew; False where the system cannot, as outside Linux.

    A trained system is in a cycle with its trainer, and Python looks for cycles when there are many new objects, not
    when a few are large.
    """
    gc.collect()
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most memory that the process held, since `forget_peak` where that was called."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(found[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a GPU has in all, or that the machine has."""
    if device.type == "cuda":
        from torch.cuda import get_device_properties

        return int(get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
