"""Every config trains, evaluates and samples in its smoke variant; a model is one task file, one line, one config."""

import contextlib
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configfiles import CONFIGS, FILES, needs_files, variants
from stacks import stacked

from aigc_jax import reports, tasks
from aigc_jax.core import optim, rng, tree
from aigc_jax.core.capabilities import Measures, Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Aux, Extra, Task, Turn
from aigc_jax.data import Tokens
from aigc_jax.data.sources import functions, text
from aigc_jax.reports.evaluation import Evaluation
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import initial
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train


@pytest.fixture(scope='module')
def library():
    """A sixteenth of the standard library, for the whole takes a dozen seconds for each config that reads it."""
    if 'AIGC_JAX_THOROUGH' in os.environ:
        yield
        return
    root, paths = text.stdlib()
    functions.functions.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, 'stdlib', lambda: (root, sorted(paths)[::16]))
        yield
    functions.functions.cache_clear()


@pytest.mark.parametrize(
    'path, variant', [(p, v) for p in FILES for v in variants(p)], ids=lambda x: getattr(x, 'name', x)
)
def test_every_variant_makes_a_task(path, variant, library):
    config = config_lib.load(f'{path}:{variant}', [])
    if needs_files(config):  # the variant's files belong to the user; its model and schedule do not
        config.data.name = 'pydoc' if config.task.name in ('lm', 'mlm') else 'digits'
    experiment = Experiment(config)
    assert experiment.abstract_state.params.keys() == set(experiment.task.players)


@pytest.mark.parametrize('variant', variants(CONFIGS / 'vae.py'))
def test_every_vae_is_whole_with_smoke_on_top(variant):
    """Loss, evaluation and samples have their shapes; nothing is computed."""
    config = config_lib.load(f'{CONFIGS / "vae.py"}:{variant},smoke', [])
    if needs_files(config):
        config.data.name = 'digits'
    experiment = Experiment(config)
    task, ctx = experiment.task, rng.context(0, 'test', 0, jnp.arange(3))
    examples = experiment.examples('test', np.arange(3))

    def everything():
        params, extra = task.init(rng.stream(0, 'init'))
        batch = experiment.preprocess(examples, ctx)
        loss, _ = task.rounds[0][0].loss(params, extra, batch, ctx)
        found = task.get(Measures).per_example(params, extra, batch, ctx)
        return loss, task.get(Samples).draw(params, extra, ctx, None), found

    loss, samples, found = jax.eval_shape(everything)
    assert loss.shape == () and samples.shape == (3, *experiment.dataset.spec.shape)
    assert {value.shape for value in found.values()} == {(3,)}


@pytest.mark.parametrize(
    'path, overrides',
    [(path, []) for path in FILES]
    + [(path, [('model.conditional', 'True')]) for path in FILES if path.stem in ('vae', 'gan')],
    ids=lambda x: x.name if isinstance(x, pathlib.Path) else 'conditional' if x else 'plain',
)
def test_smoke_trains_evaluates_and_samples(path, overrides, library, tmp_path):
    config = config_lib.load(f'{path}:smoke', overrides)
    train(config, Run(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    losses = {name for row in rows for name in row if name.endswith('/loss')}
    assert {row['split'] for row in rows} == {'train', 'eval', 'final'} and losses
    assert [row['step'] for row in rows if row['split'] == 'train'] == [10, 20, 30, 40]
    experiment, state = Run(tmp_path).open()
    evaluator = Evaluator(experiment)
    found = Evaluation(evaluator).each(state, 0, 'test')
    written = json.loads((tmp_path / 'evaluation.json').read_text())
    assert written['step'] == 40
    names = reports.names(experiment)
    assert not [name for name in written if name != 'step' and not names.has(name)]
    assert set(names.whole) <= {*written}  # no name of a metric that there is not
    for name, result in found.items():
        assert result['value'] == pytest.approx(written[name]['value'], rel=1e-6) and result['n'] > 0
    is_text = isinstance(experiment.dataset.spec, Tokens)
    if experiment.task.get(Samples):
        _check_samples(path, tmp_path, config, experiment, state, evaluator, is_text)
    else:
        assert (tmp_path / 'plots/curves.png').stat().st_size > 500
    # Another run begins where this one ended, with its codebook and its statistics too.
    experiment.config.init.update(run=str(tmp_path), average=False, drawn='', unused='')
    model, step = initial.model(experiment)
    begun = experiment.create_state(*model)
    assert step == 40 and bool(jax.tree.leaves(begun.stats)) == (path.stem == 'vq')
    for a, b in zip(*(jax.tree.leaves((s.params, s.stats)) for s in (state, begun)), strict=True):
        np.testing.assert_array_equal(a, b)


def _check_samples(path, folder, config, experiment, state, evaluator, is_text):
    samples = evaluator.sample(state, 0, 30)
    shape = (config.eval.sample_tokens,) if is_text else experiment.dataset.spec.shape
    assert samples.shape == (30, *shape) and np.isfinite(samples).all()
    # Sample i depends on (seed, i) alone; the products of a convolution round by how many samples there are.
    np.testing.assert_allclose(samples[:7], evaluator.sample(state, 0, 7), rtol=0, atol=1e-6 * (path.stem == 'vq'))
    assert (samples != evaluator.sample(state, 1, 30)).any()
    for step in (20, 40):
        stored = np.load(folder / 'samples' / f'{step:08d}.npz')['samples']
        assert stored.shape[1:] == shape
    pictures = ['plots/curves.png'] + ['samples/00000040.png'] * (not is_text)
    pictures += ['plots/codes.png'] * (path.stem == 'vq')
    assert all((folder / picture).stat().st_size > 500 for picture in pictures)
    if is_text:
        texts = (folder / 'samples/00000040.txt').read_text()
        assert texts.count('\n' + 40 * '─' + '\n') == len(stored) - 1


def test_bfloat16_and_2d_train(tmp_path):
    for name, arg in (('vae', 'points,smoke'), ('gan', 'grid25,smoke')):
        config = config_lib.load(f'{CONFIGS / name}.py:{arg}', [('precision', 'bfloat16')])
        train(config, Run(tmp_path / name))
        written = json.loads((tmp_path / name / 'evaluation.json').read_text())
        assert written['samples/high_quality']['perfect'] == pytest.approx(98.89, abs=0.01)
        assert (tmp_path / name / 'plots' / 'points.png').exists()


def train_undrawn(config, folder) -> Run:
    """Without pictures, a fifth of the time of a small run."""
    run = Run(folder)
    run.draws = False
    train(config, run)
    return run


def toy_task(config, dataset) -> Task:
    """A histogram of each pixel: the mean image, by gradient descent."""

    def loss(params, extra, batch, ctx):
        return jnp.mean((batch['x'] - params['mean']['image']) ** 2), Aux({}, extra)

    def sample(params, extra, ctx, labels):
        return params['mean']['image'] + 0 * ctx.normal('z', dataset.spec.shape)

    return Task(
        init=lambda key: ({'mean': {'image': jnp.zeros(dataset.spec.shape)}}, Extra({}, {})),
        rounds=((Turn('mean', loss),),),
        capabilities=(Samples(sample),),
    )


TOY_CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(dict(
        total_steps=40, batch_size=64, steps_per_call=5, log_every_steps=5, eval_every_steps=20,
        checkpoint_every_steps=20, optim=dict(mean=dict(
            name='sgd', schedule=dict(name='constant_schedule', value=16.0), weight_decay_regex='')),
        data=dict(name='digits', valid_examples=100), task=dict(name='toy'),
        eval=dict(batch_size=100, num_samples=100, num_shown=9, extractor=''),
    ))
"""


def test_a_new_model_is_a_task_a_line_and_a_config(tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, 'toy', toy_task)
    path = tmp_path / 'elsewhere' / 'toy.py'  # a researcher's own config lives anywhere
    path.parent.mkdir()
    path.write_text(TOY_CONFIG)
    config = config_lib.load(str(path), [])
    train_undrawn(config, tmp_path / 'run')
    experiment, state = Run(tmp_path / 'run').open()
    expected = experiment.dataset.splits['train'].arrays['x'].mean(0) / 16
    np.testing.assert_allclose(jax.device_get(state.params['mean']['image']), expected, atol=0.05)


def test_init_from_takes_parameters_and_starts_anew(smoke, tmp_path):
    config = config_lib.load(f'{CONFIGS / "vae.py"}:smoke', [])
    config.init.run = str(smoke('vae'))
    config.total_steps = config.eval_every_steps = config.checkpoint_every_steps = config.log_every_steps = 10
    config.optim.model.schedule = {'name': 'constant_schedule', 'value': 0.0}
    second = train_undrawn(config, tmp_path / 'second')
    (_, first), (_, second) = Run(smoke('vae')).open(), second.open()
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(second.step) == 10
    starts = json.loads((tmp_path / 'second' / 'manifest.json').read_text())['starts']
    assert [start['init_step'] for start in starts] == [int(first.step)]


def test_init_says_which_step_and_whether_the_average(smoke, tmp_path):
    config = config_lib.load(f'{CONFIGS / "gan.py"}:smoke', [])
    config.total_steps = config.eval_every_steps = config.checkpoint_every_steps = config.log_every_steps = 10
    for player in config.optim.values():
        player.schedule = {'name': 'constant_schedule', 'value': 0.0}
    config.init.run = str(smoke('gan'))
    began = {}
    for step, average in (('', True), ('', False), ('20', True)):
        config.init.step, config.init.average = step, average
        run = train_undrawn(config, tmp_path / f'{step}{average}')
        began[step, average] = jax.device_get(run.open()[1].params['generator'])
        assert json.loads(run.paths.manifest.read_text())['starts'][0]['init_step'] == int(step or 40)
    for step in ('', '20'):
        _, state = Run(smoke('gan')).open(step or None)
        assert_equal(began[step, True], optim.averaged(state.params, state.opt)['generator'])
        if not step:
            assert_equal(began[step, False], state.params['generator'])
    different = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, began['', True], began['', False])
    assert any(jax.tree.leaves(different))
    other = config_lib.load(f'{CONFIGS / "vae.py"}:smoke', [('init.run', config.init.run)])
    with pytest.raises(UserError, match='init.run: .* has the players .*generator.*, this model model'):
        train(other, Run(tmp_path / 'none'))
    config.init.step = '30'
    with pytest.raises(UserError, match='no checkpoint of step 30'):
        train(config, Run(tmp_path / 'none'))
    config.init.step = 'newest'
    with pytest.raises(UserError, match='init.step=newest'):
        train(config, Run(tmp_path / 'none'))
    assert not (tmp_path / 'none').exists()


def brief_gpt(*more):
    brief = [('total_steps', '10'), ('eval_every_steps', '10'), ('checkpoint_every_steps', '10')]
    return config_lib.load(f'{CONFIGS / "gpt.py"}:smoke', [*brief, *more])


@pytest.fixture(scope='module')
def averaging(tmp_path_factory) -> Run:
    """A Transformer whose parameters are averaged."""
    return train_undrawn(brief_gpt(('optim.model.ema_decay', '0.9')), tmp_path_factory.mktemp('averaging') / 'run')


def test_parameters_of_other_names_are_renamed_and_their_average_with_them(averaging):
    """The blocks of a Transformer change places; the names of a model of its own are as far from ours."""
    source = averaging
    swap = (('block_0/', 'block_x/'), ('block_1/', 'block_0/'), ('block_x/(.*)', r'block_1/\1'))
    config = brief_gpt(('init.run', str(source.folder)))
    _, state = source.open()
    for average in (True, False):
        config.init.average = average
        config.init.rename = swap
        found = jax.device_get(initial.model(Experiment(config))[0][0]['model'])
        was = (optim.averaged(state.params, state.opt) if average else state.params)['model']
        assert_equal(found, {**was, 'block_0': was['block_1'], 'block_1': was['block_0']})
    assert np.abs(was['block_0']['up']['kernel'] - was['block_1']['up']['kernel']).max() > 0
    for rename, words in (
        ((('blok', 'x'),), "'blok' changes no name of .*; there are model/block_0/"),
        ((('block_0/', 'block_1/'),), 'several parameters of .* become model/block_1/'),
        ((('block_0', r'\2'),), r"'\\\\2' cannot take the place of 'block_0'"),
        ((('block_(', 'x'),), "'block_\\(' is no regular expression"),
        (('block_0', 'x'), "'block_0' is no pair"),
        ((('block_0/', 'layer_0/'),), 'it lacks params/model/block_0/.* it has params/model/layer_0'),
    ):
        config.init.rename = rename
        with pytest.raises(UserError, match=words):
            initial.model(Experiment(config))


def test_an_average_whose_optimizer_has_regexes_of_other_names_is_refused_with_the_mend(averaging, tmp_path):
    """As Muon's has, of a model whose layers are not block_0, …"""
    other = Run(shutil.copytree(averaging.folder, tmp_path / 'other'))
    own = json.loads(other.paths.config.read_text())
    swap = "(('block_0/', 'block_x/'), ('block_1/', 'block_0/'), ('block_x/', 'block_1/'))"
    start = [('init.run', str(other.folder)), ('init.rename', swap)]
    for regex in ('layer.*kernel', 'block_0.*kernel'):
        own['optim']['model']['options']['muon_weight_dimension_numbers'] = regex
        other.paths.config.write_text(json.dumps(own))
        with pytest.raises(UserError, match='regexes of its optim are of its own names; init.average=False takes'):
            initial.model(Experiment(brief_gpt(*start)))
    assert initial.model(Experiment(brief_gpt(*start, ('init.average', 'False'))))[0]


def test_layers_one_by_one_and_in_a_loop_start_from_one_another(averaging, tmp_path):
    """The average of the parameters, where it is wanted, to the bit; a head that is drawn, adapters, and what a loop
    has no room for."""
    start = [('init.run', str(averaging.folder)), ('model.scan_layers', 'True'), ('optim.model.ema_decay', '0.9')]
    experiment = Experiment(brief_gpt(*start, ('init.average', 'False')))
    raw, _ = initial.model(experiment)
    _, state = averaging.open()
    assert_equal(raw[0]['model'], stacked(state.params['model']))
    drawn = initial.model(Experiment(brief_gpt(*start, ('init.drawn', 'head'), ('adapt.name', 'lora'))))[0][0]['model']
    own = stacked(optim.averaged(state.params, state.opt)['model'])
    assert_equal(drawn['blocks'], own['blocks'])
    assert drawn['head']['kernel'] is drawn['lora']['blocks.query']['a'] is None
    with pytest.raises(UserError, match='model/blocks/.*: is one array of all layers .* some alone are drawn'):
        initial.model(Experiment(brief_gpt(*start, ('init.drawn', 'block_1'))))
    with pytest.raises(UserError, match=r'it lacks params/model/block_2/.*; set model.layers=2, as'):
        initial.model(Experiment(brief_gpt(*start, ('model.layers', '3'))))

    looped = Run(shutil.copytree(averaging.folder, tmp_path / 'looped', ignore=shutil.ignore_patterns('checkpoints')))
    looped.paths.config.write_text(config_lib.to_json(experiment.config))
    state = experiment.create_state(*raw)
    state = state._replace(params=jax.tree.map(lambda x: x + 1, state.params))  # which the average is not, then
    with contextlib.closing(looped.checkpoints(experiment.config)) as checkpoints:
        checkpoints.save(10, state)
    back = [('init.run', str(looped.folder)), ('model.dropout', '0.1')]
    for average in (True, False):
        found = initial.model(Experiment(brief_gpt(*back, ('init.average', str(average)))))[0][0]['model']
        assert_equal(found, jax.tree.map(lambda x, more=not average: x + more, averaging.open()[1].params['model']))


def test_a_regex_is_of_layers_in_a_loop_as_it_is_of_each_by_itself():
    """So it was passed over where another part of it matched; configs/t5.py has one for its layers."""
    config = config_lib.load(f'{CONFIGS / "t5.py"}:smoke', [('model.scan_layers', 'True')])
    params = Experiment(config).abstract_state.params['model']
    found = tree.flatten(tree.by_rule((('^embed|coder_[0-9]+/up', 1), ('blocks|head', 2)), params, 0, 'rules'))
    names = {value: [name for name, one in found.items() if one == value] for value in (1, 2)}
    assert names[1] == ['decoder_blocks/up/kernel', 'embed/embedding', 'encoder_blocks/up/kernel']
    assert {'encoder_blocks/down/kernel', 'head/kernel'} < {*names[2]}
    for field, value, *more in (
        ('optim.model.freeze', 'embed|block_0'), ('optim.model.freeze', '^(?!block_1|norm)'),
        ('adapt.targets', 'head|block_1', ('adapt.name', 'lora')),
        ('prune.targets', 'head|block_1', ('prune.keep', '.5')),
        ('quantize.targets', 'head|block_1', ('quantize.weights', 'int8')),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f'{field}: .* matches .*block_[01].* and not all layers'):
            Experiment(brief_gpt(('model.scan_layers', 'True'), *more, (field, value)))


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_early_stopping(tmp_path):
    fields = [('eval.patience', '1'), ('eval.best_metric', 'model/kl'), ('eval.best_mode', 'max')]
    config = config_lib.load(f'{CONFIGS / "vae.py"}:smoke', fields)
    config.optim.model.schedule = {'name': 'constant_schedule', 'value': 0.0}  # nothing ever gets better
    train_undrawn(config, tmp_path)
    _, state = Run(tmp_path).open()
    assert int(state.step) == 40  # the first evaluation is at 20, the one that is no better at 40
    config.total_steps = 80
    train_undrawn(config, tmp_path)
    assert int(Run(tmp_path).open()[1].step) == 40  # it is still out of patience


IMAGES = np.random.RandomState(0).randint(0, 256, (60, 8, 8)).astype(np.uint8)
CLASSES = np.arange(60) % 3


@pytest.mark.parametrize(
    'arrays, fields, split, extractor, said',
    [
        (dict(images=IMAGES, labels=CLASSES), [], 'valid', 'classifier', []),
        (dict(images=IMAGES), [], 'valid', 'pixels', ['eval.extractor: pixels, for there are no labels']),
        (dict(images=IMAGES[:25], labels=CLASSES[:25]), [], 'valid', '', ["eval.extractor: '', for 5 images are too"]),
        (dict(images=IMAGES, labels=CLASSES), [('data.valid_examples', '0')], 'test', 'classifier',
         ['eval.split: test, for the data have no valid split; the best checkpoint, by model/nll, is chosen by it']),
        (dict(train=IMAGES, valid=IMAGES), [('data.valid_examples', '0'), ('eval.best_metric', '')], 'test', 'pixels',
         ['eval.split: test, for the data have no valid split\n', 'eval.extractor: pixels']),
        (dict(images=IMAGES), [('eval.split', 'train'), ('eval.extractor', 'classifier')], 'train', 'classifier', []),
    ],
)  # fmt: skip
def test_defaults_follow_from_the_data(tmp_path, capsys, arrays, fields, split, extractor, said):
    np.savez(tmp_path / 'a.npz', **arrays)
    fields = [('data.name', f'npz:{tmp_path}/a.npz'), ('eval.extractor', 'auto'), *fields]
    given = config_lib.load(f'{CONFIGS / "vae.py"}:smoke', fields)
    before = config_lib.to_json(given)
    config = Experiment(given).config
    assert (config.eval.split, config.eval.extractor) == (split, extractor)
    notes = capsys.readouterr().err
    assert all(f'note: {words}' in notes for words in said) and notes.count('note: eval.') == len(said), notes
    assert config_lib.to_json(given) == before  # config.json says what was asked for
