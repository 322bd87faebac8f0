"""An ordinary child process that has given up its rights: no_new_privs, Landlock, seccomp and resource limits.

Weaker than name spaces: it shares the kernel's tables with the host, and can learn whether a path exists. It needs no
tool and no root, but a kernel with Landlock (5.13, 2021): without it the host's files could be read, so it refuses.
"""

from __future__ import annotations

import os

from melete.sandbox import seccomp
from melete.sandbox.boot import ENVIRONMENT, FLAGS, boot_text, interpreter, readable_paths, rlimit_text
from melete.sandbox.process import PipeExecutor, popen
from melete.sandbox.protocol import WEAK, Launched, Limits, SandboxError

# Runs inside the new interpreter before the program. prctl 1: die with the parent; 38: no new privileges; 4: not
# dumpable; 22/2: the filter. 444, 445, 446: landlock_create_ruleset, _add_rule, _restrict_self, the same everywhere.
_GIVE_UP = """
    import ctypes, struct
    libc = ctypes.CDLL(None, use_errno=True)
    def must(result, what):
        if result < 0:
            os.write(2, (what + ": " + os.strerror(ctypes.get_errno())).encode())
            os._exit(1)
        return result
    must(libc.prctl(1, 9, 0, 0, 0), "parent death signal")
    if os.getppid() != {parent}:
        os._exit(1)
    must(libc.prctl(38, 1, 0, 0, 0), "no_new_privs")
    must(libc.prctl(4, 0, 0, 0, 0), "dumpable")
    abi = must(libc.syscall(444, None, 0, 1), "Landlock")
    files = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    rules = struct.pack("QQQ", files, 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = must(libc.syscall(444, rules, ctypes.c_size_t(len(rules)), 0), "Landlock rules")
    for path in {paths!r}:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        must(libc.syscall(445, ruleset, 1, struct.pack("=Qi", 12, place), 0), "Landlock " + path)
        os.close(place)
    must(libc.syscall(446, ruleset, 0), "Landlock")
    os.close(ruleset)
    must(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)), "capabilities")
{rlimits}
    code = ctypes.create_string_buffer({filter!r}, {size})
    must(libc.prctl(22, 2, struct.pack("HP", {size} // 8, ctypes.addressof(code)), 0, 0), "seccomp")
    for name in [name for name in sys.modules if name.split(".")[0].lstrip("_") == "ctypes"]:
        del sys.modules[name]
"""


class Child(PipeExecutor):
    """A filtered child process; see the module's text for what it does not hide."""

    name = "child"
    strength = WEAK

    def launch(self, limits: Limits) -> Launched:
        if not seccomp.supported():
            raise SandboxError("the system calls of this machine are not known: Linux on x86_64 or aarch64 is needed")
        code = seccomp.filter_bytes(execve=False)
        before = _GIVE_UP.format(
            parent=os.getpid(), paths=readable_paths(), rlimits=rlimit_text(limits), filter=code, size=len(code)
        )
        return popen([interpreter(), *FLAGS, "-c", boot_text(before)], environment=ENVIRONMENT)
