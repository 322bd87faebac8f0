"""What must hold of every case: it is taken, or refused by a message for people; and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from melete.errors import MeleteError

MAX_SECONDS = 5.0
ACCEPTED, REFUSED = "accepted", "refused"


class Broken(AssertionError):
    """A case that broke the law, and how."""


def outcome(case: Callable[[], object], directory: Path) -> str:
    """Whether the case was taken or refused. Raises `Broken` for a traceback, a hang, a message that does not say where
    or how to mend it, and for a file that a refused case left in `directory`."""
    before = _files(directory)
    with warnings.catch_warnings(), _alarm():
        warnings.simplefilter("ignore")
        try:
            case()
        except MeleteError as error:
            _check_message(error)
        except Broken:
            raise
        except OSError as error:  # of which the command line makes a message, if it says what and where
            if not (error.strerror and error.filename):
                raise Broken(f"an error of the system that does not say what or where: {error!r}") from error
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            last = "".join(traceback.format_exception(error)[-6:])
            raise Broken(f"a traceback instead of a message:\n{last}") from error
        else:
            return ACCEPTED
    left = sorted(str(path) for path in _files(directory) - before)
    if left:
        raise Broken(f"a refused case left files behind: {', '.join(left)}")
    return REFUSED


def _check_message(error: MeleteError) -> None:
    for part in ("what", "place", "remedy"):
        text = getattr(error, part)
        if not isinstance(text, str) or not text.strip():
            raise Broken(f"the message has no {part}: {error!r}") from error
    if len(str(error)) > 20_000:
        raise Broken(f"a message of {len(str(error))} letters: {str(error)[:300]}...") from error
    if any("\ud800" <= letter <= "\udfff" for letter in str(error)):
        raise Broken(f"no terminal can show this message: {error!r}") from error


def _files(directory: Path) -> set[Path]:
    return {Path(where) / name for where, _, names in os.walk(directory) for name in names}


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Broken(f"no answer within {MAX_SECONDS:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
