"""A task of the user's own, by the path of its file: nothing in the package knows of it."""

import hashlib
import json
import os
import pathlib

import numpy as np
import pytest
from refusals import assert_refused

import aigc_jax
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment

TASK = '''
"""The mean image by gradient descent; a sample is that image with noise."""

import jax.numpy as jnp

from aigc_jax.core.capabilities import Measures, Samples
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Aux, Extra, Task, Turn

FIELDS = {
    'task': {'power': Field(int, 2, choices=(1, 2), doc='of the error'), 'name_of_it': Field(str, doc='a text')},
    'model': {'start': Field(float, 0.5, least=0, most=1, doc='the value that each pixel begins with')},
    'sample': {'noise': Field(float, 0.0, least=0, doc='standard deviation of the noise')},
}


def make(config, dataset):
    shape, power = dataset.spec.shape, config.task.power

    def error(params, x):
        return jnp.abs(x - params['mean']['image']) ** power

    def loss(params, extra, batch, ctx):
        return jnp.mean(error(params, batch['x'])), Aux({}, extra)

    def draw(params, extra, ctx, labels):
        return params['mean']['image'] + config.sample.noise * ctx.normal('z', shape)

    def per_example(params, extra, batch, ctx):
        return {'error': jnp.mean(error(params, batch['x']), axis=(1, 2, 3))}

    return Task(
        init=lambda key: ({'mean': {'image': jnp.full(shape, config.model.start)}}, Extra({}, {})),
        rounds=((Turn('mean', loss),),),
        capabilities=(Measures(per_example), Samples(draw)),
    )
'''
CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        total_steps=20, batch_size=64, log_every_steps=10, eval_every_steps=20, checkpoint_every_steps=20,
        optim=dict(mean=dict(name='sgd', schedule=dict(name='constant_schedule', value=16.0), weight_decay_regex='')),
        data=dict(name='digits', valid_examples=100),
        task=dict(name='{task}', name_of_it='mean'),
        eval=dict(num_samples=100, num_shown=9, extractor=''),
    ))
"""


@pytest.fixture
def own(tmp_path):
    """The flag of a config whose task lies in my_task.py beside it, and a function that changes that file."""
    path = tmp_path / 'elsewhere' / 'my_task.py'
    path.parent.mkdir()
    path.write_text(TASK)
    path.with_name('my.py').write_text(CONFIG.format(task=path))

    def change(old: str, new: str):
        assert old in TASK
        path.write_text(TASK.replace(old, new))
        return path

    return f'--config={path.with_name("my.py")}', change


def test_it_is_trained_evaluated_and_sampled_by_the_command_line(runner, tmp_path, own):
    run = tmp_path / 'run'
    code, _, err = runner(own[0], f'--workdir={run}', '--config.task.power=2')
    assert code == 0, err
    config = json.loads((run / 'config.json').read_text())
    # The defaults of its own fields are there, and can be set.
    assert (config['task']['power'], config['model'], config['sample']['noise']) == (2, {'start': 0.5}, 0.0)
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    losses = [row['mean/loss'] for row in rows if row['split'] == 'train']
    assert len(losses) == 2 and losses[1] < losses[0]
    assert json.loads((run / 'evaluation.json').read_text())['error']['value'] < 0.5
    code, out, err = runner(f'--workdir={run}', '--mode=sample', '--num_samples=3', '--config.sample.noise=0.1')
    assert code == 0, err
    samples = np.load(out.strip())['samples']
    assert samples.shape == (3, 8, 8, 1) and (samples[0] != samples[1]).any()


@pytest.mark.parametrize('data', ['digits', 'ring8'])
def test_a_task_that_draws_no_samples_trains_and_is_evaluated(runner, tmp_path, own, data):
    flag, change = own
    change('(Measures(per_example), Samples(draw))', '(Measures(per_example),)')
    more = []
    if data == 'ring8':
        fields = 'data.name=ring8', 'data.num_examples=500', 'optim.mean.schedule.value=0.1'
        more = [f'--config.{field}' for field in fields]
        path = tmp_path / 'elsewhere' / 'my_task.py'
        path.write_text(path.read_text().replace('axis=(1, 2, 3)', 'axis=1'))
    code, out, err = runner(flag, f'--workdir={tmp_path}/run', '--config.eval.extractor=auto', *more)
    assert code == 0 and 'error' in out and 'samples/' not in out + err, err
    assert {path.name for path in (tmp_path / 'run' / 'plots').iterdir()} == {'curves.png'}
    code, _, err = runner(f'--workdir={tmp_path}/run', '--mode=sample')
    assert_refused((code, '', err), 'draws no samples')


def test_an_own_latent_space_is_drawn(runner, tmp_path, own):
    """Without a field of its own: what pictures read belongs to every model of images."""
    own[1](
        '(Measures(per_example), Samples(draw))',
        '(LatentSpace(lambda p, e, b, c: b["x"][:, :2, 0, 0], '
        'lambda p, e, z, labels: jnp.tile(z[:, :1, None, None], (1, *shape))),)',
    )
    path = tmp_path / 'elsewhere' / 'my_task.py'
    path.write_text(path.read_text().replace('import Measures, Samples', 'import LatentSpace'))
    code, _, err = runner(own[0], f'--workdir={tmp_path}/run', '--config.eval.interpolation=linear')
    assert code == 0, err
    plots = {path.name for path in (tmp_path / 'run' / 'plots').iterdir()}
    assert {'traversals.png', 'interpolations.png'} <= plots


MISTAKES = {
    'no file': (None, ['--config.task.name=nowhere/my_task.py'], ['task.name: there is no file nowhere/my_task.py']),
    'no task': (None, ['--config.task.name=my_task'], ["task.name: 'my_task'", 'or the path of a Python file']),
    'its field out of range': (None, ['--config.model.start=2'], ['model.start: 2.0; it is 0 to 1']),
    'its field is no choice': (None, ['--config.task.power=3'], ['task.power: 3', '1, 2']),
    'its field misspelt': (None, ['--config.task.powr=1'], ["task has no field 'powr'", 'power']),
    'its field missing': (("'name_of_it': Field(", "'more': Field(int), 'name_of_it': Field("), [],
                          ['task.more: this field is missing', 'name, power, more, name_of_it']),
    'a field that it has not': (("'name_of_it': Field(str, doc='a text')", ''), [],
                                ['task.name_of_it: task has no such field']),
    'syntax': (('def make(config, dataset):', 'def make(config, dataset:'), [], ['my_task.py, line 17: SyntaxError']),
    'no make': (('def make(', 'def build('), [], ['my_task.py defines no make(config, dataset)']),
    'an error in make': (('shape, power = dataset.spec.shape', 'shape, power = dataset.shpe'), [],
                         ['my_task.py, line 18: AttributeError']),
    'no Task': (('return Task(', 'return dict('), [], ['make of', 'my_task.py returns dict, not a Task']),
    'fields without a group': (("'task': {'power'", "'power': {'power'"), [],
                              ['FIELDS of', 'task, model, sample, eval']),
    'fields that are none': (("'model': {'start': Field(float, 0.5, least=0, most=1, doc=", "'model': {'start': str("),
                             [], ['FIELDS of', 'my_task.py', 'model.start']),
}  # fmt: skip


@pytest.mark.parametrize('changed, flags, words', MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(runner, tmp_path, own, changed, flags, words):
    if changed:
        own[1](*changed)
    assert_refused(runner(own[0], f'--workdir={tmp_path}/run', *flags), *words)
    assert not (tmp_path / 'run').exists()


RETURNS = {  # (what is changed, words of the refusal)
    'a bare loss': ((', Aux({}, extra)\n', '\n'), 'loss of player mean returns float32 (); it returns (scalar, '),
    'no extra': ((', Aux({}, extra)\n', ', {}\n'),
                 'loss of player mean returns (float32 (), {}); it returns (scalar, '),
    'no Aux': (('Aux({}, extra)', '({}, extra)'), 'returns (float32 (), ({}, Extra({}, {}))); it'),
    'one logit too many': (('Aux({}, extra)', "Aux({}, extra, None, (batch['x'], batch['x']))"),
                           'it returns logits (…, classes), with the places that count'),
    'a weight of each example': (('Aux({}, extra)', "Aux({}, extra, batch['x'])"), 'returns float32 (64, 8, 8, 1)'),
    'a loss of each example': (
        ("jnp.mean(error(params, batch['x'])), Aux({}", "error(params, batch['x']).mean((1, 2, 3)), Aux({}"),
        'loss of player mean returns float32 (64,); it returns a float () first, the mean over the examples',
    ),
    'a metric of each example': (
        ('({}, extra)', "({'m': batch['x'][:, 0, 0, 0]}, extra)"), "returns {'m': float32 (64,)}; it returns metrics {"
    ),
    'another extra': (
        ('({}, extra)', "({}, Extra({'count': jnp.zeros(())}, {}))"),
        "returns Extra({'count': float32 ()}, {}); it returns an extra like that given, Extra({}, {})",
    ),
    'an unknown player': (("Turn('mean', loss)", "Turn('means', loss)"),
                          "a Turn is of player 'means'; init has parame"),
    'no round': (("rounds=((Turn('mean', loss),),)", 'rounds=()'), 'rounds of its Task is (); it is a tuple'),
    'no tuple of rounds': (("((Turn('mean', loss),),)", "(Turn('mean', loss),)"),
                           'rounds of its Task is (Turn('),
    'a loss that is none': (("Turn('mean', loss)", "Turn('mean', None)"),
                            "in loss of player mean: TypeError: 'NoneType' object is not callable"),
    'init without Extra': ((", Extra({}, {})),", ", {}),"), 'init returns ({'),
    'parameters without a player': (("{'mean': {'image': jnp.full(shape, config.model.start)}}", 'jnp.zeros(shape)'),
                                    'init returns (float32 (8, 8, 1), Extra({}, {})); it returns ({player: its'),
    'whole parameters': (('jnp.full(shape, config.model.start)', 'jnp.zeros(shape, int)'),
                         "init returns {'mean': {'image': int32 (8, 8, 1)}}; it returns parameters that are floats"),
    'a carry of no rows': (('Extra({}, {})),', "Extra({}, {'h': jnp.zeros((3, 2))})),"),
                         'a carry of batch_size, 64, rows'),
    'a mean in place of values': (
        (", axis=(1, 2, 3))}", ')}'),
        "Measures.per_example returns {'error': float32 ()}; it returns {metric: (n,)} or {metric: ((n,), (n,))}, one",
    ),
    'samples of another shape': (("ctx.normal('z', shape)", "ctx.normal('z', (*shape[:2], 3))"),
                                 'Samples.draw returns float32 (7, 8, 8, 3); it returns (n, 8, 8, 1); here n = 7'),
    'a single sample': (("ctx.normal('z', shape)", "ctx.normal('z', shape)[0]"),
                        'Samples.draw returns float32 (8, 8, 1); it'),
    'a capability that is none': (('(Measures(per_example), ', '(per_example, '),
                                  "capabilities of its Task is ['function', 'Samples']; it is a tuple of inst"),
    'a bare capability': (('(Measures(per_example), Samples(draw))', 'Measures(per_example)'),
                          'capabilities of its Task is Measures; it is a tuple of instances'),
    "a metric of a row's name": (("return {'error': jnp", "return {'step': jnp"),
                                 "Measures has the name 'step', which a row of"),
}  # fmt: skip


@pytest.fixture
def experiment_of(monkeypatch, own, command_line):
    """experiment_of(*fields): the Experiment of that config."""
    monkeypatch.chdir(command_line.root)
    return lambda *fields: Experiment(config_lib.load(own[0].partition('=')[2], list(fields)))


@pytest.mark.parametrize('changed, words', RETURNS.values(), ids=RETURNS)
def test_what_its_functions_return_is_checked_before_anything_is_computed(own, experiment_of, changed, words):
    own[1](*changed)
    with pytest.raises(UserError) as found:
        experiment_of()
    assert 'elsewhere/my_task.py' in str(found.value) and words in str(found.value)
    assert len(str(found.value).splitlines()) == 1


CAPABILITIES = {  # what stands in the place of Samples(draw)
    'Reconstructs.reconstruct': 'Reconstructs(lambda p, e, b, c: b["x"][..., 0])',
    'ScalarField.value': 'ScalarField("f", lambda p, e, x, c: x)',
    'LogDensity.value': 'LogDensity("f", lambda p, e, x, c: x.sum())',
    'LatentSpace.encode': 'LatentSpace(lambda p, e, b, c: b["x"], lambda p, e, z, labels: z)',
    'LatentSpace.decode': 'LatentSpace(lambda p, e, b, c: b["x"][:, 0, :, 0], lambda p, e, z, labels: z)',
    'Codebook.index': 'Codebook(4, lambda p, e, b, c: b["x"])',
    'SplitStatistic.collect': 'SplitStatistic(lambda p, e, b, c: {"m": b["x"].mean()}, dict)',
}


@pytest.mark.parametrize('function', CAPABILITIES)
def test_each_capability_is_checked(own, experiment_of, function):
    path = own[1]('Samples(draw)', CAPABILITIES[function])
    path.write_text(path.read_text().replace('import Measures, Samples', 'import *'))
    with pytest.raises(UserError, match=rf'my_task.py: {function} returns .*; it returns .*; here n = 7'):
        experiment_of()


def test_what_a_function_raises_keeps_its_traceback_and_names_the_file_and_the_function(runner, tmp_path, own):
    own[1]("error(params, batch['x'])), Aux({}", "error(params, batch['y'])), Aux({}")
    code, out, err = runner(own[0], f'--workdir={tmp_path}/run')
    *traceback, last = err.splitlines()
    assert code == 2 and out == '' and not (tmp_path / 'run').exists()
    assert last.startswith('error: task.name: ')
    assert "my_task.py, line 24, in loss of player mean: KeyError: 'y'" in last
    assert traceback[0].startswith('Traceback') and "KeyError: 'y'" in traceback
    assert 'my_task.py", line 24, in loss' in traceback[1] and len(traceback) < 8  # from the own file on


def test_what_it_raises_behind_the_check_names_the_file_in_the_last_line(runner, tmp_path, own):
    of_n = 'SplitStatistic(lambda p, e, b, c: {"m": b["x"]}, lambda found: {"m": found["n"]})'
    path = own[1]('Samples(draw)', of_n)
    path.write_text(path.read_text().replace('import Measures, Samples', 'import *'))
    code, _, err = runner(own[0], f'--workdir={tmp_path}/run')
    assert code == 1 and err.splitlines()[-1] == f"error: {path}, line 35: KeyError: 'n'"


def test_a_run_opens_from_any_folder_and_its_file_is_in_the_manifest(tmp_path, monkeypatch, own):
    """Its path is given from where the run was started. The run knows the whole path; the file may move on."""
    path = tmp_path / 'elsewhere' / 'my_task.py'
    path.with_name('my.py').write_text(CONFIG.format(task='my_task.py'))
    monkeypatch.chdir(path.parent)
    train = lambda **fields: aigc_jax.train('my.py', tmp_path / 'run', fields)
    train()
    first = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.chdir(tmp_path)
    run = aigc_jax.open('run')
    assert run.config.task.name == str(path) and run.run.manifest['own_task'] == first
    expected = run.sample(2)
    with pytest.raises(UserError, match='task.name: in this mode only'):
        aigc_jax.open('run', overrides={'task.name': 'vae'})
    moved = path.parent.rename(tmp_path / 'moved') / 'my_task.py'
    with pytest.raises(UserError, match=f'task.name: there is no file {path}'):
        aigc_jax.open('run')
    for place in (moved, 'moved/my_task.py'):
        again = aigc_jax.open('run', overrides={'task.name': str(place)})
        np.testing.assert_array_equal(again.sample(2), expected)
    # Somebody else's run does not have a file executed that merely lies where the command is given.
    config = (tmp_path / 'run' / 'config.json').read_text()
    (tmp_path / 'my_task.py').write_text('raise SystemExit("executed")')
    for name, field in ((path, 'my_task.py'), ('digits', 'my_task.py:load')):
        (tmp_path / 'run' / 'config.json').write_text(config.replace(f'"name": "{name}"', f'"name": "{field}"'))
        own = name == path
        mend = f"look at it, and name it with --config.{'task' if own else 'data'}.name={field}"
        with pytest.raises(UserError, match=f'without its folder; {mend}$'):
            aigc_jax.open('run', overrides={} if name == path else {'task.name': str(moved)})
    (tmp_path / 'run' / 'config.json').write_text(config)
    if os.getuid() == 0:  # who alone may give files away
        os.chown(moved, 65534, 65534)
        (tmp_path / 'run' / 'config.json').write_text(config.replace(str(path), str(moved)))
        with pytest.raises(UserError, match='a Python file of another user'):
            aigc_jax.open('run')
        aigc_jax.open('run', overrides={'task.name': str(moved)})
        (tmp_path / 'run' / 'config.json').write_text(config)
        os.chown(moved, 0, 0)
    # It goes on from its new place; that the file has changed is told as that the package has.
    moved.write_text(moved.read_text() + '# another\n')
    monkeypatch.chdir(moved.parent)
    train(total_steps=40)
    manifest = aigc_jax.open('../run').run.manifest
    assert manifest['starts'][0]['made_with']['own_task'] == first
    assert manifest['own_task'] == hashlib.sha256(moved.read_bytes()).hexdigest() != first


def test_a_default_regex_of_what_to_decay_needs_no_match_where_nothing_is_decayed(own, experiment_of):
    config = own[0].partition('=')[2]
    text = pathlib.Path(config).read_text().replace(", weight_decay_regex=''", '')
    pathlib.Path(config).write_text(text)
    experiment_of()
    with pytest.raises(UserError, match="weight_decay_regex: 'kernel' matches no parameter; there are image; '.*' m"):
        experiment_of(('optim.mean.name', 'adamw'))
    with pytest.raises(UserError, match="weight_decay_regex: 'kernels' matches no"):
        experiment_of(('optim.mean.weight_decay_regex', 'kernels'))
