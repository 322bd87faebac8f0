"""A filter on system calls (seccomp, classic BPF) that leaves a Python program what it needs to compute, and no more.

It is a list of what is allowed: a call that the kernel grows tomorrow is refused. Refused are sockets, new processes,
signals, tracing, mounts, name spaces, keys, bpf, io_uring, writing to the file system's names, and the rest.
See seccomp(2); numbers are those of the kernel's unistd.h.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass

# calls that are looked at more closely below
_CHECKED = ("clone", "clone3", "fcntl", "ioctl", "prlimit64", "execve")
_X86_64 = """
    read=0 write=1 readv=19 writev=20 pread64=17 preadv=295 lseek=8 close=3 close_range=436 dup=32 dup2=33 dup3=292
    pipe=22 pipe2=293 open=2 openat=257 access=21 faccessat=269 faccessat2=439 stat=4 lstat=6 fstat=5 newfstatat=262
    statx=332 statfs=137 fstatfs=138 readlink=89 readlinkat=267 getcwd=79 getdents64=217 chdir=80 fchdir=81 mmap=9
    munmap=11 mprotect=10 mremap=25 madvise=28 brk=12 membarrier=324 rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15
    rt_sigpending=127 sigaltstack=131 pause=34 setitimer=38 getitimer=36 alarm=37 poll=7 ppoll=271 select=23
    pselect6=270 epoll_create=213 epoll_create1=291 epoll_ctl=233 epoll_wait=232 epoll_pwait=281 eventfd2=290
    futex=202 get_robust_list=274 set_robust_list=273 set_tid_address=218 rseq=334 sched_yield=24
    sched_getaffinity=204 arch_prctl=158 gettid=186 getpid=39 getppid=110 getuid=102 geteuid=107 getgid=104
    getegid=108 getgroups=115 getresuid=118 getresgid=120 getpgrp=111 getpgid=121 getsid=124 uname=63 sysinfo=99
    getrusage=98 times=100 getrlimit=97 time=201 gettimeofday=96 clock_gettime=228 clock_getres=229
    clock_nanosleep=230 nanosleep=35 getrandom=318 exit=60 exit_group=231 restart_syscall=219 wait4=61 waitid=247
    umask=95 getcpu=309 clone=56 clone3=435 fcntl=72 ioctl=16 prlimit64=302 execve=59
"""
_AARCH64 = """
    read=63 write=64 readv=65 writev=66 pread64=67 preadv=69 lseek=62 close=57 close_range=436 dup=23 dup3=24 pipe2=59
    openat=56 faccessat=48 faccessat2=439 fstat=80 newfstatat=79 statx=291 statfs=43 fstatfs=44 readlinkat=78
    getcwd=17 getdents64=61 chdir=49 fchdir=50 mmap=222 munmap=215 mprotect=226 mremap=216 madvise=233 brk=214
    membarrier=283 rt_sigaction=134 rt_sigprocmask=135 rt_sigreturn=139 rt_sigpending=136 sigaltstack=132
    setitimer=103 getitimer=102 ppoll=73 pselect6=72 epoll_create1=20 epoll_ctl=21 epoll_pwait=22 eventfd2=19 futex=98
    get_robust_list=100 set_robust_list=99 set_tid_address=96 rseq=293 sched_yield=124 sched_getaffinity=123
    gettid=178 getpid=172 getppid=173 getuid=174 geteuid=175 getgid=176 getegid=177 getgroups=158 getresuid=148
    getresgid=150 getpgid=155 getsid=156 uname=160 sysinfo=179 getrusage=165 times=153 getrlimit=163 gettimeofday=169
    clock_gettime=113 clock_getres=114 clock_nanosleep=115 nanosleep=101 getrandom=278 exit=93 exit_group=94
    restart_syscall=128 wait4=260 waitid=95 umask=166 getcpu=168 clone=220 clone3=435 fcntl=25 ioctl=29 prlimit64=261
    execve=221
"""


@dataclass(frozen=True, slots=True)
class _Machine:
    audit_arch: int
    numbers: dict[str, int]


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (item.split("=") for item in text.split())}


_MACHINES = {
    "x86_64": _Machine(0xC000003E, _numbers(_X86_64)),
    "aarch64": _Machine(0xC00000B7, _numbers(_AARCH64)),
}
_CLONE_THREAD, _CLONE_NEW = 0x10000, 0x7E020000  # threads may stay; name spaces of any kind may not be made
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; not F_SETOWN
_IOCTL_REQUESTS = (0x5450, 0x5451)  # FIONCLEX, FIOCLEX
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000


def supported() -> bool:
    """Whether the numbers of this machine's system calls are known."""
    return platform.system() == "Linux" and platform.machine() in _MACHINES and struct.calcsize("P") == 8


def filter_bytes(*, execve: bool) -> bytes:
    """The filter as an array of `struct sock_filter`; `execve` where the filter is loaded before the interpreter.

    Raises `KeyError` for a machine that `supported` denies.
    """
    machine = _MACHINES[platform.machine()]
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, machine.audit_arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for name, number in machine.numbers.items():
        if name not in _CHECKED or (name == "execve" and execve):
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code += [(_EQUAL, 0, 1, machine.numbers["clone3"]), (_RETURN, 0, 0, _ENOSYS)]  # the C library falls back to clone
    code += _argument(machine.numbers["clone"], 0, _ANY_BIT, (_CLONE_THREAD,), never=_CLONE_NEW)
    code += _argument(machine.numbers["fcntl"], 1, _EQUAL, _FCNTL_COMMANDS)
    code += _argument(machine.numbers["ioctl"], 1, _EQUAL, _IOCTL_REQUESTS)
    code += _argument(machine.numbers["prlimit64"], 0, _EQUAL, (0,))  # its own limits, which it cannot raise
    code += [(_RETURN, 0, 0, _EPERM)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _argument(
    number: int, index: int, test: int, values: tuple[int, ...], *, never: int = 0
) -> list[tuple[int, int, int, int]]:
    """Allows a call when the low half of its argument passes `test` with one of the values, else refuses it.

    A bit of `never` refuses it in any case.
    """
    body = [(_LOAD, 0, 0, _ARGUMENTS + 8 * index), (_ANY_BIT, 0, 1, never), (_RETURN, 0, 0, _EPERM)]
    for value in values:
        body += [(test, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    body += [(_RETURN, 0, 0, _EPERM)]
    return [(_EQUAL, 0, len(body), number), *body]
