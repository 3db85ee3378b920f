"""One process at a time writes a folder: a second run beside the first would mix its bytes into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reeltalk.errors import ArtifactError

try:
    import fcntl
except ImportError:  # no POSIX: nothing is locked
    fcntl = None  # type: ignore[assignment]


@contextmanager
def only_writer(folder: Path, *, out: Path | None = None) -> Iterator[None]:
    """Hold `folder`, which is made where it is missing, until the block or the process ends, however that comes.

    Raises ArtifactError, naming `out` where that is another folder, if another run holds it.
    """
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None or os.environ.get("LOCAL_RANK", "0") != "0":  # of several devices' processes the first holds it
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        if not _is_locked(held) or not folder.exists() or not os.path.samestat(os.fstat(held), folder.stat()):
            raise ArtifactError(f"another run is writing {out or folder}; wait for its end, or choose another folder")
        yield
    finally:
        os.close(held)


def _is_locked(held: int) -> bool:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
