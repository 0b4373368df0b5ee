"""Sweeps on a Slurm of two nodes that the tests start: arrays, preemption, the time limit, kills, nodes that go."""

import collections
import contextlib
import copy
import io
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout

import clusters
import pytest

from aigc_jax import study
from aigc_jax import sweep as door
from aigc_jax.studies import queue, slurm, states, status, sweeps

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 300  # that anything here may take
RATE = 'optim.generator.schedule.init_value'
# One step a call, so that a run can be struck at any step; several processes agree to stop every 5 steps.
SMALL = (
    '--config=configs/gan.py:ring8,smoke', '--config.total_steps=20', '--config.eval_every_steps=20',
    '--config.checkpoint_every_steps=10', '--config.log_every_steps=5', '--config.steps_per_call=1',
    '--config.data.num_examples=100',
)  # fmt: skip
TWO = (*SMALL, f'--sweep.{RATE}=1e-3,3e-4')
ONE = (*SMALL, f'--sweep.{RATE}=1e-3')
# A run that is a step of a job waits behind the call of the step HOLD_AT, until a signal comes or the file HOLD_UNTIL.
HOLD = """
import os

if 'HOLD_AT' in os.environ and 'SLURM_STEP_ID' in os.environ:
    import pathlib, signal, time
    from aigc_jax.training import loop

    called, until = loop.Loop.called, pathlib.Path(os.environ['HOLD_UNTIL'])

    def held(self, *arguments):
        called(self, *arguments)
        if self.step == int(os.environ['HOLD_AT']) and not until.exists():
            heard = signal.getsignal(signal.SIGTERM).__self__
            until.with_name(until.name + '.' + os.environ['SLURM_PROCID']).touch()
            while not until.exists() and not heard._number:
                time.sleep(0.02)

    loop.Loop.called = held
"""

pytestmark = pytest.mark.skipif(bool(clusters.missing()), reason=f'no Slurm is here: {", ".join(clusters.missing())}')


@pytest.fixture(scope='module')
def cluster():
    with clusters.Cluster() as found:
        yield found


@pytest.fixture(autouse=True)
def alarm():
    """A wait for Slurm that has no end fails, and holds no worker of the suite."""

    def late(number, frame):
        raise TimeoutError(f'this test took {SECONDS} s')

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Sweep:
    """A sweep in a folder of its own. at: the step at which its runs wait until `go`; None: they do not."""

    def __init__(self, cluster, folder, *arguments, at=None, processes=1, sbatch=''):
        self.cluster, self.workdir, self._go = cluster, folder / 'sweep', folder / 'go'
        self.arguments = [*arguments, f'--workdir={self.workdir}', '--launcher=slurm', f'--sbatch={sbatch}']
        self.processes = processes
        (folder / 'site').mkdir(parents=True)
        (folder / 'site' / 'sitecustomize.py').write_text(HOLD)
        path = [str(folder / 'site'), str(ROOT), os.environ.get('PYTHONPATH', '')]
        self._env = {**os.environ, **cluster.env, 'PYTHONPATH': os.pathsep.join(path)}
        if at is not None:
            self._env |= {'HOLD_AT': str(at), 'HOLD_UNTIL': str(self._go)}
        if processes > 1:  # the names of the nodes are no names of hosts here
            address = f'127.0.0.1:{_free_port()}'
            self._env |= {'JAX_COORDINATOR_ADDRESS': address, 'JAX_COORDINATOR_BIND_ADDRESS': address}

    def start(self, *flags) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, '-m', 'aigc_jax.sweep', *self._words(flags)], cwd=ROOT, env=self._env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *flags, program=door) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of the same in this process, which has imported everything."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, text in self._env.items():
                patch.setenv(name, text)
            patch.chdir(ROOT)
            patch.setattr(program, 'FLAGS', copy.deepcopy(program.FLAGS))  # as they are before any command
            try:
                program.main(['', *self._words(flags)])
            except SystemExit as ended:
                code = ended.code
        return code, out.getvalue(), err.getvalue()

    def _words(self, flags) -> list[str]:
        return ['status', f'--workdir={self.workdir}'] if flags == ('status',) else [*self.arguments, *flags]

    def submit(self) -> None:
        code, out, err = self.run()
        assert (code, out) == (0, '') and '1 submitted, as job' in err, err

    def until_held(self) -> None:
        ranks = [self._go.with_name(f'go.{k}') for k in range(self.processes)]
        self.cluster.until(lambda: all(rank.exists() for rank in ranks), SECONDS)

    def until_said(self, text: str) -> None:
        self.cluster.until(lambda: text in self.log(), SECONDS)

    def kill_run(self, row: str = '') -> None:
        """The process that trains, of the row whose name begins so."""
        for path in pathlib.Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):
                words = (path / 'cmdline').read_bytes().decode().split('\0')
                if 'aigc_jax.main' in words and f'--workdir={self.workdir}/{row}' in ' '.join(words):
                    if (path / 'comm').read_text() != 'srun\n':
                        os.kill(int(path.name), signal.SIGKILL)

    def go(self) -> None:
        """From here on nothing is held."""
        self._go.touch()

    def jobs(self, state: str = 'PENDING') -> list[str]:
        lines = self.cluster.call('squeue', '-h', '-r', '-o', '%i %T %o').splitlines()
        own = [line.split() for line in lines if f'{self.workdir.resolve()}/' in line]
        return [job for job, found, *_ in own if found == state]

    def log(self) -> str:
        return ''.join(path.read_text() for path in self.workdir.glob('*/seed-*.log'))

    def wait(self) -> tuple[int, str, str]:
        """What `run` gives of --wait. Requeued jobs start at once."""
        ended = threading.Event()

        def release():
            while not ended.wait(0.2):
                self.cluster.release()

        thread = threading.Thread(target=release)
        thread.start()
        try:
            return self.run('--wait')
        finally:
            ended.set()
            thread.join()

    def finish(self) -> None:
        """Waits for what is queued, and submits what is missing."""
        code, out, err = self.wait()
        assert code == 0, (out, err, self.log()[-3000:])

    def bits(self) -> dict[str, bytes]:
        names = 'metrics.jsonl', 'evaluation.json', 'config.json'
        runs = [path for path in self.workdir.glob('*/seed-*') if path.is_dir()]
        return {f'{run.relative_to(self.workdir)}/{name}': (run / name).read_bytes() for run in runs for name in names}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        return one.getsockname()[1]


@pytest.fixture(scope='module')
def limited(cluster, tmp_path_factory):
    """A run that is held at a step until its time is over. Slurm looks at time limits every half minute."""
    sweep = Sweep(
        cluster, tmp_path_factory.mktemp('limited'), *ONE, at=7, sbatch='--partition=steady --time=1 --signal=TERM@60'
    )  # fmt: skip
    sweep.submit()
    return sweep


@pytest.fixture(scope='module')
def local(cluster, limited, tmp_path_factory):
    """(the bits, the table) of two rates, by the local launcher."""
    sweep = Sweep(cluster, tmp_path_factory.mktemp('local'), *TWO)
    sweep.arguments = [*TWO, f'--workdir={sweep.workdir}']
    code, table, err = sweep.run()
    assert code == 0, err
    return sweep.bits(), table


def same(sweep: Sweep, bits: dict[str, bytes]) -> bool:
    found = sweep.bits()
    return bool(found) and found == {name: bits[name] for name in found}


def test_an_array_gives_what_the_local_launcher_gives(cluster, local, tmp_path):
    """While launchers are killed, and two are there at once."""
    sweep = Sweep(cluster, tmp_path / "it's 50% é", *TWO, sbatch='--partition=steady')
    code, script, _ = sweep.run('--dry_run', '--jobs=1')
    assert code == 0 and script.startswith('#!') and '#SBATCH --array=0-1%1\n' in script
    assert subprocess.run(['bash', '-n'], input=script, text=True).returncode == 0
    assert not sweep.workdir.exists()
    launchers = [sweep.start('--jobs=1', '--wait') for _ in range(2)]
    cluster.until(lambda: len(sweep.jobs('RUNNING')) == 1, SECONDS)
    launchers[0].kill()
    launchers[0].communicate()
    sweep.until_said('\ndata: ')
    cluster.kill('slurmd.n3')  # what runs there runs on
    cluster.bring('n3')
    code, out, _ = sweep.run('status')
    assert code == 0 and ': queued: job ' in out and ', JobArrayTaskLimit\n' in out
    assert out.splitlines()[-1].startswith('2 runs: 1 running, 1 queued; ')
    code, out, err = sweep.run()
    assert (code, out) == (0, '') and '2 queued or running before; 0 submitted' in err
    table, err = launchers[1].communicate(timeout=SECONDS)
    assert (launchers[1].returncode, table) == (0, local[1]), err
    assert sweep.bits() == local[0]
    assert sweep.log().count('\n$ ') == 2 and '\nerror: ' not in sweep.log()
    for manifest in sweep.workdir.glob('*/*/manifest.json'):
        assert len(json.loads(manifest.read_text())['starts']) == 1
    assert len(list((sweep.workdir / 'slurm').glob('*.sh'))) == 1
    code, out, err = sweep.run()
    assert (code, out) == (0, table) and '2 runs, 2 of them done' in err


def test_preempted_at_a_random_step_one_process_and_two(cluster, local, tmp_path):
    steps = random.Random(time.time_ns())
    one = Sweep(cluster, tmp_path / 'one', *ONE, at=steps.randrange(1, 20), sbatch='--partition=low')
    two, whole = (
        Sweep(cluster, tmp_path / name, *ONE, at=at, processes=2, sbatch=f'--partition={partition} -N2 -n2')
        for name, at, partition in (('two', steps.randrange(1, 20), 'low'), ('whole', None, 'steady'))
    )
    for sweep in (one, two, whole):
        sweep.submit()
    one.until_held()
    two.until_held()
    job = cluster.call('sbatch', '--parsable', '-p', 'high', '-N2', '--exclusive', '-o', '/dev/null', '--wrap=true')
    for sweep in (one, two):
        sweep.until_said('is requeued, and goes on from here')
    whole.finish()
    assert job.strip() not in cluster.queue()
    for sweep, bits in ((one, local[0]), (two, whole.bits())):
        sweep.finish()
        assert same(sweep, bits)
        assert sweep.log().count('\n$ ') == 2
        manifest = json.loads(next(sweep.workdir.glob('*/*/manifest.json')).read_text())
        assert len(manifest['starts']) == 2
        assert manifest['device']['processes'] == sweep.processes


@pytest.mark.skipif('AIGC_JAX_KILLS' not in os.environ, reason='depends on whole minutes of Slurm: AIGC_JAX_KILLS=1')
def test_the_time_limit_requeues(limited, local):
    limited.until_said('is requeued, and goes on from here')
    limited.go()  # on a slow machine it may not have come so far
    limited.finish()
    assert same(limited, local[0])
    assert limited.log().count('\n$ ') >= 2  # it may have been limited once more meanwhile


def test_what_is_cancelled_is_saved_and_not_requeued(cluster, local, tmp_path):
    sweep = Sweep(cluster, tmp_path, *ONE, at=13, sbatch='--partition=steady')
    sweep.submit()
    sweep.until_held()
    (job,) = sweep.jobs('RUNNING')
    cluster.call('scancel', job)
    cluster.until(lambda: job not in cluster.queue(), SECONDS)
    assert 'SIGTERM: saved at step 13' in sweep.log() and 'requeued' not in sweep.log()
    code, out, _ = sweep.run('status')
    assert code == 0 and ': stopped, step ' in out
    sweep.finish()
    assert same(sweep, local[0])
    assert sweep.log().count('\n$ ') == 2


def test_a_node_that_fails_and_comes_back_and_a_controller_that_is_killed(cluster, local, tmp_path):
    sweep = Sweep(cluster, tmp_path, *ONE, at=13, sbatch='--partition=low --nodelist=n1')
    sweep.submit()
    sweep.until_held()
    cluster.remember(*sweep.jobs('RUNNING'))
    cluster.kill('slurmctld')
    code, out, err = sweep.run('status')
    assert code == 0 and ': running, step ' in out and 'note: squeue: ' in err, (out, err)
    code, out, err = sweep.run()
    assert (code, out) == (1, '') and err.startswith('error: squeue: ') and err.count('\n') == 1
    cluster.call('slurmctld')
    cluster.until(lambda: sweep.jobs('RUNNING'), SECONDS)
    cluster.cut('n1')
    sweep.go()
    cluster.bring('n1')
    sweep.finish()
    assert same(sweep, local[0])
    assert sweep.log().count('\n$ ') == 2 and 'from step 10 on' in sweep.log()


def test_what_slurm_could_not_start_and_holds_is_told_and_released(cluster, local, tmp_path):
    """It would stay in the queue for ever."""
    sweep = Sweep(cluster, tmp_path, *ONE, sbatch='--partition=steady')
    with cluster.failing():
        code, table, err = sweep.wait()  # each of the two nodes fails once
    held = r'launch.failed.requeued.held'
    assert code == 1 and re.search(rf'note: job \d+_0: {held}; released\n', err), err
    assert re.search(rf'failed: Slurm could not start job \d+_0: {held}; the same command releases it\n', err), err
    code, out, _ = sweep.run('status')
    assert code == 0 and re.search(rf': queued: job \d+_0, {held}; the same command releases it\n', out), out
    sweep.finish()
    assert same(sweep, local[0])
    assert sweep.log().count('\n$ ') == 1 and len(list((sweep.workdir / 'slurm').glob('*.sh'))) == 1


def _strike(what: str, cluster, sweep: Sweep, launcher: subprocess.Popen, node: str) -> None:
    if what == 'launcher':
        launcher.kill()
    elif what == 'run':
        sweep.kill_run()
    elif what == 'slurmctld':  # what it has not yet written down is lost: a job may be, whose run is then begun again
        cluster.kill('slurmctld')
        cluster.call('slurmctld')
    else:
        cluster.kill(f'slurmd.{node}') if what == 'slurmd' else cluster.cut(node)
        cluster.bring(node)


@pytest.mark.skipif('AIGC_JAX_KILLS' not in os.environ, reason='AIGC_JAX_KILLS=100 kills so often')
def test_random_kills_of_launchers_runs_daemons_and_nodes(cluster, local, tmp_path):
    """Sweeps one after the other, each finished by the same command again: every table is that of quiet runs."""
    moments, left, struck = random.Random(0), int(os.environ['AIGC_JAX_KILLS']), collections.Counter()
    for number in itertools.count():
        sweep, calm = Sweep(cluster, tmp_path / str(number), *TWO, sbatch='--partition=low'), 0
        launcher = sweep.start('--wait')
        while launcher.poll() is None or launcher.returncode != 0:
            signal.alarm(SECONDS)
            if launcher.poll() is not None:
                calm += not left  # starts that nothing strikes
                assert calm < 5, (launcher.communicate(), sweep.log()[-3000:])
                launcher.communicate()
                launcher = sweep.start('--wait')
            end = time.monotonic() + moments.uniform(0, 20)
            while launcher.poll() is None and time.monotonic() < end:
                cluster.release()
                cluster.resume()
                time.sleep(0.5)
            if left and launcher.poll() is None:
                what = moments.choice(('launcher', 'run', 'slurmd', 'slurmctld', 'node'))
                _strike(what, cluster, sweep, launcher, moments.choice(('n1', 'n2')))
                left, struck = left - 1, struck + collections.Counter([what])
                print(number, what, cluster.queue(), flush=True)
        table, err = launcher.communicate()
        assert table == local[1] and sweep.bits() == local[0], (table, err)
        if not left:
            break
    print(f'{dict(struck)} struck {number + 1} sweeps')


def test_a_failure_and_a_killed_run_stop_nothing_and_are_told(cluster, local, tmp_path):
    grid = (*SMALL, f'--sweep.{RATE}=1e30,1e-3')
    sweep = Sweep(cluster, tmp_path, *grid, at=13, sbatch='--partition=steady')
    code, _, err = sweep.run()
    assert code == 0 and '2 submitted, as job' in err
    # Who asks after the kill submits what has failed once more.
    waiting = sweep.start('--wait')
    assert ' submitted' in waiting.stderr.readline()
    sweep.until_held()
    sweep.kill_run('init_value=0.001')
    table, err = waiting.communicate(timeout=SECONDS)
    assert waiting.returncode == 1, err
    lines = table.splitlines()
    assert [line.split()[1] for line in lines[1:3]] == ['0/1', '0/1']
    assert 'seed-0: failed: step ' in lines[3] and '; training stopped.' in lines[3]
    assert lines[4].endswith(
        'seed-0: failed, step 10 of 20: killed by SIGKILL, perhaps by the system for want of memory'
    )
    sweep.go()
    code, again, err = sweep.run('--wait')
    assert code == 1 and again.splitlines()[3] == lines[3], err
    assert [line.split()[1] for line in again.splitlines()[1:3]] == ['0/1', '1/1']
    for folder in sweep.workdir.glob('init_value=1e+30*'):
        shutil.rmtree(folder)
    assert same(sweep, local[0])


def test_a_study_gives_what_local_runs_give(cluster, local, tmp_path):
    """Its run has the config of the first row of the sweep."""
    fields = {words.partition('=')[0].removeprefix('--config.'): words.partition('=')[2] for words in SMALL[1:]}
    fields = {name: int(text) for name, text in fields.items()} | {RATE: 1e-3}
    (tmp_path / 'own.py').write_text(
        'from aigc_jax.studies.claims import Claim, Published, Study\n\n\ndef study():\n'
        f'    claim = Claim("a", "a holds", {str(ROOT / "configs/gan.py:ring8,smoke")!r}, "samples/modes", "max",\n'
        f'                  Published(1.0, "table 1", 1.0), fields={fields!r})\n'
        '    return Study("One", [claim], seeds=1)\n'
    )
    sweep = Sweep(cluster, tmp_path / 'runs', sbatch='--partition=steady')
    sweep.arguments = [f'--config={tmp_path / "own.py"}', *sweep.arguments]
    code, out, err = sweep.run('--dry_run', program=study)
    assert code == 0 and '#SBATCH --array=0-0\n' in out, err
    code, out, err = sweep.run(program=study)
    (run,) = sweep.workdir.glob('*/seed-0')
    assert (sweep.workdir / 'report.json').exists() and ': done' in err, (code, err)
    for name in ('metrics.jsonl', 'evaluation.json', 'config.json'):
        assert (run / name).read_bytes() in local[0].values(), name


@pytest.mark.parametrize(
    'options, words',
    [
        ('--partition=nowhere', 'invalid partition specified: nowhere'),
        ('--bogus', "unrecognized option '--bogus'"),
        ('--array=0-7', '--jobs=N says how many'),
        ('-a 1', '--jobs=N says how many'),
        ('gpu', 'is no option of sbatch'),
        ("--comment='", 'No closing quotation'),
        ('--time=1\n#SBATCH --wrap=x', 'holds characters'),
    ],
)
def test_what_sbatch_refuses_is_told_in_one_line_and_leaves_nothing(cluster, tmp_path, options, words):
    sweep = Sweep(cluster, tmp_path, *ONE, sbatch=options)
    code, out, err = sweep.run()
    assert (code, out) == (2, '') and err.startswith('error: ') and err.count('\n') == 1 and words in err, err
    assert not sweep.workdir.exists()


def test_flags_of_slurm_and_a_machine_without_it(cluster, tmp_path):
    sweep = Sweep(cluster, tmp_path, *ONE)
    for flag in ('--wait', '--sbatch=--time=1'):
        code, out, err = sweep.run('--launcher=local', flag)
        assert (code, out) == (2, '') and err == f'error: {flag.partition("=")[0]}: is for --launcher=slurm\n'
    sweep._env |= {'PATH': '/nowhere'}
    code, out, err = sweep.run()
    assert (code, out) == (2, '') and err.startswith('error: --launcher=slurm: sbatch is not here; '), err
    assert not sweep.workdir.exists()


def test_nodes_that_do_not_see_the_folder_are_told(cluster, tmp_path):
    sweep = Sweep(cluster, tmp_path / 'here', *ONE, sbatch='--partition=steady --hold')
    sweep.submit()
    (job,) = sweep.jobs()
    code, out, _ = sweep.run('status')
    assert code == 0 and ': queued: job ' in out
    (tmp_path / 'here').rename(tmp_path / 'away')
    cluster.call('scontrol', 'release', job)
    cluster.until(lambda: job not in cluster.queue(), SECONDS)
    (tmp_path / 'away').rename(tmp_path / 'here')
    code, out, err = sweep.run('status')
    assert code == 0 and out.splitlines()[-1].startswith('1 runs: 1 missing')
    assert 'note: 1 runs were submitted, are no longer queued, and wrote nothing: ' in err


def test_the_queue_of_two_thousand_runs_is_read_fast(cluster, monkeypatch, tmp_path):
    for name, text in cluster.env.items():
        monkeypatch.setenv(name, text)
    rows = tuple(sweeps.Row(f'row-{k:08x}', {}, '', 10) for k in range(2000))
    trials = sweeps.Sweep('configs/gan.py', (), rows, (0,)).trials(tmp_path)
    jobs, submitted = slurm.submit(trials, slurm.Options('--hold'))
    assert (len(jobs), submitted) == (2, trials)
    began = time.monotonic()
    found = queue.beside(status.look(trials), queue.read(tmp_path))
    seconds = time.monotonic() - began
    assert {state.kind for _, state in found} == {states.QUEUED}
    assert slurm.submit(trials, slurm.Options('--hold')) == ([], [])
    cluster.call('scancel', *jobs)
    print(f'2,000 queued runs: {seconds:.2f} s')  # with all cores busy more than on a quiet machine
    assert seconds < 20
