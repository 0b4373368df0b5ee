"""A task of the user's own, by the path of its file: nothing in the package knows of it."""

import json

import numpy as np
import pytest
from refusals import assert_refused

TASK = '''
"""The mean image by gradient descent; a sample is that image with noise."""

import jax.numpy as jnp

from aigc_jax.core.capabilities import Measures, Samples
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Aux, Extra, Task, Turn

FIELDS = {
    'task': {'power': Field(int, 2, choices=(1, 2), doc='of the error'), 'name_of_it': Field(str, doc='a text')},
    'model': {'start': Field(float, 0.5, least=0, most=1, doc='the value that each pixel begins with')},
    'eval': {'noise': Field(float, 0.0, least=0, doc='standard deviation of the noise of samples')},
}


def make(config, dataset):
    shape, power = dataset.spec.shape, config.task.power

    def error(params, x):
        return jnp.abs(x - params['mean']['image']) ** power

    def loss(params, extra, batch, ctx):
        return jnp.mean(error(params, batch['x'])), Aux({}, extra)

    def draw(params, extra, ctx, labels):
        return params['mean']['image'] + config.eval.noise * ctx.normal('z', shape)

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

    def change(old: str, new: str) -> None:
        assert old in TASK
        path.write_text(TASK.replace(old, new))

    return f'--config={path.with_name("my.py")}', change


def test_it_is_trained_evaluated_and_sampled_by_the_command_line(runner, tmp_path, own):
    run = tmp_path / 'run'
    code, _, err = runner(own[0], f'--workdir={run}', '--config.task.power=2')
    assert code == 0, err
    config = json.loads((run / 'config.json').read_text())
    # The defaults of its own fields are there, and can be set.
    assert (config['task']['power'], config['model'], config['eval']['noise']) == (2, {'start': 0.5}, 0.0)
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    losses = [row['mean/loss'] for row in rows if row['split'] == 'train']
    assert len(losses) == 2 and losses[1] < losses[0]
    assert json.loads((run / 'evaluation.json').read_text())['error']['value'] < 0.5
    code, out, err = runner(f'--workdir={run}', '--mode=sample', '--num_samples=3', '--config.eval.noise=0.1')
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
    assert code == 0 and 'error' in out and 'samples/' not in out, err
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
    'fields without a group': (("'task': {'power'", "'power': {'power'"), [], ['FIELDS of', 'task, model, eval']),
    'fields that are none': (("'model': {'start': Field(float, 0.5, least=0, most=1, doc=", "'model': {'start': str("),
                             [], ['FIELDS of', 'my_task.py', 'model.start']),
}  # fmt: skip


@pytest.mark.parametrize('changed, flags, words', MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(runner, tmp_path, own, changed, flags, words):
    if changed:
        own[1](*changed)
    assert_refused(runner(own[0], f'--workdir={tmp_path}/run', *flags), *words)
    assert not (tmp_path / 'run').exists()
