"""The text that every sandboxed interpreter begins with: it gives up what is left to give up, then takes a program."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

from melete.sandbox.protocol import Limits

READY = b"\x06"
MEMORY_EXIT, FUEL_EXIT = 86, 87
FLAGS = ("-S", "-s", "-P", "-B")  # no site-packages, nothing from the user or the current directory, no bytecode files
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # all that a program sees
MAX_FILES = 64

# the program arrives as a frame on stdin, and what follows it is the program's own input
_BOOT = """
def _boot():
    import os, sys
{before}
    os.write(1, {ready!r})
    header = b""
    while not header.endswith(b"\\n"):
        header += os.read(0, 1) or os._exit(1)
    text = b""
    while len(text) < int(header):
        text += os.read(0, int(header) - len(text)) or os._exit(1)
    sys.argv = ["program"]
    return compile(text.decode("utf-8", "surrogatepass"), "<program>", "exec")
try:
    exec((_boot, globals().pop("_boot"))[0]())
except MemoryError:
    __import__("os")._exit({memory_exit})
"""

_RLIMITS = """
    import resource
    for limit, value in {limits!r}:
        resource.setrlimit(getattr(resource, limit), (value, value + (limit == "RLIMIT_CPU")))
"""


def boot_text(before: str = "") -> str:
    """The text for `python -c`; `before` is run first, indented by four."""
    return _BOOT.format(before=before, ready=READY, memory_exit=MEMORY_EXIT)


def rlimit_text(limits: Limits) -> str:
    """Sets the kernel's limits, hard ones too, so that the program cannot raise them."""
    values = [
        ("RLIMIT_CPU", math.ceil(limits.cpu_s)),
        ("RLIMIT_AS", limits.memory_bytes),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NOFILE", MAX_FILES),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MEMLOCK", 0),
        ("RLIMIT_MSGQUEUE", 0),
    ]
    return _RLIMITS.format(limits=values)


def interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def readable_paths() -> list[str]:
    """What a native interpreter has to read: its standard library and the system's shared libraries."""
    prefix = Path(sys.base_prefix)
    own = [os.__file__ and os.path.dirname(os.__file__)]
    libraries = [] if prefix == Path("/usr") else [str(prefix / "lib")]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    return [path for path in dict.fromkeys([*own, *libraries, *system]) if path and os.path.isdir(path)]


def site_packages() -> list[str]:
    """Directories below `readable_paths` that hold what the user installed; no program has a use for them."""
    stdlib = Path(os.path.dirname(os.__file__))
    names = [stdlib / "site-packages", stdlib / "dist-packages", stdlib.parent / "python3" / "dist-packages"]
    return [str(path) for path in names if path.is_dir()]
