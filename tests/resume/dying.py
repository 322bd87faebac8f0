"""What a child process does in the tests of faults; it is imported there by its name."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def die(_recipe: Any, _directory: Any) -> None:
    """As if the system had run out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def close_then_end() -> None:
    """As a process that is killed, only slower: what it had open is closed first, and a moment later it has ended."""
    os.closerange(3, 256)
    time.sleep(0.3)
    os._exit(1)
