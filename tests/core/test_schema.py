"""Declared fields: filled in, checked, found and rendered; those of all configs are whole."""

import importlib.util
import inspect
import math
import pathlib

import pytest
from ml_collections import ConfigDict

from aigc_jax.core import schema
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import REQUIRED, Field
from aigc_jax.nn import build, convnets, flows, mlp, quantizers, recurrent, transformer
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import fields

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
GROUP = {
    'kind': Field(str, 'a', choices=('a', 'b'), doc='which'),
    'rate': Field(float, 0.1, above=0, most=1, doc='share | part'),
    'sizes': Field(tuple, (3, 2), items=Field(int, least=1)),
    'free': Field(dict, {}),
    'inner': Field(dict, fields={'x': Field(int), 'y': Field(bool, True)}),
    'chosen': Field(dict, fields=lambda own, around: {schema.named(around, 'kind') or 'a': Field(int, 7)}),
}


def filled(**given) -> ConfigDict:
    config = ConfigDict(given)
    schema.fill(config, GROUP)
    return config


def test_what_is_left_out_has_its_default():
    config = filled(kind='b', inner={'x': 1})
    assert config.to_dict() == {
        'kind': 'b', 'rate': 0.1, 'sizes': (3, 2), 'free': {}, 'inner': {'x': 1, 'y': True}, 'chosen': {'b': 7},
    }  # fmt: skip
    schema.check(config, GROUP)
    config.free.z = 1  # a default is each config's own
    assert not filled().free


@pytest.mark.parametrize(
    'given, said',
    [
        (dict(kind='c'), "kind: 'c'; known: a, b"),
        (dict(kind=3), 'kind: 3 is a whole number; it holds a text'),
        (dict(rate=0.0), 'rate: 0.0; it is more than 0 and 1 or less'),
        (dict(rate=1.5), 'rate: 1.5; it is more than 0 and 1 or less'),
        (dict(rate=math.nan), 'rate: nan; it is more than 0 and 1 or less'),
        (dict(rate=True), 'rate: True is True or False; it holds a number'),
        (dict(sizes=(1, 0)), 'sizes: (1, 0); each of its items is a whole number, 1 or more'),
        (dict(sizes=3), 'sizes: 3 is a whole number; it holds a tuple'),
        (dict(inner=3), 'inner: 3 is a whole number; it holds a group of fields'),
        (dict(inner={}), 'inner.x: this field is missing; inner has x, y'),
        (dict(inner={'x': 1, 'yy': 2}), 'inner.yy: inner has no such field; did you mean y?'),
        (dict(rat=1), 'rat: the config has no such field; did you mean rate?'),
    ],
)
def test_mistakes_are_named(given, said):
    with pytest.raises(UserError) as caught:
        schema.check(filled(**{'inner': {'x': 1}, **given}), GROUP)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    'bounds, words',
    [({}, ''), ({'least': 1}, '1 or more'), ({'most': 5}, '5 or less'), ({'above': 0}, 'more than 0'),
     ({'below': 1}, 'less than 1'), ({'least': 0, 'most': 1}, '0 to 1'),
     ({'least': 0, 'below': 1}, '0 or more and less than 1'),
     ({'above': -1, 'below': 1}, 'more than -1 and less than 1')],
)  # fmt: skip
def test_bounds_in_words(bounds, words):
    assert Field(float, **bounds).range() == words


def test_tables_are_rendered():
    assert schema.markdown(GROUP, 'g') == (
        '| Field | Default | Holds | Meaning |\n| --- | --- | --- | --- |\n'
        "| `g.kind` | `'a'` | 'a', 'b' | which |\n"
        '| `g.rate` | `0.1` | a number, more than 0 and 1 or less | share \\| part |\n'
        '| `g.sizes` | `(3, 2)` | a tuple of a whole number, 1 or more |  |\n'
        '| `g.free` | `{}` | a group |  |\n'
        '| `g.inner.x` |  | a whole number |  |\n'
        '| `g.inner.y` | `True` | True or False |  |\n'
        '| `g.chosen` |  | a group |  |\n'
    )
    titles, tables = zip(*fields.tables(), strict=True)
    assert len(set(titles)) == len(titles) and all(table.count('\n') > 2 for table in tables)
    for word in ('`seed`', '`data.augment.mixup`', '`eval.ais_chains`', '`task.dragan`', '`optim.PLAYER.ema_decay`'):
        assert fields.markdown().count(f'| {word} |') == 1, word


def every(group: schema.Group, what: str = ''):
    for name, field in group.items():
        yield f'{what}{name}', field
        if isinstance(field.fields, dict):
            yield from every(field.fields, f'{what}{name}.')


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_every_field_is_explained_and_every_default_fits(path):
    """What a field means stands in the tables alone, so that none may lack it."""
    config = config_lib.load(str(path), [])
    own = [fields.FIELDS[name].group(config[name], config) for name in ('data', 'model', 'task', 'eval')]
    for group in [fields.FIELDS, *own]:
        for name, field in every(group):
            if field.type is not dict:
                assert field.doc, name
                assert field.default is REQUIRED or field.fits(field.default), name


@pytest.mark.parametrize(
    'module',
    [mlp.Encoder, mlp.Decoder, mlp.Generator, mlp.Discriminator, convnets.Encoder, convnets.Discriminator, flows.Flow,
     quantizers.GridEncoder, recurrent.Recurrent, transformer.Transformer],
)  # fmt: skip
def test_what_a_network_declares_it_has(module):
    """With its type: a field of a file that no module has would be read by nobody."""
    found = build.fields(module)
    assert found
    for name, field in found.items():
        default = inspect.signature(module).parameters[name].default
        assert field.default == (REQUIRED if default is inspect.Parameter.empty else default)


def test_a_config_needs_no_import_of_the_package():
    for path in CONFIGS.glob('*.py'):
        spec = importlib.util.spec_from_file_location('config', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert not [name for name in vars(module) if name.startswith('aigc')]
