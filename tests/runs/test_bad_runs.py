"""A user's mistake with a run's folder, a run that fails, and the command line as processes of their own."""

import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from refusals import GAN, VAE, assert_refused, snapshot

from aigc_jax.core.capabilities import CausalText
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import paths
from aigc_jax.runs.folder import Run
from aigc_jax.training import trainer


def from_error(err: str) -> list[str]:
    """The lines of stderr from the error on: a run says before it what it is."""
    lines = err.splitlines()
    return lines[next((i for i, line in enumerate(lines) if line.startswith('error: ')), 0) :]


def test_no_workdir(runner):
    assert_refused(runner(VAE), '--workdir: missing')


NOT_READ = {
    'seed of a training': ((VAE, '--seed=3'), '--seed: --mode=train does not read it; set --config.seed'),
    'step of a training': ((VAE, '--step=3'), '--step: --mode=train does not read it'),
    'prompt of fields': ((VAE, '--mode=fields', '--prompt=x'), '--prompt: --mode=fields does not read it'),
    'evaluate': (('--mode=evaluate', '--temperature=0.5'), '--temperature: --mode=evaluate does not read it'),
    'sample': (('--mode=sample', '--format=stablehlo'), '--format: --mode=sample does not read it'),
    'seed of an export': (('--mode=export', '--output=x', '--seed=3'), '--seed: an export draws nothing'),
    'labels of an export': (('--mode=export', '--output=x', '--labels=3'), '--labels: an export draws nothing'),
    'number of checkpoints': (
        ('--mode=export', '--output=x', '--num_samples=3'), '--num_samples: is of a sampler, which format=hf',
    ),
}  # fmt: skip


@pytest.mark.parametrize('given, words', NOT_READ.values(), ids=NOT_READ)
def test_a_flag_that_a_mode_does_not_read(runner, tmp_path, given, words):
    assert_refused(runner(f'--workdir={tmp_path}/run', *given), words)
    assert not (tmp_path / 'run').exists()


def test_workdir_is_a_file(runner, tmp_path):
    path = tmp_path / 'run'
    path.write_text('mine')
    for mode in ('train', 'evaluate', 'sample'):
        arguments = [VAE] if mode == 'train' else []
        assert_refused(runner(f'--workdir={path}', f'--mode={mode}', *arguments), str(path))
        assert path.read_text() == 'mine'
    assert_refused(runner(f'--workdir={path}/below', VAE), str(path))


def test_workdir_is_a_link_to_nothing(runner, tmp_path):
    (tmp_path / 'run').symlink_to(tmp_path / 'there')
    assert_refused(runner(f'--workdir={tmp_path}/run', VAE), f'link to {tmp_path}/there', 'make that folder')


def test_a_field_below_a_number(runner, tmp_path):
    assert_refused(runner(VAE, f'--workdir={tmp_path}/run', '--config.seed.x=1'), 'seed is no group', 'seed=')


@pytest.mark.parametrize('field, value', [('eval.patience', -1), ('eval.ais_chains', 0), ('sample.temperature', -1.0)])
def test_a_number_out_of_its_range(runner, tmp_path, field, value):
    answer = runner(VAE, f'--workdir={tmp_path}/run', f'--config.{field}={value}')
    assert_refused(answer, f'{field}: {value}', 'or more')


@pytest.mark.parametrize('platform', ['cuda', 'nonsense'])
def test_devices_that_are_not_there(command_line, tmp_path, platform):
    done = command_line.run('vae:smoke', tmp_path / 'run', env={'JAX_PLATFORMS': platform}, returns=None)
    if done.returncode:  # a machine may have a GPU
        assert_refused((done.returncode, done.stdout, done.stderr), f'JAX_PLATFORMS={platform}')


def test_workdir_with_checkpoints_alone(runner, tmp_path):
    (tmp_path / 'checkpoints').mkdir()
    assert_refused(runner(f'--workdir={tmp_path}', VAE), str(tmp_path), 'no config.json')


@pytest.mark.parametrize('mode', ['evaluate', 'sample'])
def test_without_a_run(runner, tmp_path, mode):
    answer = runner(f'--workdir={tmp_path}/run', f'--mode={mode}')
    assert_refused(answer, f'{tmp_path}/run', 'config.json', 'train one first')
    assert not list(tmp_path.iterdir())
    (tmp_path / 'config.json').write_text('{"seed": 0')
    assert_refused(runner(f'--workdir={tmp_path}', f'--mode={mode}'), f'{tmp_path}/config.json')
    (tmp_path / 'config.json').write_text('[1]')
    assert_refused(runner(f'--workdir={tmp_path}', f'--mode={mode}'), f'{tmp_path}/config.json')
    (tmp_path / 'config.json').write_text('{}')
    assert_refused(runner(f'--workdir={tmp_path}', f'--mode={mode}'), 'seed: this field is missing')


@pytest.mark.parametrize('mode', ['evaluate', 'sample'])
def test_without_a_checkpoint(runner, smoke, tmp_path, mode):
    shutil.copy(smoke('vae') / 'config.json', tmp_path)
    before = snapshot(tmp_path)
    assert_refused(runner(f'--workdir={tmp_path}', f'--mode={mode}'), str(tmp_path), 'no checkpoint', 'train it first')
    assert snapshot(tmp_path) == before


def test_other_data_than_the_run_was_trained_on(runner, tmp_path):
    text, run = tmp_path / 'a.txt', tmp_path / 'run'
    text.write_text('the quick brown fox\n' * 500)
    arguments = ['--config=configs/gpt.py:smoke', f'--config.data.name=text:{text}', f'--workdir={run}']
    assert runner(*arguments)[0] == 0
    text.write_text('the lazy brown dog.\n' * 500)
    before = snapshot(run)
    assert_refused(runner(*arguments, '--config.total_steps=80'), 'is no longer what this run was trained on')
    assert snapshot(run) == before


@pytest.mark.parametrize('begun', [True, False])
def test_two_processes_in_one_folder(runner, smoke, tmp_path, begun):
    run = tmp_path / 'run'
    if begun:
        shutil.copytree(smoke('vae'), run)
    else:
        run.mkdir()
    arguments = VAE, f'--workdir={run}', '--config.total_steps=60'
    with open(run / '.lock', 'w') as lock:
        before = snapshot(run)  # before the lock, which goes when this process closes the file
        fcntl.lockf(lock, fcntl.LOCK_EX)
        assert_refused(runner(*arguments), f'another process trains in {run}')
        assert snapshot(run) == before
    left = run / '.config.json.0123456789abcdef.aigc_jax.tmp'
    left.write_text('{')
    with open(run / '.lock') as reader:  # who may read it alone holds nothing
        fcntl.flock(reader, fcntl.LOCK_EX)
        assert runner(*arguments)[0] == 0
    assert not left.exists()


@pytest.mark.parametrize('mode', ['train', 'evaluate', 'sample'])
def test_links_and_pipes_in_a_folder(runner, smoke, tmp_path, mode):
    """Nothing is written, removed or waited for; the folder itself may be a link."""
    run, outside = tmp_path / 'run', tmp_path / 'outside'
    shutil.copytree(smoke('vae'), tmp_path / 'folder')
    run.symlink_to(tmp_path / 'folder')
    (outside / '7.unfinished').mkdir(parents=True)
    (outside / 'mine').write_text('mine')
    arguments = [f'--workdir={run}', f'--mode={mode}', *[VAE, '--config.total_steps=60'] * (mode == 'train')]
    below = ('samples/mine.npz', 'plots/a/mine.png', 'checkpoints/20/mine', 'tb/events.out.tfevents.1')
    before = snapshot(run), snapshot(outside)
    for name in (*paths.FILES, *paths.FOLDERS, *below):
        path, kept = run / name, tmp_path / 'kept'
        if path.exists():
            path.rename(kept)
        path.parent.mkdir(exist_ok=True)
        for target in (outside if name in paths.FOLDERS else outside / 'mine', outside / 'new'):
            path.symlink_to(target)
            assert_refused(runner(*arguments), f'workdir: {path} is a link to {target}; ', 'plain files')
            path.unlink()
        os.mkfifo(path)
        assert_refused(runner(*arguments), f'workdir: {path} is no f')
        path.unlink()
        if kept.exists():
            kept.rename(path)
        elif '/a/' in name:
            path.parent.rmdir()
    assert {path: held for path, (_, held) in snapshot(run).items()} == {p: held for p, (_, held) in before[0].items()}
    assert snapshot(outside) == before[1]
    if mode == 'sample':
        code, _, err = runner(*arguments, '--num_samples=2')
        assert code == 0, err


def test_all_that_a_run_writes_is_looked_at(smoke):
    assert {path.name for path in smoke('vae').iterdir()} <= {*paths.FILES, *paths.FOLDERS}


def test_a_folder_that_another_process_began_and_ended_while_this_one_compiled(smoke, tmp_path, monkeypatch):
    run, others = tmp_path / 'run', []
    config = config_lib.from_json(smoke('vae') / 'config.json')
    begin = lambda _: others.append(snapshot(shutil.copytree(smoke('vae'), run)))
    monkeypatch.setattr(trainer.reports, 'check', begin)
    with pytest.raises(UserError, match=f'another process began {run} meanwhile'):
        trainer.train(config, Run(run))
    assert [snapshot(run)] == others


def test_parameters_come_with_their_tokenizer(runner, tmp_path):
    """BPE of other text has other pieces under the same numbers."""
    first, second = tmp_path / 'a.txt', tmp_path / 'b.txt'
    first.write_text('the quick brown fox jumps over\n' * 500)
    second.write_text('all lazy dogs are asleep here by now\n' * 500)
    own = ['--config=configs/gpt.py:smoke', '--config.data.tokenizer=bpe', '--config.data.vocab_size=270']
    assert runner(*own, f'--config.data.name=text:{first}', f'--workdir={tmp_path}/one')[0] == 0
    more = [f'--config.data.name=text:{second}', f'--config.init.run={tmp_path}/one']
    assert runner(*own, *more, f'--workdir={tmp_path}/two')[0] == 0
    one, two = (tmp_path / name / 'tokenizer.json' for name in ('one', 'two'))
    assert one.read_text() == two.read_text()


def test_fine_tuning_on_documents_adds_their_end(runner, tmp_path, leaves):
    """A model pre-trained on one document has no token for the end of one: it comes with the documents."""
    import aigc_jax
    from aigc_jax.runs.folder import Run

    one, many = tmp_path / 'one.txt', tmp_path / 'many.jsonl'
    one.write_text('the quick brown fox jumps over\n' * 300)
    many.write_text(''.join(json.dumps({'text': f'the fox {i} jumps over {i * i}\n' * 9}) + '\n' for i in range(90)))
    own = ['--config=configs/gpt.py:smoke']
    first = ['--config.data.tokenizer=bpe', '--config.data.vocab_size=270']
    assert runner(*own, *first, f'--config.data.name=text:{one}', f'--workdir={tmp_path}/one')[0] == 0
    second = [f'--config.data.name=jsonl:{many}', f'--config.init.run={tmp_path}/one', f'--workdir={tmp_path}/two']
    second += ["--config.optim.model.schedule={'name': 'constant_schedule', 'value': 0.0}"]
    code, _, err = runner(*own, *second)
    assert code == 0, err
    assert 'data.tokenizer: bpe, of 270 tokens, from init.run' in err and 'the end of a document is a new token' in err
    config, task, _ = aigc_jax.load(tmp_path / 'two')
    assert (config.data.tokenizer, task.get(CausalText).vocab_size, task.get(CausalText).eos) == ('auto', 271, 270)
    before, after = leaves(tmp_path / 'one'), leaves(tmp_path / 'two')
    grown = [name for name in before if name.startswith('params/') and before[name].shape != after[name].shape]
    assert len(grown) == 2, grown  # embedding and head
    for name in grown:
        np.testing.assert_array_equal(after[name][tuple(map(slice, before[name].shape))], before[name])
    # What is evaluated on documents later, without training on them, has no end still.
    experiment, _ = Run(tmp_path / 'one').open(overrides=[('data.name', f'jsonl:{many}')])
    assert experiment.dataset.spec.tokenizer.end is None
    refused = runner(*own, *second[:2], '--config.data.vocab_size=300', f'--workdir={tmp_path}/three')
    assert_refused(refused, 'data.vocab_size: 300', 'init.run has 270', '-1')


# On a finished run of configs/vae.py:smoke.
FINISHED = {
    'another field': ([VAE, '--config.seed=7', '--config.model.latent_dim=3'],
                      ['differing', 'seed: 7 now, 0 there', 'model.latent_dim: 3 now, 2 there']),
    'another config': ([GAN], ['differing', "task.name: 'gan' now, 'vae' there"]),
    'fewer steps': ([VAE, '--config.total_steps=20'], ['total_steps: 20 now, 40 there', 'may grow']),
    'step not there': (['--mode=evaluate', '--step=30'], ['no checkpoint of step 30', '[20, 40]']),
    'step of words': (['--mode=evaluate', '--step=newest'], ['step=newest', 'best']),
    'negative step': (['--mode=sample', '--step=-1'], ['step=-1']),
    'labels': (['--mode=sample', '--labels=1'], ['labels', 'unconditional']),
    'model overridden': (['--mode=evaluate', '--config.model.latent_dim=3'],
                         ['model.latent_dim', 'data.*', 'eval.*']),
    'steps overridden': (['--mode=sample', '--config.total_steps=80'], ['total_steps', 'data.*', 'eval.*']),
    'unknown data field': (['--mode=evaluate', '--config.data.nmae=x'], ['data.nmae', 'did you mean name']),
    'other data': (['--mode=evaluate', '--config.data.name=ring8'], ['bernoulli']),
    'split': (['--mode=evaluate', '--config.eval.final_split=tests'], ['tests', 'test']),
}  # fmt: skip


# Room is there for a checkpoint, and is gone when Orbax writes.
FILLS_UP = """
import resource
from aigc_jax.runs import store
write = store.write
def filled(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    write(*arguments)
store.write = filled
"""


@pytest.mark.parametrize('arguments, words', FINISHED.values(), ids=FINISHED)
def test_finished_run(runner, smoke, arguments, words):
    before = snapshot(smoke('vae'))
    assert_refused(runner(f'--workdir={smoke("vae")}', *arguments), *words)
    assert snapshot(smoke('vae')) == before


def test_more_steps_are_no_mistake(runner, smoke, tmp_path):
    folder = shutil.copytree(smoke('vae'), tmp_path / 'run')
    code, out, err = runner(f'--workdir={folder}', VAE, '--config.total_steps=60')
    assert code == 0, err
    assert (folder / 'checkpoints' / '60').is_dir()
    # The longer run is another one than the shorter, which its config no longer gives.
    assert_refused(runner(f'--workdir={folder}', VAE), 'total_steps: 40 now, 60 there')


def test_labels(runner, tmp_path):
    code, out, err = runner(f'--workdir={tmp_path}', VAE, '--config.model.conditional=True', '--config.total_steps=20')
    assert code == 0, err
    before = snapshot(tmp_path)
    for text, wrong in (('10', '10'), ('-1', '-1'), ('a', 'a'), ('1,,2', '')):
        refused = runner(f'--workdir={tmp_path}', '--mode=sample', f'--labels={text}')
        assert_refused(refused, f"labels: there is no class '{wrong}'; there are 0, 1, 2")
    assert snapshot(tmp_path) == before
    code, out, err = runner(f'--workdir={tmp_path}', '--mode=sample', '--labels=3,1', '--num_samples=3')
    assert code == 0, err
    assert list(np.load(out.strip())['labels']) == [3, 1, 3]
    code, out, err = runner(f'--workdir={tmp_path}', '--mode=sample', '--num_samples=12')
    assert code == 0, err
    assert list(np.load(out.strip())['labels']) == [*range(10), 0, 1]  # all in turn


# Sane up to step 45, then absurd.
EXPLODING = "name='linear_schedule', init_value=1e-4, end_value=1e30, transition_steps=1, transition_begin=45"


def test_nan(command_line, runner, leaves, tmp_path):
    """The run stops and says where; the last good checkpoint and the rows up to it stay."""
    own = tmp_path / 'own.py'
    text = (command_line.root / 'configs' / 'vae.py').read_text()
    own.write_text(re.sub(r'schedule=dict\([^)]*\)', f'schedule=dict({EXPLODING})', text))
    code, out, err = runner(f'--config={own}:smoke', f'--workdir={tmp_path}/run', '--config.total_steps=80')
    said = from_error(err)
    assert len(said) <= 3 and re.match(r'error: step 4[6-9]: model/\w+ is (nan|inf|-inf); ', said[0]), said
    assert 'last good checkpoint is 40' in said[0] and 'learning rate' in said[0]
    assert code == 1 and out == ''
    assert sorted(path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()) == ['20', '40']
    assert all(np.isfinite(leaf).all() for leaf in leaves(tmp_path / 'run').values())
    rows = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    *trained, last = (row for row in rows if row['split'] == 'train')
    assert [row['step'] for row in trained] == [10, 20, 30, 40]
    assert last == {'step': last['step'], 'split': 'train', 'diverged': 1.0}
    code, out, err = runner(f'--workdir={tmp_path}/run', '--mode=evaluate')
    assert code == 0 and out.startswith('step 40, digits, split test\n'), err


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / 'disk'
    folder.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip('only root can mount a small disk')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def files(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


def test_a_disk_that_fills_up_under_orbax_is_one_error(command_line, tmp_path):
    """Orbax and tensorstore print a traceback for each leaf."""
    done = command_line.run('gan:smoke', tmp_path / 'run', before=FILLS_UP, returns=1)
    *before, error, mend = done.stderr.splitlines()
    assert len(before) < 12 and 'Traceback' not in done.stderr
    assert error.startswith('error: ') and error.endswith('read back: File too large')
    assert 'make room' in mend and not any((tmp_path / 'run' / 'checkpoints').iterdir())


def test_full_disk(command_line, runner, leaves, assert_same_bits, small_disk):
    """Whatever meets the full disk first (config.json, a checkpoint, a picture): one error, nothing torn."""
    run, fill = small_disk / 'run', small_disk / 'fill'
    arguments = [VAE, f'--workdir={run}', '--config.eval_every_steps=40']
    assert runner(*arguments)[0] == 0
    state, before = leaves(run), files(run)
    met = []
    for kilobytes in (0, 8, 60, 180):
        fill.unlink(missing_ok=True)
        free = shutil.disk_usage(small_disk).free
        fill.write_bytes(bytes(free - 1024 * kilobytes))
        code, out, err = runner(*arguments, '--config.total_steps=80')
        said = from_error(err)
        assert code == 1 and out == '' and 1 <= len(said) <= 3, err
        assert said[0].startswith('error: ') and 'No space left on device' in said[0], err
        met.append(said[0].split(str(run))[1].split(':')[0])
        assert_same_bits(leaves(run, 40), state)
        assert files(run) == before | {name for name in files(run) if name.startswith('tb/')}
    assert '/checkpoints/60' in met and '/config.json' in met, met
    fill.unlink()
    code, out, err = runner(*arguments, '--config.total_steps=80')
    assert code == 0, err
    subprocess.run(['mount', '-o', 'remount,ro', str(small_disk)], check=True)
    code, out, err = runner(*arguments, '--config.total_steps=100')
    assert_refused((code, out, '\n'.join(from_error(err))), 'Read-only file system', str(run), code=1)
    # A finished run that cannot be written is still evaluated, up to the writing.
    code, out, err = runner(f'--workdir={run}', '--mode=evaluate')
    assert_refused((code, out, '\n'.join(from_error(err))), f'{run}/evaluations/', 'Read-only file system', code=1)
    code, out, err = runner(VAE, f'--workdir={small_disk}/other')
    assert_refused((code, out, '\n'.join(from_error(err))), 'Read-only file system', code=1)


def test_as_processes(command_line, tmp_path):
    """Processes of their own, started by one shell line each: the exit codes and streams are the shell's."""
    commands = {
        '--config=configs/vea.py --workdir=run': 'did you mean configs/vae.py',
        '--config=configs/vae.py:smoke --workdir=run --config.modle.latent_dim=3': 'did you mean model',
        '--workdir=run --mode=evaluate': 'config.json',
        '--config=configs/gan.py:smoke --workdir=run --config.task.loss=hing': 'did you mean hinge?',
    }
    shell = '\n'.join(
        f'{sys.executable} -m aigc_jax.main {line.replace("--workdir=run", f"--workdir={tmp_path}/run")} '
        f'>{tmp_path}/{n}.out 2>{tmp_path}/{n}.err; echo $?'
        for n, line in enumerate(commands)
    )
    done = subprocess.run(['sh', '-c', shell], cwd=command_line.root, capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ['2'] * len(commands)
    for n, word in enumerate(commands.values()):
        assert_refused((2, (tmp_path / f'{n}.out').read_text(), (tmp_path / f'{n}.err').read_text()), word)
    assert not (tmp_path / 'run').exists()


def test_a_home_that_cannot_be_written_to(command_line, smoke, tmp_path):
    """Programs are not kept then, and nothing is said of it; Matplotlib has a folder of its own."""
    shutil.copytree(smoke('vae'), tmp_path / 'run')
    (tmp_path / 'cache').write_text('')
    before = 'import os; del os.environ["JAX_COMPILATION_CACHE_DIR"]'
    env = {'MPLCONFIGDIR': str(tmp_path), 'XDG_CACHE_HOME': f'{tmp_path}/cache'}
    process = command_line.start(None, tmp_path / 'run', '--mode=sample', '--num_samples=2', before=before, env=env)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ''), err
    assert out.endswith('sample0.npz\n')


def test_help(command_line):
    """Answers at once, for it imports little, and no jax."""
    code = 'import runpy, sys; sys.argv = ["main", "--help"]\n'
    code += 'try: runpy.run_module("aigc_jax.main", run_name="__main__")\n'
    code += 'finally: print(*sys.modules, file=sys.stderr)'
    done = command_line.python('-c', code)
    assert done.returncode == 0
    for flag in (
        '--config:',
        '--config.FIELD=VALUE',
        '--workdir:',
        '--mode:',
        '--step:',
        '--labels:',
        'num_samples',
    ):
        assert flag in done.stdout
    modules = set(done.stderr.split())
    assert not {'jax', 'numpy', 'flax', 'orbax', 'optax'} & modules
    assert len(modules) < 300  # 200 as it is, 700 with jax
    assert command_line.python('-m', 'aigc_jax.main', '--help').returncode == 0


LATE = {'tensorflow_datasets', 'tensorflow', 'matplotlib', 'sklearn', 'tensorboardX', 'grain', 'scipy.stats'}


def test_imports(command_line, tmp_path):
    """What imports slowly comes when it is needed: none of it to train on points, before an evaluation."""
    done = command_line.python('-c', 'import sys, aigc_jax.training.trainer; print(*sys.modules)')
    assert not LATE & set(done.stdout.split())
    arguments = ['--config=configs/gan.py:smoke', '--config.data.name=ring8', f'--workdir={tmp_path}/run']
    code = f"""
import sys
from absl import app
from aigc_jax import main
from aigc_jax.training import loop

def called(self, *_):
    print(*sys.modules)
    raise SystemExit(0)

loop.Loop.called = called
sys.argv = ['main', *{arguments}]
app.run(main.main, flags_parser=main.parse)
"""
    done = command_line.python('-c', code)
    assert done.returncode == 0, done.stderr
    assert 'jax' in done.stdout.split()
    assert not LATE & set(done.stdout.split())
