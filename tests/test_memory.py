"""Kept memory is not faulted in again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ALLOCATE = """
import ctypes, resource, sys
from reeltalk.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block = libc.malloc(64 * 2**20)
    libc.memset(block, 1, 64 * 2**20)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


PEAK = """
from reeltalk.memory import forget_peak, keep_freed_memory, peak_bytes

keep_freed_memory()
before = peak_bytes()
block = bytearray(b"x") * (256 << 20)
assert peak_bytes() > before + (200 << 20)
del block
print(forget_peak() and peak_bytes() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is tuned")
def test_large_blocks_are_faulted_in_once() -> None:
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", ALLOCATE, mode], check=True, capture_output=True).stdout)
        for mode in ("default", "keep")
    }
    if faults["default"] < 10_000:
        pytest.skip("this system faults in huge pages; there is nothing to keep")
    assert faults["keep"] < faults["default"] / 4


RESIDENT = """
import ctypes, sys
from pathlib import Path
from reeltalk.memory import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

assert keep_freed_memory(but_large=sys.argv[1] == "large")
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
before = resident()
for size in (16, 64):
    block = libc.malloc(size * 2**20)
    libc.memset(block, 1, size * 2**20)
    libc.free(block)
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is tuned")
def test_large_blocks_are_given_back_where_asked() -> None:
    kept, left = (
        int(subprocess.run([sys.executable, "-c", RESIDENT, mode], check=True, capture_output=True).stdout)
        for mode in ("all", "large")
    )
    assert kept >= 60 and 12 <= left <= 24


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives back what it kept")
def test_a_peak_is_counted_anew() -> None:
    more = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True).stdout.strip()
    if more == "False":
        pytest.skip("this system does not let a process forget its peak")
    assert int(more) < 64 << 20
