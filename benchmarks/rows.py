"""What every benchmark script prints, and what the table is made of.

A script prints one JSON line a `Measurement`; `benchmarks.run` sets those of reeltalk beside the peers' of the same
name and writes one `Row` a pair. Standard library only: peers' environments import this file.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

OURS = "reeltalk"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number that one system reached. `name` is the same for all systems that do the same work.

    Units s, ms and MiB are the better the smaller, units that end in /s the better the larger; others make no ratio.
    `note` says what a reader must know to judge the number, such as "a tenth of the pass, times ten".
    """

    name: str
    value: float
    unit: str
    system: str = OURS
    seed: int | None = None
    note: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: our number and a peer's from the same run on the same machine.

    `ratio` is how many times better ours is. Where only one side measured, the other's value and the ratio are None.
    """

    benchmark: str
    name: str
    value: float | None
    unit: str
    peer: str | None
    peer_value: float | None
    ratio: float | None
    repeats: int
    note: str
    hardware: dict[str, str | int | float]
    versions: dict[str, str]
    seed: int | None


def emit(measurement: Measurement) -> None:
    """Print a measurement as one JSON line on stdout, at once."""
    print(json.dumps(asdict(measurement)), flush=True)


def read_measurements(output: str) -> list[Measurement]:
    """The measurements among the lines that a script printed."""
    return [Measurement(**json.loads(line)) for line in output.splitlines() if line.startswith('{"name": ')]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of these installed packages."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def hardware() -> dict[str, str | int | float]:
    """Processor, cores this process may use, the matrix units that matter, and memory in GiB."""
    model, flags = platform.machine(), set[str]()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        key, _, text = line.partition(":")
        if key.strip() == "model name":
            model = text.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(text.split())
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model, "cores": available_cores(), "units": " ".join(units), "memory_gib": round(memory, 1)}


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far.

    Read from /proc and not from getrusage, whose value a child inherits from the process that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM line; peak memory is measured on Linux only")
