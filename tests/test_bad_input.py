"""A user's mistake: exit code 2, one to three lines that name the thing and the mend, nothing written.

Most cases share one process, which runs the command line again and again (`Runner`); a handful are processes
of their own.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

VAE, GAN = '--config=configs/vae.py:smoke', '--config=configs/gan.py:smoke'

# What app.run does, for one command line a line, whose stdout and stderr go to files (C++ writes too).
RUNNER = """
import json, os, sys, tempfile, traceback
from absl import app, logging
from absl.testing import flagsaver
from aigc_jax import main

app.define_help_flags()
logging.use_absl_handler()
answers = os.fdopen(os.dup(1), 'w')
for line in sys.stdin:
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err, flagsaver.flagsaver():
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        code = 0
        try:
            main.main(main.parse(['main', *json.loads(line)]))
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            code = 1
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        out.seek(0), err.seek(0)
        print(json.dumps([code, out.read(), err.read()]), file=answers, flush=True)
"""


class Runner:
    """runner(*arguments) -> (exit code, stdout, stderr) of the command line, in a process that stays."""

    def __init__(self, root: pathlib.Path, env: dict | None = None):
        env = {**os.environ, 'PYTHONPATH': str(root), **(env or {})}
        self._process = subprocess.Popen(
            [sys.executable, '-c', RUNNER], cwd=root, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __call__(self, *arguments) -> tuple[int, str, str]:
        print(json.dumps([str(a) for a in arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f'the process ended with exit code {self._process.wait()} at {arguments}'
        return tuple(json.loads(answer))

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope='session')
def runner(command_line):
    runner = Runner(command_line.root)
    yield runner
    runner.close()


@pytest.fixture(scope='session')
def runner8(command_line):
    """The same, with eight virtual devices."""
    runner = Runner(command_line.root, {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'})
    yield runner
    runner.close()


def assert_refused(answer, *words, code=2):
    """`answer` is one to three lines on stderr that hold all of `words`, and nothing else."""
    returned, out, err = answer
    assert returned == code, err
    assert out == ''
    assert 'Traceback' not in err
    assert 1 <= len(err.splitlines()) <= 3, err
    assert err.startswith('error: '), err
    for word in words:
        assert word in err, (word, err)


def snapshot(folder: pathlib.Path) -> dict:
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob('*')
    }


def own_config(folder, old: str, new: str, name: str = 'vae') -> str:
    """The flag for a researcher's own config: that of the project with `old` replaced by `new`."""
    text = pathlib.Path(__file__).parent.parent.joinpath('configs', f'{name}.py').read_text()
    assert old in text
    path = folder / 'own.py'
    path.write_text(text.replace(old, new))
    return f'--config={path}:smoke'


# Of the command line and the config alone: (the arguments beside --workdir, the words in the message).
COMMAND_LINES = {
    'no config': (['--mode=train'], ['--config: missing', 'configs/gan.py']),
    'config without value': (['--config'], ['--config: a value is missing']),
    'config not there': (['--config=configs/vea.py'],
                         ['no file configs/vea.py', 'did you mean configs/vae.py']),
    'config in no folder': (['--config=nowhere/vae.py'], ['no file nowhere/vae.py']),
    'config is a folder': (['--config=configs'], ['no file configs']),
    'config is no Python': (['--config=setup.cfg'], ['setup.cfg']),
    'unknown variant': (['--config=configs/vae.py:smok'], ["no variant 'smok'", 'did you mean smoke?']),
    'second variant': (['--config=configs/vae.py:smoke,pionts'],
                       ["no variant 'pionts'", 'did you mean points?']),
    'unknown group': ([VAE, '--config.modle.latent_dim=3'], ["no field 'modle'", 'did you mean model?']),
    'unknown field': ([VAE, '--config.model.latnt_dim=3'], ["model has no field 'latnt_dim'", 'latent_dim?']),
    'field below a leaf': ([VAE, '--config.seed.a=3'], ["--config.seed.a: seed has no field 'a'"]),
    'empty field': ([VAE, '--config.=3'], ["has no field ''"]),
    'a word for a number': ([VAE, '--config.seed=three'], ["--config.seed: 'three' is no int", 'holds 0']),
    'a fraction for a whole': ([VAE, '--config.total_steps=1.5'], ["'1.5' is no int", '40']),
    'a number for a tuple': ([VAE, '--config.model.encoder.features=3'], ["'3' is no tuple", '(16,)']),
    'a word for a bool': ([VAE, '--config.data.stream=yes'], ["'yes' is no bool", 'False']),
    'an int for a bool': ([VAE, '--config.data.stream=1'], ["'1' is no bool"]),
    'a bool for an int': ([VAE, '--config.seed=True'], ["'True' is no int"]),
    'group set': ([VAE, '--config.model=3'], ['--config.model: this is a group', 'latent_dim', 'encoder']),
    'field without value': ([VAE, '--config.seed'], ['--config.seed: a value is missing']),
    'field before a flag': ([VAE, '--config.seed', '--mode=train'], ['--config.seed: a value is missing']),
    'unknown flag': ([VAE, '--wrokdir=x'], ["Unknown command line flag 'wrokdir'", 'workdir', '--help']),
    'stray word': ([VAE, 'config.seed=1'], ["'config.seed=1' is no flag", '--']),
    'unknown mode': ([VAE, '--mode=evalute'], ["--mode: 'evalute'", 'did you mean evaluate?']),
    'flag of the wrong type': (['--mode=sample', '--num_samples=x'], ['num_samples', 'x']),
    'no samples': (['--mode=sample', '--num_samples=0'], ['num_samples', '0']),
    'config with sample': ([VAE, '--mode=sample'],
                           ['--config: sample reads the config of the workdir; leave it out']),
    'config with evaluate': ([VAE, '--mode=evaluate'],
                             ['--config: evaluate reads the config of the workdir']),
    'no steps': ([VAE, '--config.total_steps=0'], ['total_steps: 0 is not a whole number of 1 or more']),
    'negative batch': ([VAE, '--config.batch_size=-32'], ['batch_size: -32']),
    'uneven logs': ([VAE, '--config.log_every_steps=15'],
                    ['log_every_steps: 15', 'multiple of steps_per_call, 10']),
    'uneven evaluations': ([VAE, '--config.eval_every_steps=15'],
                           ['eval_every_steps: 15', 'steps_per_call, 10']),
    'uneven checkpoints': ([VAE, '--config.checkpoint_every_steps=15'], ['checkpoint_every_steps: 15', '10']),
    'uneven steps': ([VAE, '--config.total_steps=45'], ['total_steps: 45', 'multiple of steps_per_call, 10']),
    'best_mode': ([VAE, '--config.eval.best_mode=least'], ['eval.best_mode', "'least'", 'min or max']),
    'patience without metric': ([GAN, '--config.eval.patience=3'], ['eval.patience', 'eval.best_metric']),
}  # fmt: skip

# Of what the config asks for.
CONFIGS = {
    'optimizer': ([VAE, '--config.optim.model.name=adma'], ['optim.model.name', "'adma'", 'adam']),
    'no optimizer': ([VAE, '--config.optim.model.name=apply_updates'], ['optim.model.name', 'apply_updates']),
    'schedule': ([VAE, '--config.optim.model.schedule.name=cosine_decay'],
                 ['optim.model.schedule.name', 'cosine_decay_schedule']),
    'schedule without its argument': ([VAE, '--config.optim.model.schedule.name=exponential_decay'],
                                      ['optim.model.schedule', 'transition_steps']),
    'clip_norm': ([VAE, '--config.optim.model.clip_norm=-1'], ['optim.model.clip_norm', '-1']),
    'ema_decay': ([VAE, '--config.optim.model.ema_decay=1.5'], ['optim.model.ema_decay', '1.5']),
    'dataset': ([VAE, '--config.data.name=digit'], ['data.name', 'digit', 'did you mean digits']),
    'dataset without colon': ([VAE, '--config.data.name=npz'], ['data.name', 'npz:']),
    'dataset without place': ([VAE, '--config.data.name=npz:'], ['data.name', 'missing']),
    'task': ([VAE, '--config.task.name=vea'], ['task.name', "'vea'", 'did you mean vae?']),
    'loss': ([GAN, '--config.task.loss=hing'], ['task.loss', "'hing'", 'did you mean hinge?']),
    'likelihood': ([VAE, '--config.task.likelihood=gausian'], ['task.likelihood', 'did you mean gaussian?']),
    'activation': ([VAE, '--config.model.encoder.activation=relo'], ['activation', "'relo'", 'relu']),
    'precision': ([VAE, '--config.precision=float16'], ['precision', "'float16'", 'bfloat16']),
    'no width': ([VAE, '--config.model.encoder.features=(0,)'], ['model.encoder.features', '0']),
    'width of words': ([VAE, "--config.model.encoder.features=('a',)"], ['model.encoder.features', "'a'"]),
    'no latent': ([VAE, '--config.model.latent_dim=0'], ['model.latent_dim', '0']),
    'n_critic': ([GAN, '--config.task.n_critic=0'], ['task.n_critic']),
    'binarize': ([VAE, '--config.data.binarize=dynamc'], ['data.binarize', 'dynamic']),
    'binarize points': ([VAE, '--config.data.name=ring8', '--config.data.binarize=static',
                         '--config.task.likelihood=gaussian'], ['data.binarize', 'images', 'none']),
    'scale': ([VAE, '--config.data.scale=units'], ['data.scale', 'unit']),
    'generator on unit': ([GAN, '--config.data.scale=unit'], ['data.scale', 'symmetric']),
    'bernoulli on points': ([VAE, '--config.data.name=ring8'], ['task.likelihood: bernoulli', 'gaussian']),
    'conditional without labels': ([VAE, '--config.data.name=gaussian2d', '--config.task.likelihood=gaussian',
                                    '--config.model.conditional=True'],
                                   ['model.conditional', 'gaussian2d', 'False']),
    'k_chunk': ([VAE, '--config.eval.k=5'], ['eval.k', 'eval.k_chunk']),
    'no k_chunk': ([VAE, '--config.eval.k_chunk=0'], ['eval.k_chunk']),
    'split': ([VAE, '--config.eval.split=validation'], ['eval', "'validation'", 'valid']),
    'mode': ([VAE, '--config.parallel.mode=pmapp'], ['parallel.mode', 'pmap']),
    'replicas': ([VAE, '--config.replicas=vmpa'], ['replicas', 'vmap']),
    'mesh': ([VAE, '--config.parallel.mesh.data=3'], ['parallel.mesh', "'data': 3", '1 device']),
    'micro_batches': ([VAE, '--config.micro_batches=3'], ['batch_size: 32', 'micro_batches', '33']),
    'freeze': ([VAE, '--config.optim.model.freeze=enkoder'], ['optim.model.freeze', "'enkoder'", 'encoder']),
    'freeze, no regex': ([VAE, '--config.optim.model.freeze=('],
                         ['optim.model.freeze', 'regular expression']),
    'learning_rate_rules': ([VAE, "--config.optim.model.learning_rate_rules=(('bais', 2.0),)"],
                            ['optim.model.learning_rate_rules', "'bais'", 'bias']),
    'learning_rate_rules, flat': ([VAE, "--config.optim.model.learning_rate_rules=('bias', 2.0)"],
                                  ['optim.model.learning_rate_rules']),
    'learning_rate_rules, a word': ([VAE, "--config.optim.model.learning_rate_rules=(('bias', 'x'),)"],
                                    ['optim.model.learning_rate_rules', "'x'"]),
    'parallel.rules': ([VAE, "--config.parallel.rules=(('kernle', 'fsdp'),)"],
                       ['parallel.rules', "'kernle'", 'kernel']),
    'parallel.rules, placement': ([VAE, "--config.parallel.rules=(('kernel', 'fdsp'),)"],
                                  ['parallel.rules', "'fdsp'"]),
    'best_metric': ([VAE, '--config.eval.best_metric=model/nil'],
                    ['eval.best_metric', "'model/nil'", 'model/nll']),
    'best_metric, of samples': ([VAE, '--config.eval.best_metric=samples/coverage'],
                                ['eval.best_metric', 'model/nll']),
    'init_from': ([VAE, '--config.init_from=nowhere'], ['init_from', 'nowhere']),
    'TFDS not prepared': ([VAE, '--config.data.name=tfds:mnist', '--config.data.dir={tmp}'],
                          ['data.name=tfds:mnist', 'not prepared', 'tfds build mnist', '{tmp}']),
    'idx folder': ([VAE, '--config.data.name=idx:{tmp}/nowhere'], ['nowhere/train-images-idx3-ubyte']),
    'npz file': ([VAE, '--config.data.name=npz:{tmp}/nothing.npz'], ['nothing.npz']),
    'npz truncated': ([VAE, '--config.data.name=npz:{tmp}/cut.npz'], ['cut.npz', 'cannot be read']),
    'npz without test': ([VAE, '--config.data.name=npz:{tmp}/train.npz'], ['train.npz', 'test']),
    'amat folder': ([VAE, '--config.data.name=amat:{tmp}/nowhere'], ['nowhere', 'amat']),
    'amat truncated': ([VAE, '--config.data.name=amat:{tmp}/amat'], ['some_train.amat']),
    'idx truncated': ([VAE, '--config.data.name=idx:{tmp}/idx'], ['train-images-idx3-ubyte', 'truncated']),
}  # fmt: skip


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """A folder of damaged data."""
    folder = tmp_path_factory.mktemp('data')
    x = np.zeros((20, 4, 4), np.uint8)
    np.savez(folder / 'whole.npz', train=x, test=x)
    folder.joinpath('cut.npz').write_bytes(folder.joinpath('whole.npz').read_bytes()[:-100])
    np.savez(folder / 'train.npz', train=x)
    (folder / 'amat').mkdir()
    for split in ('train', 'valid', 'test'):
        (folder / 'amat' / f'some_{split}.amat').write_text(
            '0 1 1 0\n' * 5 + ('0 1' if split == 'train' else '')
        )
    (folder / 'idx').mkdir()
    head = bytes([0, 0, 8, 3]) + np.array([20, 4, 4], '>u4').tobytes()
    for part in ('train', 't10k'):
        (folder / 'idx' / f'{part}-images-idx3-ubyte').write_bytes(head + bytes(100))
    return folder


@pytest.mark.parametrize('arguments, words', COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_command_line(runner, tmp_path, arguments, words):
    assert_refused(runner(f'--workdir={tmp_path}/run', *arguments), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('arguments, words', CONFIGS.values(), ids=CONFIGS)
def test_config(runner, tmp_path, places, arguments, words):
    filled = [text.replace('{tmp}', str(places)) for text in [*arguments, *words]]
    before = snapshot(places)
    answer = runner(f'--workdir={tmp_path}/run', *filled[: len(arguments)])
    assert_refused(answer, *filled[len(arguments) :])
    assert not list(tmp_path.iterdir())
    assert snapshot(places) == before


OWN = {
    'syntax error': ('def get_config():\n    return (\n', ['own.py, line 2: SyntaxError']),
    'exception while read': ('x = 1\ny = x / 0\n', ['own.py, line 2: ZeroDivisionError']),
    'import': ('import no_such_module\n', ['own.py, line 1: ModuleNotFoundError', 'no_such_module']),
    'exception in get_config': ('def get_config():\n    return {}["a"]\n', ["own.py, line 2: KeyError: 'a'"]),
    'no get_config': ('def get_confg():\n    return {}\n', ['own.py', 'get_config']),
    'no ConfigDict': ('def get_config():\n    return {"seed": 0}\n', ['own.py', 'dict', 'ConfigDict']),
    'nothing returned': ('def get_config():\n    pass\n', ['own.py', 'NoneType', 'ConfigDict']),
    'no fields': ('import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n',
                  ['config: the field seed is missing']),
    'bytes': ('\x00\x01', ['own.py', 'null bytes']),
}  # fmt: skip


@pytest.mark.parametrize('text, words', OWN.values(), ids=OWN)
def test_own_config_file(runner, tmp_path, text, words):
    (tmp_path / 'own.py').write_text(text)
    before = snapshot(tmp_path)
    assert_refused(runner(f'--config={tmp_path}/own.py', f'--workdir={tmp_path}/run'), *words)
    assert {
        path: held for path, held in snapshot(tmp_path).items() if '__pycache__' not in path.parts
    } == before


# Of a researcher's own config: (of which, what is replaced, by what, the words in the message).
FIELDS = {
    'model, misspelt': ('vae', 'encoder=dict(features', 'encoder=dict(featurs',
                        ['model.encoder.featurs', 'Encoder', 'did you mean features?']),
    'model, missing': ('vae', "encoder=dict(features=(256, 128), activation='relu')",
                       'encoder=dict(features=(8,))',
                       ['model.encoder.activation', 'Encoder']),
    'model, unknown': ('vae', 'latent_dim=16,', 'latent_dim=16, latent_din=3,',
                       ['model.latent_din', 'did you mean latent_dim?']),
    'task, misspelt': ('gan', 'r1=1.0,', 'r3=1.0,', ['task.r3', 'r1']),
    'task, missing': ('vae', 'beta=1.0,', '', ['task.beta']),
    'optim, misspelt': ('vae', 'ema_decay=0.0,', 'ema=0.0,', ['optim.model.ema', 'did you mean ema_decay?']),
    'optim, missing': ('vae', 'clip_norm=0.0,', '', ['optim.model.clip_norm', 'missing']),
    'option, misspelt': ('vae', 'options=dict(b1=0.9', 'options=dict(beta1=0.9',
                          ['optim.model.options.beta1', 'b1']),
    'option, of another type': ('vae', "name='adam'", "name='adafactor'",
                                ['optim.model.options.b1', 'adafactor']),
    'schedule, misspelt': ('vae', 'alpha=0.01', 'alfa=0.01', ['optim.model.schedule', 'alfa', 'alpha']),
    'schedule, without steps': ('vae', 'decay_percent=100.0, ', '', ['optim.model.schedule', 'decay_steps']),
    'players': ('gan', 'generator=dict(\n                    name',
                'genrator=dict(\n                    name',
                ['optim', 'genrator', 'generator']),
    'loop, missing': ('vae', 'steps_per_call=100,', '', ['steps_per_call', 'missing']),
    'data, missing': ('vae', "binarize='none',", '', ['data.binarize', 'missing']),
    'eval, missing': ('vae', 'patience=0,', '', ['eval.patience', 'missing']),
    'eval of the task, missing': ('vae', 'k_chunk=8,', '', ['k_chunk']),
    'variant, misspelt': ('vae', "'eval.k': 4", "'eval.kk': 4", ['own.py', 'eval.kk', 'eval.k']),
}  # fmt: skip


@pytest.mark.parametrize('name, old, new, words', FIELDS.values(), ids=FIELDS)
def test_own_config_field(runner, tmp_path, name, old, new, words):
    config = own_config(tmp_path, old, new, name).removesuffix(':smoke')
    # The misspelt variant alone needs a variant.
    config += ':smoke' if 'eval.k' in old else ''
    assert_refused(runner(config, f'--workdir={tmp_path}/run'), *words)
    assert not (tmp_path / 'run').exists()


DEVICES = {
    'batch_size': (['--config.batch_size=36'], ['batch_size: 36', '8 devices', '40']),
    'micro_batches': (['--config.micro_batches=3'], ['batch_size: 32', '3 micro_batches', '48']),
    'mesh': (['--config.parallel.mesh.data=3'], ['parallel.mesh', "'data': 3", '8 devices']),
    'two rests': (['--config.parallel.mesh.fsdp=-1'], ['parallel.mesh', '-1']),
    'replicas': (['--config.num_seeds=3'], ['num_seeds: 3', '8 devices']),
    'pmap with fsdp': (['--config.parallel.mode=pmap', '--config.parallel.mesh.fsdp=2'],
                       ['parallel.mode', 'pmap']),
    'rule that does not divide': (['--config.parallel.mesh.tensor=8',
                                   "--config.parallel.rules=(('Dense_1/kernel', (None, 'tensor')),)"],
                                  ['parallel.rules', 'Dense_1/kernel']),
}  # fmt: skip


@pytest.mark.parametrize('arguments, words', DEVICES.values(), ids=DEVICES)
def test_devices(runner8, tmp_path, arguments, words):
    assert_refused(runner8(VAE, f'--workdir={tmp_path}/run', *arguments), *words)
    assert not list(tmp_path.iterdir())


def test_no_workdir(runner):
    assert_refused(runner(VAE), '--workdir: missing')


def test_workdir_is_a_file(runner, tmp_path):
    path = tmp_path / 'run'
    path.write_text('mine')
    for mode in ('train', 'evaluate', 'sample'):
        arguments = [VAE] if mode == 'train' else []
        assert_refused(runner(f'--workdir={path}', f'--mode={mode}', *arguments), str(path))
        assert path.read_text() == 'mine'
    assert_refused(runner(f'--workdir={path}/below', VAE), str(path))


def test_workdir_with_checkpoints_alone(runner, tmp_path):
    (tmp_path / 'checkpoints').mkdir()
    assert_refused(runner(f'--workdir={tmp_path}', VAE), str(tmp_path), 'no config.json')


@pytest.mark.parametrize('mode', ['evaluate', 'sample'])
def test_without_a_run(runner, tmp_path, mode):
    assert_refused(
        runner(f'--workdir={tmp_path}/run', f'--mode={mode}'), f'{tmp_path}/run', 'config.json', '--config'
    )
    assert not list(tmp_path.iterdir())
    (tmp_path / 'config.json').write_text('{"seed": 0')
    assert_refused(runner(f'--workdir={tmp_path}', f'--mode={mode}'), f'{tmp_path}/config.json')
    (tmp_path / 'config.json').write_text('[1]')
    assert_refused(runner(f'--workdir={tmp_path}', f'--mode={mode}'), f'{tmp_path}/config.json')
    (tmp_path / 'config.json').write_text('{}')
    assert_refused(runner(f'--workdir={tmp_path}', f'--mode={mode}'), 'seed is missing')


@pytest.mark.parametrize('mode', ['evaluate', 'sample'])
def test_without_a_checkpoint(runner, smoke, tmp_path, mode):
    shutil.copy(smoke('vae') / 'config.json', tmp_path)
    before = snapshot(tmp_path)
    assert_refused(
        runner(f'--workdir={tmp_path}', f'--mode={mode}'), str(tmp_path), 'no checkpoint', '--mode=train'
    )
    assert snapshot(tmp_path) == before


# On a finished run of configs/vae.py:smoke.
FINISHED = {
    'another field': ([VAE, '--config.seed=7', '--config.model.latent_dim=3'],
                      ['differing', 'seed: 7 now, 0 there', 'model.latent_dim: 3 now, 2 there']),
    'another config': ([GAN], ['differing', "task.name: 'gan' now, 'vae' there"]),
    'fewer steps': ([VAE, '--config.total_steps=20'], ['total_steps: 20 now, 40 there', 'may grow']),
    'step not there': (['--mode=evaluate', '--step=30'], ['no checkpoint of step 30', '[20, 40]']),
    'step of words': (['--mode=evaluate', '--step=newest'], ['--step=newest', 'best']),
    'negative step': (['--mode=sample', '--step=-1'], ['--step=-1']),
    'labels': (['--mode=sample', '--labels=1'], ['--labels', 'unconditional']),
    'model overridden': (['--mode=evaluate', '--config.model.latent_dim=3'],
                         ['model.latent_dim', 'data.*', 'eval.*']),
    'steps overridden': (['--mode=sample', '--config.total_steps=80'], ['total_steps', 'data.*', 'eval.*']),
    'unknown data field': (['--mode=evaluate', '--config.data.nmae=x'], ['data.nmae', 'did you mean name']),
    'other data': (['--mode=evaluate', '--config.data.name=ring8'], ['bernoulli']),
    'split': (['--mode=evaluate', '--config.eval.final_split=tests'], ['tests', 'test']),
}  # fmt: skip


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
    code, out, err = runner(
        f'--workdir={tmp_path}', VAE, '--config.model.conditional=True', '--config.total_steps=20'
    )
    assert code == 0, err
    before = snapshot(tmp_path)
    for text, words in (
        ('10', '0 to 9'),
        ('-1', '0 to 9'),
        ('a', 'whole numbers'),
        ('1,,2', 'whole numbers'),
    ):
        assert_refused(
            runner(f'--workdir={tmp_path}', '--mode=sample', f'--labels={text}'), f'--labels={text}', words
        )
    assert snapshot(tmp_path) == before
    code, out, err = runner(f'--workdir={tmp_path}', '--mode=sample', '--labels=3,1', '--num_samples=3')
    assert code == 0, err
    assert list(np.load(out.strip())['labels']) == [3, 1, 3]


# Sane up to step 45, then absurd.
EXPLODING = "name='linear_schedule', init_value=1e-4, end_value=1e30, transition_steps=1, transition_begin=45"


def test_nan(command_line, runner, leaves, tmp_path):
    """The run stops and says where; the last good checkpoint and the rows up to it stay."""
    own = tmp_path / 'own.py'
    text = (command_line.root / 'configs' / 'vae.py').read_text()
    own.write_text(re.sub(r'schedule=dict\([^)]*\)', f'schedule=dict({EXPLODING})', text))
    code, out, err = runner(f'--config={own}:smoke', f'--workdir={tmp_path}/run', '--config.total_steps=80')
    said = [line for line in err.splitlines() if not line.startswith('step ')]
    assert len(said) <= 3 and re.match(r'error: step 4[6-9]: model/\w+ is (nan|inf|-inf); ', said[0]), said
    assert 'last good checkpoint is 40' in said[0] and 'learning rate' in said[0]
    assert code == 1 and out == ''
    assert sorted(path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()) == ['20', '40']
    assert all(np.isfinite(leaf).all() for leaf in leaves(tmp_path / 'run').values())
    rows = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows if row['split'] == 'train'] == [10, 20, 30, 40]
    code, out, err = runner(f'--workdir={tmp_path}/run', '--mode=evaluate')
    assert code == 0 and out.startswith('step 40, digits, split test\n'), err


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / 'disk'
    folder.mkdir()
    done = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip('only root can mount a small disk')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def files(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


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
        said = [line for line in err.splitlines() if not line.startswith('step ')]
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
    assert_refused((code, out, err), 'Read-only file system', str(run), code=1)
    # A finished run that cannot be written is still evaluated, up to the writing.
    assert_refused(
        runner(f'--workdir={run}', '--mode=evaluate'), 'evaluation.json', 'Read-only file system', code=1
    )
    assert_refused(runner(VAE, f'--workdir={small_disk}/other'), 'Read-only file system', code=1)


def test_as_processes(command_line, tmp_path):
    """Processes of their own, started by one shell line each: the exit codes and streams are the shell's."""
    commands = {
        '--config=configs/vea.py --workdir=run': 'did you mean configs/vae.py',
        '--config=configs/vae.py:smoke --workdir=run --config.modle.latent_dim=3': 'did you mean model?',
        '--workdir=run --mode=evaluate': 'config.json',
        '--config=configs/gan.py:smoke --workdir=run --config.task.loss=hing': 'did you mean hinge?',
    }
    shell = '\n'.join(
        f'{sys.executable} -m aigc_jax.main {line.replace("--workdir=run", f"--workdir={tmp_path}/run")} '
        f'>{tmp_path}/{n}.out 2>{tmp_path}/{n}.err; echo $?'
        for n, line in enumerate(commands)
    )
    done = subprocess.run(
        ['sh', '-c', shell], cwd=command_line.root, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.split() == ['2'] * len(commands)
    for n, word in enumerate(commands.values()):
        assert_refused((2, (tmp_path / f'{n}.out').read_text(), (tmp_path / f'{n}.err').read_text()), word)
    assert not (tmp_path / 'run').exists()


def test_help(command_line):
    """Answers at once, for it imports no jax."""
    code = 'import runpy, sys; sys.argv = ["main", "--help"]\n'
    code += 'try: runpy.run_module("aigc_jax.main", run_name="__main__")\n'
    code += 'finally: print(*sys.modules, file=sys.stderr)'
    done = command_line.python('-c', code, seconds=60)
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
    assert not {'jax', 'numpy', 'flax', 'orbax', 'optax'} & set(done.stderr.split())
    seconds = []
    for _ in range(3):  # the machine may be busy: the fastest of three
        began = time.perf_counter()
        assert command_line.python('-m', 'aigc_jax.main', '--help').returncode == 0
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 2


LATE = {'tensorflow_datasets', 'tensorflow', 'matplotlib', 'sklearn', 'tensorboardX', 'grain', 'scipy.stats'}


def test_imports(command_line, tmp_path):
    """What imports slowly comes when it is needed: none of it to train on points, before an evaluation."""
    done = command_line.python('-c', 'import sys, aigc_jax.loop; print(*sys.modules)')
    assert not LATE & set(done.stdout.split())
    arguments = ['--config=configs/gan.py:smoke', '--config.data.name=ring8', f'--workdir={tmp_path}/run']
    code = f"""
import sys
from absl import app
from aigc_jax import loop, main

def called(self, *_):
    print(*sys.modules)
    raise SystemExit(0)

loop._Loop.called = called
sys.argv = ['main', *{arguments}]
app.run(main.main, flags_parser=main.parse)
"""
    done = command_line.python('-c', code)
    assert done.returncode == 0, done.stderr
    assert 'jax' in done.stdout.split()
    assert not LATE & set(done.stdout.split())
