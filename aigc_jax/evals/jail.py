"""The inside of the sandbox: run as a script, by `sandbox.Sandbox`, without the package and without site-packages.

The server reads requests from its stdin, forks one child for each, and answers how that ended. Nothing here is imported
by the package; `sandbox` says what is guaranteed.
"""

import collections  # noqa: F401  what programs import often is imported once, before the forks
import ctypes
import functools  # noqa: F401
import gc
import heapq  # noqa: F401
import itertools  # noqa: F401
import json
import math  # noqa: F401
import os
import platform
import re  # noqa: F401
import resource
import select
import signal
import struct
import sys
import time
import types
import typing  # noqa: F401

OUTPUT, FILES, MESSAGE = 1 << 16, 64, 200  # bytes that may be printed, open files, characters of a message
_VERDICT = 3  # the child's descriptor for its verdict; 0 is /dev/null, 1 and 2 are what it prints
# System calls with their numbers on x86_64 and, behind a slash, on aarch64. These alone are answered; _KILLED end the
# process, any other gets EPERM.
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
    """The BPF program that answers _ALLOWED alone, as a sock_fprog; None on another kernel or machine."""
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
    """A descriptor of rules under which the interpreter's and the system's libraries can be read, and nothing else
    be opened, made or removed; None where the kernel has no Landlock."""
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


def _deny(end):
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


def _child(program: str, limits: dict, cwd: str, out: int, verdict: int, token: str, kernel) -> None:
    """Runs the program; never returns."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    seccomp, ruleset = kernel
    kept = [os.dup2(null, 0), os.dup2(out, 1), os.dup2(out, 2)]
    if ruleset is not None:
        ruleset = os.dup2(ruleset, 200)
    os.dup2(verdict, _VERDICT)
    os.closerange(len(kept) + 1, 200)
    os.closerange(201, 1024)
    os.chdir(cwd)
    if sys.platform == 'linux':
        _LIBC.prctl(_PARENT_DEATH, signal.SIGKILL)  # no server, no child
    most = dict(AS=limits['memory'], CPU=int(limits['seconds']) + 1, FSIZE=0, CORE=0, NPROC=0, NOFILE=FILES)
    for name, soft in most.items():
        number = getattr(resource, f'RLIMIT_{name}')
        # The signal of the soft limit of the CPU time tells what happened; a second later the hard one kills.
        hard, present = soft + (name == 'CPU'), resource.getrlimit(number)[1]
        hard = hard if present == resource.RLIM_INFINITY else min(hard, present)
        resource.setrlimit(number, (min(soft, hard), hard))
    if seccomp or ruleset is not None:
        _LIBC.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) and os._exit(1)
    if ruleset is not None:
        _LIBC.syscall(446, ruleset, 0) and os._exit(1)
        os.close(ruleset)
    if seccomp:
        _LIBC.prctl(_SET_SECCOMP, 2, seccomp, 0, 0) and os._exit(1)

    def end(status, message='', write=os.write, leave=os._exit):  # a program may have put others in their place
        write(_VERDICT, f'{token}\n{status}\n{message[:MESSAGE]}'.encode(errors='replace'))
        leave(0)

    for name in [name for name in sys.modules if name.split('.')[0] in ('ctypes', '_ctypes', 'jail')]:
        del sys.modules[name]
    module = sys.modules['__main__'] = types.ModuleType('__main__')
    sys.argv, sys.stdin = [''], open(0)
    sys.dont_write_bytecode = True
    os.environ.clear()
    _deny(end)
    try:
        exec(compile(program, '<program>', 'exec', dont_inherit=True), module.__dict__)
        status, message = 'passed', ''
    except MemoryError as error:
        status, message = 'memory', str(error)
    except BaseException as error:  # whatever it raises, SystemExit too, it did not come to its end
        status = 'exited' if isinstance(error, SystemExit) else 'failed'
        message = ' '.join(f'{type(error).__name__}: {error}'.split())
    end(status, message)


def _run(request: dict, cwd: str, kernel) -> tuple[str, str]:
    """(status, message) of one program, in a child of its own."""
    out, child_out = os.pipe()
    verdict, child_verdict = os.pipe()
    token = os.urandom(16).hex()
    pid = os.fork()
    if not pid:
        try:
            _child(request['program'], request, cwd, child_out, child_verdict, token, kernel)
        finally:
            os._exit(1)
    os.close(child_out), os.close(child_verdict)
    status, wait_status = _watch(pid, out, verdict, time.monotonic() + request['seconds'])
    told = os.read(verdict, 1 << 12).decode(errors='replace').split('\n', 2)
    os.close(out), os.close(verdict)
    if status:
        return status, {'timeout': f'{request["seconds"]:g} s', 'output': f'{OUTPUT} bytes'}[status]
    if len(told) == 3 and told[0] == token:
        return told[1], told[2]
    if not os.WIFSIGNALED(wait_status):
        return 'exited', f'exit code {os.waitstatus_to_exitcode(wait_status)} before its end'
    number = os.WTERMSIG(wait_status)
    status = {signal.SIGSYS: 'forbidden', signal.SIGXCPU: 'timeout'}.get(number, 'exited')
    return status, signal.Signals(number).name


def _watch(pid: int, out: int, verdict: int, deadline: float) -> tuple[str | None, int]:
    """('timeout' or 'output', where it had to be ended, and its wait status). Leaves nothing of its group."""
    printed, status, poll = 0, None, select.poll()
    for fd in (out, verdict, 0):
        poll.register(fd, select.POLLIN if fd == out else 0)  # else: whether it is closed at the other end
    while status is None:
        left = deadline - time.monotonic()
        events = dict(poll.poll(max(0, left) * 1000)) if left > 0 else {}
        if 0 in events:  # the process that asked is gone
            _kill(pid)
            sys.exit()
        if out in events:
            read = os.read(out, OUTPUT)
            printed += len(read)
            if not read:
                poll.unregister(out)
            if printed > OUTPUT:
                status = 'output'
        if verdict in events:  # its last descriptor: it has ended, or will have, but for what it leaves behind
            break
        if left <= 0:
            status = 'timeout'
    if status is None and not _ended_by(pid, deadline):
        status = 'timeout'
    _kill(pid)
    return status, os.waitpid(pid, 0)[1]


def _ended_by(pid: int, deadline: float) -> bool:
    """Whether the process is one that waits to be reaped, by then."""
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has ended, or not come to its setsid
            pass


def serve(folder: str) -> None:
    """Requests {'program', 'seconds', 'memory'} on stdin, a line each, to EOF; answers [status, message] on stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked decides
    kernel = seccomp_filter(), landlock_ruleset()
    requests, answers = open(0, 'rb', buffering=0, closefd=False), os.dup(1)
    os.write(answers, json.dumps([bool(kernel[0]), kernel[1] is not None]).encode() + b'\n')
    gc.freeze()  # a collection in a child would copy every page
    cwd, read = os.path.join(folder, 'cwd'), b''
    while True:
        while b'\n' not in read:
            more = requests.read(1 << 16)
            if not more:
                return
            read += more
        line, read = read.split(b'\n', 1)
        os.mkdir(cwd)
        try:
            answer = _run(json.loads(line), cwd, kernel)
        finally:
            _remove(cwd)
        os.write(answers, json.dumps(answer).encode() + b'\n')


def _remove(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:  # without the kernel's layer it may hold something
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    try:
        serve(sys.argv[1])
    finally:
        _remove(sys.argv[1])
