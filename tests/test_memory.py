"""Kept memory is not faulted in again, and can be given back."""

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is tuned")
def test_large_blocks_are_faulted_in_once() -> None:
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", ALLOCATE, mode], check=True, capture_output=True).stdout)
        for mode in ("default", "keep")
    }
    if faults["default"] < 10_000:
        pytest.skip("this system faults in huge pages; there is nothing to keep")
    assert faults["keep"] < faults["default"] / 4


GIVE_BACK = """
import ctypes
from pathlib import Path
from reeltalk.memory import give_back_memory, keep_freed_memory

def held():
    return int(Path("/proc/self/statm").read_text().split()[1])

assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
before = held()
blocks = [libc.malloc(2**20) for _ in range(200)]
for block in blocks:
    libc.memset(block, 1, 2**20)
for block in blocks[::2]:
    libc.free(block)
kept = held()
give_back_memory()
print((kept - held()) / (kept - before))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is tuned")
def test_what_lies_between_blocks_in_use_is_given_back() -> None:
    share = subprocess.run([sys.executable, "-c", GIVE_BACK], check=True, capture_output=True).stdout
    assert 0.4 < float(share) < 0.6
