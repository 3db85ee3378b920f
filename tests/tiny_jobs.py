"""Jobs for processes of their own; this module is imported there, so it imports little."""

from __future__ import annotations

import os
import signal
import time


def threads(job: int) -> tuple[int, str]:
    print("said by", job)
    return 2 * job, os.environ["OMP_NUM_THREADS"]


def dies_at_two(job: int) -> int:
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def sleeps(job: int) -> int:
    if job:
        time.sleep(600)
    return os.getpid()
