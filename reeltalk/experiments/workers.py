"""Jobs in processes of their own: one that dies takes its job with it and no other."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

PATIENCE = 5.0  # seconds that an interrupted process has to end by itself

Work = TypeVar("Work")
Result = TypeVar("Result")

# fork would copy the threads' locks of the libraries that are loaded here
_SPAWN = get_context("spawn")


@dataclass(frozen=True)
class Died:
    """The result of a job whose process ended under it."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass
class _Worker(Generic[Work]):
    process: BaseProcess
    connection: Connection
    job: Work | None = None


class Workers(Generic[Work, Result]):
    """Processes that each do one job at a time; the processor's cores are shared out between them.

    `function` is a module's own, takes a job and returns a result; both travel between processes. What it prints goes
    to the file `log`. Leaving the context interrupts what they are doing and ends them.
    """

    def __init__(self, function: Callable[[Work], Result], *, count: int, log: Path) -> None:
        self._function, self._count, self._log = function, count, log
        self._queue: deque[Work] = deque()
        self._workers: list[_Worker[Work]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for worker in self._workers:
            worker.connection.close()  # which ends one that is idle
            if worker.job is not None and worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGINT)
        for worker in self._workers:
            worker.process.join(PATIENCE)
            worker.process.kill()  # a step's folder is whole or goes on, whenever its process ends
            worker.process.join()
        self._workers = []

    def put(self, job: Work) -> None:
        """Queue a job."""
        self._queue.append(job)

    def take(self) -> tuple[Work, Result | Died]:
        """Wait for the next job that is done; one must have been put that was not taken yet."""
        self._hand_out()
        busy = {each.connection: each for each in self._workers if each.job is not None}
        connection = wait(list(busy))[0]
        assert isinstance(connection, Connection)
        worker = busy[connection]
        job, worker.job = worker.job, None
        assert job is not None
        return job, self._result(worker)

    def _hand_out(self) -> None:
        self._workers = [worker for worker in self._workers if worker.job is not None or worker.process.is_alive()]
        idle = [worker for worker in self._workers if worker.job is None]
        while self._queue and (idle or len(self._workers) < self._count):
            worker = idle.pop() if idle else self._start()
            worker.job = self._queue.popleft()
            worker.connection.send(worker.job)

    def _start(self) -> _Worker[Work]:
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(theirs, self._function, str(self._log)), daemon=True)
        with _few_threads(self._count):
            process.start()
        theirs.close()
        worker: _Worker[Work] = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _result(self, worker: _Worker[Work]) -> Result | Died:
        try:
            result: Result = worker.connection.recv()
            return result
        except (EOFError, ConnectionResetError):
            self._workers.remove(worker)
            worker.process.join()
            code = worker.process.exitcode or 0
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            why = "; the system may have run out of memory" if code == -signal.SIGKILL else ""
            return Died(f"its process was ended {how}{why}; {self._log} has what it printed")


class Here(Generic[Work, Result]):
    """The same in this process, one job after the other, where what it shows is seen."""

    def __init__(self, function: Callable[[Work], Result]) -> None:
        self._function = function
        self._queue: deque[Work] = deque()

    def put(self, job: Work) -> None:
        """Queue a job."""
        self._queue.append(job)

    def take(self) -> tuple[Work, Result]:
        """Do the next job."""
        job = self._queue.popleft()
        return job, self._function(job)


@contextmanager
def _few_threads(count: int) -> Iterator[None]:
    """What a new process inherits: its share of the cores, where the user has not said how many threads."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    share = str(max(1, cores // count))
    chosen = {name: share for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS") if name not in os.environ}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in chosen:
            del os.environ[name]


def _serve(connection: Connection, function: Callable[[Any], Any], log: str) -> None:
    """The life of a worker: jobs in, results out."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout = sys.stderr = os.fdopen(file, "w", buffering=1)  # whole lines, even where Python runs unbuffered
    while True:
        try:
            job = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        connection.send(function(job))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
