"""Runs within a run: each has a recipe and a directory of its own and works in a process of its own.

One that was cut off continues where it was, because it is a run like any other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from melete.errors import MeleteError, RunError
from melete.schema import Recipe
from melete.stages.context import Interrupted, StageContext

_ONE_THREAD = ("MELETE_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")  # read when a process loads torch
_idle, _stopped = threading.Event(), threading.Event()  # of a worker


@dataclass(frozen=True, slots=True)
class SubRun:
    """A run to make. `after` names one that must have ended before, and `prepare` is called just before it begins."""

    name: str
    recipe: Recipe
    directory: Path
    after: str = ""
    prepare: Callable[[], None] | None = None


def run_all(runs: Sequence[SubRun], num_workers: int, context: StageContext, on_end: Callable[[SubRun], None]) -> None:
    """Makes what is left to make of `runs`, `num_workers` at a time and in their order where nothing has to wait.

    Raises `Interrupted` when asked to stop, as soon as those at work have saved themselves; and the first error of a
    run, with its name, after the others have done so.
    """
    if not runs:
        return
    spawned = multiprocessing.get_context("spawn")  # a forked torch may hang
    with _one_thread_each():
        pool = ProcessPoolExecutor(num_workers, mp_context=spawned, initializer=_begin)
        try:
            for run in _as_they_end(runs, num_workers, pool, context):
                on_end(run)
        except BaseException:
            _stop(pool)
            try:
                pool.shutdown()
            except BaseException:  # asked a second time: do not wait for the end of a step
                _stop(pool)
                raise
            raise
        pool.shutdown()


def _as_they_end(
    runs: Sequence[SubRun], num_workers: int, pool: ProcessPoolExecutor, context: StageContext
) -> Iterator[SubRun]:
    waiting, working, ended = list(runs), dict[Future[None], SubRun](), set[str]()
    while waiting or working:
        # no more are handed over than can begin at once: one that waits in the pool could not be called back
        for run in [run for run in waiting if not run.after or run.after in ended][: num_workers - len(working)]:
            waiting.remove(run)
            if run.prepare:
                run.prepare()
            working[pool.submit(_work, context.run_recipe, run.recipe, run.directory)] = run
        if not working:
            raise ValueError(f"{waiting[0].name} waits for {waiting[0].after}, which is not among the runs")
        done, _ = wait(working, timeout=0.2, return_when=FIRST_COMPLETED)
        if context.should_stop():
            raise Interrupted
        for future in done:
            run = working.pop(future)
            _result(future, run)
            ended.add(run.name)
            yield run


def _result(future: Future[None], run: SubRun) -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        remedy = "see whether memory ran out; fewer num_workers need less. The same command continues"
        raise RunError(f"the process of {run.name} ended", place=str(run.directory), remedy=remedy) from error
    except MeleteError as error:
        raise type(error)(f"{run.name}: {error.what}", place=error.place, remedy=error.remedy) from error


def _stop(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.terminate()


def _begin() -> None:
    """Prepares a worker: signals are for the run that it makes, and must not be lost between two runs."""
    _idle.set()
    os.setpgrp()  # a Ctrl-C reaches the parent, which passes it on once: a second one would mean not to wait
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _asked_to_stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _asked_to_stop(number: int, frame: FrameType | None) -> None:
    """Where no run is at work that could save itself."""
    _stopped.set()
    if not _idle.is_set():
        raise Interrupted


def _end_with_parent() -> None:
    """No worker outlives a parent that was killed; what it makes is saved first."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        _idle.wait()
        os._exit(1)


def _work(run_recipe: Callable[[Recipe, Path], None], recipe: Recipe, directory: Path) -> None:
    _idle.clear()
    try:
        if _stopped.is_set():
            raise Interrupted
        run_recipe(recipe, directory)
    finally:
        _idle.set()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
