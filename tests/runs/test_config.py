"""Configs: loaded, overridden, checked, compared. What a command line says of mistakes: test_bad_input.py."""

import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import fields
from aigc_jax.runs.migrations import SCHEMA

ROOT = pathlib.Path(__file__).parents[2]
VAE = str(ROOT / 'configs' / 'vae.py')


def load(*overrides: str, path: str = f'{VAE}:smoke') -> ConfigDict:
    return config_lib.load(path, [tuple(text.split('=', 1)) for text in overrides])


def message(*overrides, path=f'{VAE}:smoke') -> str:
    with pytest.raises(UserError) as caught:
        load(*overrides, path=path)
    assert 1 <= len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


@pytest.mark.parametrize(
    'override, value',
    [
        ('seed=7', 7),
        ('seed=-7', -7),
        ('total_steps=1e5', 100_000),
        ('total_steps=20_000', 20_000),
        ('task.beta=2', 2.0),
        ('task.beta=1e-3', 1e-3),
        ('model.conditional=True', True),
        ('model.conditional=true', True),
        ('model.conditional=False', False),
        ('model.encoder.features=(8, 4)', (8, 4)),
        ('model.encoder.features=[8, 4]', (8, 4)),
        ('model.encoder.features=()', ()),
        ('data.name=npz:/a=b.npz', 'npz:/a=b.npz'),
        ('data.dir=3', '3'),
        ('eval.best_metric=', ''),
        (
            "optim.model.learning_rate_rules=(('bias', 2.0), ('kernel', 0.5))",
            (('bias', 2.0), ('kernel', 0.5)),
        ),
    ],
)
def test_override_reads_the_type_that_is_there(override, value):
    name = override.split('=')[0]
    found = config_lib.flatten(load(override))[name]
    assert found == value and type(found) is type(value)


def test_the_arguments_of_a_function_are_replaced_together():
    config = load("optim.model.options={'momentum': 0.9}", 'optim.model.name=sgd',
                  "optim.model.schedule={'name': 'constant_schedule', 'value': 0.1}")  # fmt: skip
    assert config.optim.model.options.to_dict() == {'momentum': 0.9}
    assert config.optim.model.schedule.to_dict() == {'name': 'constant_schedule', 'value': 0.1}
    assert 'is no group' in message('optim.model.options=0.9')
    assert 'this is a group; its fields are' in message("model.encoder={'features': (8,)}")


@pytest.mark.parametrize('seed, replicas', [(2**31, 1), (-(2**31) - 1, 1), (2**31 - 2, 4)])
def test_seeds_have_a_range(seed, replicas):
    assert f'seed: {seed}; seeds lie between' in message(f'seed={seed}', f'num_seeds={replicas}')


def test_the_last_override_wins():
    assert load('seed=1', 'seed=2').seed == 2


@pytest.mark.parametrize('text', ['1.5', 'x', 'True', "'3'", '(3,)', '', 'None', '1e-3', '__import__("os")'])
def test_what_is_no_whole_number(text):
    assert 'is no int; the field holds 0' in message(f'seed={text}')


def test_a_tuple_of_something_else():
    assert 'model.encoder.features' in message("model.encoder.features=('a',)")
    assert 'model.encoder.features' in message('model.encoder.features=(8, 4.5)')


@pytest.mark.parametrize(
    'override', ['model.encoder.features=(8, 0)', 'model.latent_dim=0', 'batch_size=0', 'eval.num_shown=0']
)
def test_sizes_are_one_or_more(override):
    assert override.split('=')[0] in (said := message(override)) and '1 or more' in said


def test_variants_add_up():
    both = load(path=f'{VAE}:points,smoke')
    assert both.task.likelihood == 'gaussian' and both.total_steps == 40
    assert load(path=f'{VAE}:smoke,').total_steps == 40
    assert load(path=VAE).total_steps == 10_000


def test_a_variant_sets_fields_that_are_there(tmp_path):
    """A misspelt one would do nothing, in silence; an optimizer's option may be new, as optax checks it."""
    text = pathlib.Path(VAE).read_text()
    (tmp_path / 'own.py').write_text(text.replace("'data.num_examples': 1000", "'data.num_exmples': 1000"))
    assert 'data.num_exmples' in (said := message(path=f'{tmp_path}/own.py:smoke'))
    assert 'did you mean num_examples' in said
    (tmp_path / 'own.py').write_text(text.replace("'data.num_examples': 1000", "'optim.model.options.eps': 1e-6"))
    assert load(path=f'{tmp_path}/own.py:smoke').optim.model.options.eps == 1e-6


def test_a_config_that_reads_its_argument_itself(tmp_path):
    path = tmp_path / 'a:b' / 'own.py'
    path.parent.mkdir()
    text = pathlib.Path(VAE).read_text().partition('VARIANTS = ')[0]
    assert 'total_steps=10_000' in text
    named = text.replace('total_steps=10_000', 'total_steps=int(arg or 7000)')
    path.write_text(named.replace('get_config():', 'get_config(arg):'))
    assert load(path=f'{path}:500').total_steps == 500 and load(path=str(path)).total_steps == 7000
    assert "own.py, line" in message(path=f'{path}:x') and 'invalid literal' in message(path=f'{path}:x')
    path.write_text(text)
    assert "has no variant 'smoke'; the file defines no VARIANTS" in message(path=f'{path}:smoke')
    assert load(path=str(path)).total_steps == 10_000


def test_the_order_of_variants_is_named_where_it_may_be_the_mistake():
    vq = str(ROOT / 'configs' / 'vq.py')
    assert load(path=f'{vq}:smoke,fsq').model.quantizer.name == 'fsq'
    said = message(path=f'{vq}:fsq,smoke')
    assert 'model.quantizer has no such field' in said
    assert 'a variant that replaces a group goes behind those that set its fields' in said


def test_mistakes_in_a_file_name_its_line(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text('def helper():\n    return 1 / 0\n\n\ndef get_config():\n    return helper()\n')
    assert f'{path}, line 2: ZeroDivisionError' in message(path=str(path))
    path.write_text('import json\n\n\ndef get_config():\n    return json.loads("")\n')
    assert f'{path}, line 5: JSONDecodeError' in message(path=str(path))


def test_a_file_anywhere(tmp_path, monkeypatch):
    (tmp_path / 'own.py').write_text(pathlib.Path(VAE).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    for path in ('own.py', './own.py', '~/own.py', f'{tmp_path}/own.py'):
        assert load(path=path).seed == 0


@pytest.mark.parametrize('name', config_lib.flatten(config_lib.load(f'{VAE}:smoke', [])))
def test_what_is_left_out_has_its_default_and_a_run_that_lacks_it_is_refused(name):
    """Whatever it is: a config file may leave it out, where it has a default; a run's config.json holds it."""
    config = load()
    *parents, last = name.split('.')
    group = config
    for parent in parents:
        group = group[parent]
    if {'options', 'schedule'} & set(parents):
        return  # the arguments of a function of optax, which has their defaults
    del group[last]
    with pytest.raises(UserError, match=rf'^{re.escape(name)}: this field is missing; '):
        config_lib.check(config)
    try:
        filled = config_lib.flatten(config_lib.resolved(config))
    except UserError as error:
        assert str(error).startswith(f'{name}: this field is missing; ') or name == 'task.name'
    else:
        assert filled.keys() == config_lib.flatten(load()).keys()


def test_a_config_file_states_what_differs(tmp_path):
    """In any folder, without an import of aigc_jax; variants need no code of the file's."""
    path = tmp_path / 'own.py'
    path.write_text("""
from ml_collections import ConfigDict

SGD = dict(name='sgd', schedule=dict(name='constant_schedule', value=0.1))


def get_config():
    return ConfigDict(dict(
        total_steps=100, optim=dict(discriminator=SGD, generator=SGD), data=dict(name='digits', scale='symmetric'),
        model=dict(latent_dim=2, generator=dict(features=(8,), activation='relu', bias_init='zeros'),
                   discriminator=dict(features=(8,), activation='relu', bias_init='zeros')),
        task=dict(name='gan', loss='hinge'),
    ))


VARIANTS = {'fsdp': {'parallel.mesh.fsdp': 2, 'batch_size': 64}, 'fast': {'optim.generator.schedule.value': 1}}
""")
    config = load('data.augment.flip=True', path=f'{path}:fsdp,fast')
    assert (config.schema, config.parallel.mesh.fsdp, config.batch_size, config.seed) == (SCHEMA, 2, 64, 0)
    # Both players are of one dict; a variant sets one of them, as the type that is there.
    rates = [config.optim[player].schedule.value for player in ('discriminator', 'generator')]
    assert rates == [0.1, 1.0] and type(rates[1]) is float
    assert (config.task.n_critic, config.eval.num_samples, config.data.augment.flip) == (1, 10_000, True)
    assert config_lib.flatten(load(path=str(path)))['optim.generator.ema_decay'] == 0.0
    path.write_text(path.read_text().replace("'batch_size': 64", "'batchsize': 64"))
    assert f'{path}:fsdp: batchsize: the config has no such field; did you mean batch_size' in message(
        path=f'{path}:fsdp'
    )


def test_a_config_of_another_version_is_refused(tmp_path):
    config = load()
    config.schema = SCHEMA + 1
    (tmp_path / 'config.json').write_text(config_lib.to_json(config))
    with pytest.raises(UserError, match=rf'config.json: schema is {SCHEMA + 1}; .* reads 0 to {SCHEMA}, '):
        config_lib.from_json(tmp_path / 'config.json')


def test_json_gives_the_config_back(tmp_path):
    config = load("parallel.rules=(('kernel', 'fsdp'),)")
    (tmp_path / 'config.json').write_text(config_lib.to_json(config), encoding='utf-8-sig')  # as editors may leave it
    back = config_lib.from_json(tmp_path / 'config.json')
    assert config_lib.flatten(back) == config_lib.flatten(config)
    assert config_lib.to_json(back) == config_lib.to_json(config)
    assert not config_lib.differing(config, back)
    config_lib.check(back)


@pytest.mark.parametrize('text', ['', '{', '[1]', '3', 'null', '"a"', '\x00', '{"a": 1'])
def test_json_that_is_no_config(tmp_path, text):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(UserError, match='config.json: cannot be read as a config'):
        config_lib.from_json(tmp_path / 'config.json')


def test_differing_fields():
    ours, theirs = load(), load()
    assert config_lib.differing(ours, theirs) == []
    ours.total_steps = 80
    assert config_lib.differing(ours, theirs) == []  # it may grow
    assert config_lib.differing(theirs, ours) == ['total_steps: 40 now, 80 there']
    ours.total_steps, ours.model.latent_dim = 40, 3
    del theirs['seed']
    assert config_lib.differing(ours, theirs) == [
        'model.latent_dim: 3 now, 2 there',
        'seed: 0 now, None there',
    ]
    assert config_lib.differing(ours, ConfigDict())  # an empty one is no error


def test_split_arguments():
    split = config_lib.split_arguments
    assert split(['main', '--config=a.py:b', '--workdir=w', '--config.x.y=1']) == (
        ['main', '--workdir=w'], 'a.py:b', [('x.y', '1')]
    )  # fmt: skip
    assert split(['main', '--config', 'a.py', '-config.x', '-1', '--workdir', 'w']) == (
        ['main', '--workdir', 'w'], 'a.py', [('x', '-1')]
    )  # fmt: skip
    assert split(['main', '--config.x=', '--configs=1']) == (['main', '--configs=1'], None, [('x', '')])
    for argv in (['main', '--config'], ['main', '--config.x'], ['main', '--config.x', '--workdir=w']):
        with pytest.raises(UserError, match='a value is missing'):
            split(argv)


def test_only_data_eval_and_parallel_on_a_finished_run():
    config = load()
    config_lib.override(config, [('data.name', 'x'), ('eval.k', '8')], only=config_lib.FREE)
    assert config.data.name == 'x' and config.eval.k == 8
    for name in ('seed', 'model.latent_dim', 'database.x', 'evaluate'):
        with pytest.raises(UserError, match=r'only data\.\*, eval\.\*, parallel\.\*, sample\.\* can be set'):
            config_lib.override(config, [(name, '1')], only=config_lib.FREE)


def test_the_fields_of_a_config_are_listed():
    """Each with its value, what it can hold, its default and what it means, those of its kind of network too."""
    config = load('model.latent_dim=3')
    listed = list(fields.listed(config))
    free = re.compile(r'optim\.model\.(options|schedule)')  # whose fields optax knows
    names = {free.match(name)[0] if free.match(name) else name for name in config_lib.flatten(config)}
    assert {one.partition('=')[0] for one in listed} == names and len(listed) == len(names)
    entry, = (one for one in listed if one.startswith('model.latent_dim='))
    assert re.fullmatch(r'model\.latent_dim=3  \(a whole number, 1 or more.*\)\n    \S.*', entry)


def test_every_config_is_whole():
    for path in sorted((ROOT / 'configs').glob('*.py')):
        if 'def get_config' in path.read_text():
            config_lib.check(load(path=f'{path}:smoke'))
            json.loads(config_lib.to_json(load(path=f'{path}:smoke')))
