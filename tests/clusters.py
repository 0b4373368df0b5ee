"""A Slurm of four nodes on this machine, on loopback alone, with daemons of its own."""

import contextlib
import getpass
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time

PROGRAMS = 'slurmctld', 'slurmd', 'sbatch', 'srun', 'squeue', 'scontrol', 'munged', 'flock'
NODES = 'n1', 'n2', 'n3', 'n4'
SECONDS = 60  # for a daemon to come up, or to go
CONF = """
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge.sock
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
Prolog={root}/prolog
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
KillWait=30
MaxJobCount=20000
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=n[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs=4 RealMemory=4000
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
PartitionName=steady Nodes=n[3-4] PriorityTier=1 PreemptMode=OFF
"""


def missing() -> list[str]:
    """The programs of Slurm and munge that this machine lacks."""
    return [name for name in PROGRAMS if not shutil.which(name, path=_path())]


def _lives(pid: int) -> bool:
    """Not where it has ended, and the init of a container has not yet asked for how."""
    try:
        return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(') ')[2][0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def _path() -> str:
    return f'{os.environ.get("PATH", os.defpath)}:/usr/sbin:/sbin'


class Cluster:
    """env: what a command needs to reach it.

    Partitions: low, whose jobs those of high preempt, both on n1 and n2; steady, on n3 and n4.
    """

    def __init__(self, grace: int = 120):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix='slurm_'))  # short: the name of a socket has 108 bytes
        self.env = {'SLURM_CONF': str(self.root / 'slurm.conf'), 'PATH': _path()}
        for folder in ('state', *(f'spool/{node}' for node in NODES)):
            (self.root / folder).mkdir(parents=True)
        with contextlib.ExitStack() as bound:
            sockets = [bound.enter_context(socket.socket()) for _ in (0, *NODES)]
            for one in sockets:
                one.bind(('127.0.0.1', 0))
            port, *ports = [one.getsockname()[1] for one in sockets]
        host, user = socket.gethostname().partition('.')[0], getpass.getuser()
        ports = ','.join(map(str, ports))
        conf = CONF.format(root=self.root, port=port, ports=ports, host=host, user=user, grace=grace)
        pathlib.Path(self.env['SLURM_CONF']).write_text(conf)
        prolog = self.root / 'prolog'  # runs on a node before each job
        prolog.write_text(f'#!/bin/sh\n[ ! -e {self.root}/failing ]\n')
        prolog.chmod(0o755)
        key = self.root / 'munge.key'
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))

    def __enter__(self) -> 'Cluster':
        try:
            self.call(
                'munged', f'--key-file={self.root}/munge.key', f'--socket={self.root}/munge.sock', '--force',
                f'--pid-file={self.root}/munged.pid', f'--log-file={self.root}/munged.log',
                f'--seed-file={self.root}/munge.seed',
            )  # fmt: skip
            self.call('slurmctld')
            for node in NODES:
                self.bring(node)
            self.until(lambda: set(self.call('sinfo', '-h', '-N', '-o', '%T').split()) == {'idle'})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.call('scancel', '--user', getpass.getuser())
            self.until(lambda: not self.queue())
        self.kill('slurmctld')  # by SIGTERM it would take ten seconds to save what nobody reads
        for daemon in (*(f'slurmd.{node}' for node in NODES), 'munged'):
            self.kill(daemon, signal.SIGTERM)
        shutil.rmtree(self.root, ignore_errors=True)

    def call(self, *words: str) -> str:
        """What the command prints on stdout; it must not fail."""
        done = subprocess.run(
            words, env={**os.environ, **self.env}, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
        )  # fmt: skip
        assert not done.returncode, (words, done.stderr)
        return done.stdout

    def bring(self, node: str) -> None:
        self.call('slurmd', '-N', node)
        is_down = lambda: 'down' in self.call('sinfo', '-h', '-N', '-n', node, '-o', '%T')
        if is_down():
            with contextlib.suppress(AssertionError):  # it comes back by itself too, and then cannot be resumed
                self.call('scontrol', 'update', f'nodename={node}', 'state=resume')
            self.until(lambda: not is_down())

    def kill(self, daemon: str, number=signal.SIGKILL) -> None:
        """daemon: slurmctld, munged, or slurmd.n1. Waits until it is gone."""
        try:
            pid = int((self.root / f'{daemon}.pid').read_text())
            os.kill(pid, number)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return
        self.until(lambda: not _lives(pid))

    def remember(self, job: str) -> None:
        """Waits until what slurmctld would read again knows of the job as it is now: a state is written some seconds
        after it has changed, and a job that is not there yet when slurmctld is killed is lost."""
        mark = secrets.token_hex(8)
        self.call('scontrol', 'update', f'jobid={job}', f'comment={mark}')
        self.until(lambda: mark.encode() in (self.root / 'state' / 'job_state').read_bytes())

    def cut(self, node: str) -> None:
        """Kills all that runs on a node at once, as a power failure does. Slurm is told, which would wait else."""
        self.kill(f'slurmd.{node}')
        while found := self._of_node(node):
            # First what would tell Slurm how the others ended: then the job has failed, and is not requeued.
            for pid in sorted(found, key=lambda pid: not found[pid]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.call('scontrol', 'update', f'nodename={node}', 'state=down', 'reason=cut')

    def _of_node(self, node: str) -> dict[int, bool]:
        """{pid: whether it is a slurmstepd} of the processes of jobs on a node, and of those that look after them."""
        ours, found = f'SLURM_CONF={self.env["SLURM_CONF"]}'.encode(), {}
        for path in pathlib.Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):
                environment = (path / 'environ').read_bytes().split(b'\0')
                if ours in environment and f'SLURMD_NODENAME={node}'.encode() in environment:
                    found.setdefault(int(path.name), False)
                    parent = (path / 'stat').read_text().rpartition(') ')[2].split()[1]
                    if 'slurmstepd' in (pathlib.Path('/proc') / parent / 'comm').read_text():
                        found[int(parent)] = True
        return {pid: is_stepd for pid, is_stepd in found.items() if _lives(pid)}

    def release(self) -> None:
        """Requeued jobs start at once, not after two minutes, and are not limited again."""
        for line in self.call('squeue', '-h', '-r', '-t', 'PENDING', '-o', '%i %r').splitlines():
            if line.endswith(' BeginTime'):
                with contextlib.suppress(AssertionError):  # it may have started meanwhile
                    self.call('scontrol', 'update', f'jobid={line.split()[0]}', 'StartTime=now', 'TimeLimit=60')

    def resume(self) -> None:
        """The nodes that Slurm has drained, as those do who look after a cluster."""
        for line in self.call('sinfo', '-h', '-N', '-o', '%N %T').splitlines():
            if 'drain' in line:
                with contextlib.suppress(AssertionError):  # it may be one that is down, or resumed meanwhile
                    self.call('scontrol', 'update', f'nodename={line.split()[0]}', 'state=resume')

    @contextlib.contextmanager
    def failing(self):
        """No node starts a job inside: Slurm drains the node, and holds the job."""
        mark = self.root / 'failing'
        mark.touch()
        try:
            yield
        finally:
            mark.unlink()
            self.resume()

    def queue(self) -> dict[str, str]:
        """{job or element: its state} of all that has not ended."""
        lines = self.call('squeue', '-h', '-r', '-o', '%i %T').splitlines()
        return dict(line.split() for line in lines)

    def until(self, true, seconds: float = SECONDS) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.root
            time.sleep(0.05)
