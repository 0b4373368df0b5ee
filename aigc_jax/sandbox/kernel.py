"""What confines a program: the kernel's limits, a seccomp filter and Landlock, and an audit hook of Python.

The processes of the sandbox use this file without the package. README.md says what is guaranteed.
"""

import ctypes
import fcntl
import os
import platform
import resource
import signal
import struct
import sys
from typing import NamedTuple

_FILES = 64  # open files
# System calls with their numbers on x86_64 and, behind a slash, on aarch64. Those in _ALLOWED are permitted. Those in
# _KILLED end the process, and any other fails with EPERM.
_ALLOWED = """
read 0/63 write 1/64 close 3/57 fstat 5/80 newfstatat 262/79 stat 4 lstat 6 statx 332/291 lseek 8/62 mmap 9/222
mprotect 10/226 munmap 11/215 brk 12/214 mremap 25/216 madvise 28/233 futex 202/98 rt_sigaction 13/134
rt_sigprocmask 14/135 rt_sigreturn 15/139 sigaltstack 131/132 pread64 17/67 readv 19/65 writev 20/66 access 21
faccessat 269/48 faccessat2 439/439 getdents64 217/61 getcwd 79/17 readlink 89 readlinkat 267/78 dup 32/23 dup2 33
dup3 292/24 sched_yield 24/124 nanosleep 35/101 clock_nanosleep 230/115 clock_gettime 228/113 clock_getres 229/114
gettimeofday 96/169 time 201 times 100/153 getpid 39/172 getppid 110/173 gettid 186/178 getuid 102/174 geteuid 107/175
getgid 104/176 getegid 108/177 exit 60/93 exit_group 231/94 getrandom 318/278 set_robust_list 273/99 rseq 334/293
uname 63/160 sysinfo 99/179 getrusage 98/165 getrlimit 97/163 sched_getaffinity 204/123 poll 7 ppoll 271/73 select 23
pselect6 270/72 restart_syscall 219/128 membarrier 324/283 statfs 137/43 fstatfs 138/44
"""
_KILLED = """
clone 56/220 clone3 435/435 fork 57 vfork 58 execve 59/221 execveat 322/281 socket 41/198 socketpair 53/199
ptrace 101/117 kill 62/129 tkill 200/130 tgkill 234/131 unlink 87 unlinkat 263/35 rename 82 renameat 264/38
renameat2 316/276 rmdir 84
"""
_MACHINES = {'x86_64': (0, 0xC000003E), 'aarch64': (1, 0xC00000B7)}  # column above, AUDIT_ARCH
_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: LD W ABS, JEQ K, JSET K, RET K
_LANDLOCK = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}  # rights that may be handled, by version; later: 0xFFFF
_READ_FILE, _READ_DIR = 4, 8
_NO_NEW_PRIVS, _SET_SECCOMP, _PARENT_DEATH = 38, 22, 1  # prctl

_LIBC = ctypes.CDLL(None, use_errno=True)


def _numbers(table: str, column: int) -> list[int]:
    pairs = table.split()
    columns = [numbers.split('/') for numbers in pairs[1::2]]
    return [int(numbers[column]) for numbers in columns if len(numbers) > column]


def seccomp_filter():
    """The BPF program that permits only _ALLOWED, as a sock_fprog; None on another kernel or machine."""
    if sys.platform != 'linux' or platform.machine() not in _MACHINES:
        return None
    column, arch = _MACHINES[platform.machine()]
    give = lambda action: (_RETURN, 0, 0, action)
    low = lambda argument: (_LOAD, 0, 0, 16 + 8 * argument)  # struct seccomp_data, little-endian on both machines
    is_call = lambda number, skip: (_EQUAL, 0, skip, number)
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), give(_KILL), (_LOAD, 0, 0, 0)]
    for number in _numbers(_ALLOWED, column):
        code += [is_call(number, 1), give(_ALLOW)]
    for number in _numbers(_KILLED, column):
        code += [is_call(number, 1), give(_KILL)]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | (os.O_TMPFILE & ~os.O_DIRECTORY)
    for number, flags in ((2, 1), (257, 2)) if column == 0 else ((56, 2),):  # open, openat
        code += [is_call(number, 4), low(flags), (_ANY_BIT, 0, 1, writing), give(_EPERM), give(_ALLOW)]
    # fcntl: duplicate and ask; F_SETOWN could send signals. ioctl: is it a terminal?
    for number, commands in (((72, 25)[column], (0, 1, 2, 3, 1030)), ((16, 29)[column], (0x5401, 0x5413, 0x5451))):
        code += [is_call(number, 2 + 2 * len(commands)), low(1)]
        for command in commands:
            code += [(_EQUAL, 0, 1, command), give(_ALLOW)]
        code += [give(_EPERM)]
    # prlimit64: ask, with no new limit.
    code += [is_call((302, 261)[column], 6), low(2), (_EQUAL, 0, 3, 0), (_LOAD, 0, 0, 36), (_EQUAL, 0, 1, 0)]
    code += [give(_ALLOW), give(_EPERM), give(_EPERM)]
    packed = b''.join(struct.pack('HBBI', *line) for line in code)
    buffer = ctypes.create_string_buffer(packed)
    program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(code), ctypes.addressof(buffer)))
    program.code = buffer  # as long as this lives
    return program


def landlock_ruleset() -> int | None:
    """A descriptor of rules that permit only to read the libraries of the interpreter and the system; None where the
    kernel has no Landlock."""
    if sys.platform != 'linux' or platform.machine() not in _MACHINES:
        return None
    version = _LIBC.syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return None
    rights = struct.pack('Q', _LANDLOCK.get(version, 0xFFFF))
    rights += struct.pack('Q', 3) * (version >= 4)  # bind and connect of TCP
    rights += struct.pack('Q', 3) * (version >= 6)  # abstract sockets and signals to others
    ruleset = _LIBC.syscall(444, rights, ctypes.c_size_t(len(rights)), 0)
    if ruleset < 0:
        return None
    libraries = ['/lib', '/lib64', '/usr/lib', '/usr/lib64', '/usr/local/lib', '/etc/ld.so.cache', '/dev/urandom']
    for place in {*sys.path, *libraries}:
        if not os.path.exists(place):
            continue
        opened = os.open(place, os.O_PATH | os.O_CLOEXEC)
        allowed = _READ_FILE | (_READ_DIR if os.path.isdir(place) else 0)
        failed = _LIBC.syscall(445, ruleset, 1, struct.pack('=Qi', allowed, opened), 0)
        os.close(opened)
        if failed:
            return None
    return ruleset


_EVENTS = frozenset(
    'os.remove os.rename os.rmdir os.mkdir os.link os.symlink os.truncate os.chmod os.chown os.chflags os.lchmod '
    'os.lchown os.utime os.setxattr os.removexattr os.lockf os.system os.exec os.fork os.forkpty os.posix_spawn '
    'os.spawn os.startfile os.kill os.killpg os.putenv os.unsetenv pty.spawn subprocess.Popen resource.setrlimit '
    'resource.prlimit signal.pthread_kill gc.get_objects gc.get_referrers gc.get_referents sys.addaudithook '
    '_thread.start_new_thread _thread.start_joinable_thread'.split()
)
_GROUPS = ('socket.', 'ctypes.', 'shutil.', 'tempfile.', 'fcntl.', 'urllib.', 'ftplib.', 'http.', 'smtplib.')
_MODULES = frozenset('ctypes _ctypes _posixsubprocess _socket _multiprocessing'.split())
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def deny(end):
    """Ends the process with the status 'forbidden' at the first event that a program has no business with."""

    def hook(event, args, events=_EVENTS, groups=_GROUPS, modules=_MODULES, writing=_WRITING):
        if event == 'open':
            path, mode, flags = args
            bad = not isinstance(path, int) and ((flags or 0) & writing or (mode and not {*mode}.isdisjoint('wax+')))
        elif event == 'import':
            bad = args[0] in modules
        else:
            bad = event in events or event.startswith(groups)
        if bad:
            end('forbidden', event + (f' {args[0]!s}' if event in ('open', 'import') else ''))

    sys.addaudithook(hook)


class Layers(NamedTuple):
    """seccomp: a filter; landlock: a descriptor of rules. None: this kernel has none."""

    seccomp: ctypes.Array | None
    landlock: int | None


def layers() -> Layers:
    return Layers(seccomp_filter(), landlock_ruleset())


def end_with_parent(number: int) -> None:
    """This process gets the signal when its parent ends, where the kernel can do that."""
    if sys.platform == 'linux':
        _LIBC.prctl(_PARENT_DEATH, number)


def confine(descriptors: list[int], seconds: float, memory: int, cwd: str, held_by: Layers, parent: int) -> None:
    """Jails this process. The descriptors become 0, 1, 2, …; it has no others."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before this process asked for its signal
        os._exit(1)
    kept = [*descriptors] if held_by.landlock is None else [*descriptors, held_by.landlock]
    for number, descriptor in enumerate([fcntl.fcntl(kept_one, fcntl.F_DUPFD, 32) for kept_one in kept]):
        os.dup2(descriptor, number)
    os.closerange(len(kept), 1024)
    os.chdir(cwd)
    most = dict(AS=memory, CPU=int(seconds) + 1, FSIZE=0, CORE=0, NPROC=0, NOFILE=_FILES)
    for name, soft in most.items():
        number = getattr(resource, f'RLIMIT_{name}')
        # The soft limit of the CPU time sends a signal that tells what happened; a second later the hard one kills.
        hard, present = soft + (name == 'CPU'), resource.getrlimit(number)[1]
        hard = hard if present == resource.RLIM_INFINITY else min(hard, present)
        resource.setrlimit(number, (min(soft, hard), hard))
    if any(layer is not None for layer in held_by):
        _LIBC.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) and os._exit(1)
    if held_by.landlock is not None:
        _LIBC.syscall(446, len(descriptors), 0) and os._exit(1)
        os.close(len(descriptors))
    if held_by.seccomp is not None:
        _LIBC.prctl(_SET_SECCOMP, 2, held_by.seccomp, 0, 0) and os._exit(1)
