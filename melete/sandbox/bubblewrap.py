"""Bubblewrap: a process in name spaces of its own, with an empty, read-only file system around the interpreter."""

from __future__ import annotations

import os
import shutil
import tempfile

from melete.sandbox import seccomp
from melete.sandbox.boot import ENVIRONMENT, FLAGS, boot_text, interpreter, readable_paths, rlimit_text, site_packages
from melete.sandbox.process import PipeExecutor, popen
from melete.sandbox.protocol import STRONG, Launched, Limits, SandboxError

INSTALL = "apt-get install bubblewrap"


class Bubblewrap(PipeExecutor):
    """No network, no host files but Python's and the system's libraries, no process but its own; needs no root.

    A filter of system calls (seccomp.py) lies over the name spaces, where the machine's calls are known.
    """

    name = "bubblewrap"
    strength = STRONG

    def launch(self, limits: Limits) -> Launched:
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise SandboxError(f"bwrap is not installed: {INSTALL}")
        rules, pass_fds = [], []
        try:
            if seccomp.supported():
                pass_fds = [_memory_file(seccomp.filter_bytes(execve=True))]
                rules = ["--seccomp", str(pass_fds[0])]
            python = [interpreter(), *FLAGS, "-c", boot_text(rlimit_text(limits))]
            command = [bwrap, *rules, *_name_spaces(), *_file_system(), "--", *python]
            return popen(command, environment={}, pass_fds=pass_fds)
        finally:
            for descriptor in pass_fds:
                os.close(descriptor)


def _name_spaces() -> list[str]:
    options = ["--unshare-all", "--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    # --as-pid-1: the interpreter is the first process, so its end is the end of everything in there
    options += ["--cap-drop", "ALL", "--die-with-parent", "--new-session", "--as-pid-1", "--hostname", "sandbox"]
    options += ["--clearenv"]
    for name, value in ENVIRONMENT.items():
        options += ["--setenv", name, value]
    return options


def _file_system() -> list[str]:
    options = []
    for path in readable_paths():
        options += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for path in site_packages():
        options += ["--tmpfs", path, "--remount-ro", path]
    python = interpreter()
    if not any(python.startswith(path + "/") for path in readable_paths()):
        options += ["--ro-bind", python, python]
    return [*options, "--remount-ro", "/", "--chdir", "/"]


def _memory_file(data: bytes) -> int:
    """A file without a name, at its beginning."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        return os.dup(file.fileno())
