"""A function over many tasks in processes of their own; a task that kills its process fails alone."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def each(function: Callable[[T], R], tasks: Iterable[T], processes: int) -> Iterator[tuple[T, R | None]]:
    """(task, result) as they are done, in any order; the result is None where the process died with it.

    `function` and tasks must be importable and picklable, since processes are spawned; what it raises is raised here.
    """
    waiting = iter(tasks)
    pool, running = _pool(processes), dict[Future[R], T]()
    try:
        while True:
            suspects: list[T] = []
            while len(running) < processes + 1 and (task := next(waiting, None)) is not None:
                try:
                    running[_submit(pool, function, task)] = task
                except BrokenProcessPool:  # one died just now; what was handed over before says so, too
                    suspects.append(task)
                    break
            if not running and not suspects:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(task)
                else:
                    yield task, future.result()
            if suspects:  # one died, and all that waited on the pool fail with it: which one is told by itself alone
                suspects += running.values()
                running.clear()
                pool.shutdown(cancel_futures=True)
                yield from ((task, _alone(function, task)) for task in suspects)
                pool = _pool(processes)
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(function: Callable[[T], R], task: T) -> R | None:
    with _pool(1) as pool:
        try:
            return _submit(pool, function, task).result()
        except BrokenProcessPool:
            return None


def _pool(processes: int) -> ProcessPoolExecutor:
    # Spawned: a forked copy of a process with threads (torch, gRPC) may hang.
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)


def _submit(pool: ProcessPoolExecutor, function: Callable[[T], R], task: T) -> Future[R]:
    """Submit, which may start a process. One imports the program that starts it: seconds, for nothing that it needs."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        return pool.submit(function, task)
    finally:
        sys.modules["__main__"] = program


def _begin() -> None:
    """A process ends with the one that started it, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a spawned process"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
