"""Classes of texts and tokens; runs that take the trunk of a masked language model and draw a head."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core import optim, rng, tree
from aigc_jax.core.capabilities import Measures, SplitStatistic
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra
from aigc_jax.data import NO_TAG
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import initial
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

EXTRA = Extra({}, {})
SHORT = [('total_steps', '2'), ('log_every_steps', '2'), ('eval_every_steps', '2'), ('checkpoint_every_steps', '2')]
SMALL = [('model.width', '8'), ('model.layers', '1'), ('model.heads', '1'), ('model.kv_heads', '1')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """With labelled.jsonl, tagged.jsonl and mlm, a run with an average and the head of the order of halves."""
    folder = tmp_path_factory.mktemp('classify')
    draws = np.random.default_rng(0)
    labelled, tagged = [], []
    for i in range(60):
        words = [['red', 'blue', 'no'][draws.integers(3)] for _ in range(draws.integers(2, 8))]
        labelled.append({'text': f'{i} {" ".join(words)}', 'label': max(words, key=words.count)})
        tagged.append({'tokens': words, 'tags': ['colour' if word != 'no' else 'other' for word in words]})
    for name, rows in (('labelled', labelled), ('tagged', tagged)):
        (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    more = [('optim.model.ema_decay', '0.5'), ('task.sentence_order', '1.0'), ('model.positions', '50')]
    train(config_lib.load('configs/bert.py:smoke', SHORT + SMALL + more), Run(folder / 'mlm'))
    return folder


def config_of(folder, kind, *overrides):
    own = [('data.name', f'{kind}:{folder}/{kind}.jsonl'), ('data.valid_percent', '20'), ('data.test_percent', '20')]
    own += [('model.positions', '50'), ('model.dropout', '0.0')]
    return config_lib.load('configs/finetune_classify.py:smoke', SHORT + SMALL + own + [*overrides])


def of_mlm(folder):
    return Experiment(config_of(folder, 'labelled', ('init.run', str(folder / 'mlm'))), None, tokenizer(folder))


def tokenizer(folder):
    return initial.tokenizer(config_of(folder, 'labelled', ('init.run', str(folder / 'mlm'))))


def parameters(experiment):
    return tree.flatten(jax.device_get(experiment.create_state(*initial.model(experiment)[0]).params))


def test_the_trunk_is_taken_and_the_head_is_drawn(folder, capsys):
    experiment = of_mlm(folder)
    capsys.readouterr()
    found = parameters(experiment)
    said = capsys.readouterr().err
    theirs, state = Run(folder / 'mlm').open()
    average = tree.flatten(jax.device_get(optim.averaged(state.params, state.opt)))
    drawn = tree.flatten(jax.device_get(Experiment(config_of(folder, 'labelled')).create_state().params))
    assert found.keys() == drawn.keys() and 'model/mask_dense/kernel' in average
    for name, value in found.items():
        if 'pooler' in name or 'classifier' in name:
            np.testing.assert_array_equal(value, drawn[name], err_msg=name)
        elif name == 'model/embed/embedding':  # the end of a text is a token more
            np.testing.assert_array_equal(value[:-1], average[name])
            np.testing.assert_array_equal(value[-1:], drawn[name][-1:])
        else:
            np.testing.assert_array_equal(value, average[name], err_msg=name)
    left = sum(value.size for name, value in average.items() if any(x in name for x in ('mask_', 'pooler', 'classi')))
    heads = {name: value for name, value in drawn.items() if 'pooler' in name or 'classifier' in name}
    loaded = sum(value.size for name, value in average.items() if name in drawn.keys() - heads)
    assert f'{loaded:,} parameters' in said and f'{left:,} parameters (9 arrays) left' in said
    assert f'{sum(value.size for value in heads.values()):,} parameters (4 arrays) drawn' in said


@pytest.mark.parametrize('freeze, left, mend', [
    ('', 'model/classifier/bias, model/classifier/kernel, model/pooler/bias, model/pooler/kernel',
     "set it to '^(?!lora/|classifier|pooler)' to train them, too"),
    ('^(?!lora/|classifier)', 'model/pooler/bias, model/pooler/kernel', "'^(?!lora/|classifier)' matches them"),
    ('^(?!lora/|classifier|pooler)', '', ''),
], ids=['adapters', 'classifier', 'head'])  # fmt: skip
def test_a_new_head_that_is_not_trained_is_told(folder, freeze, left, mend, capsys):
    fields = [('init.run', str(folder / 'mlm')), ('adapt.name', 'lora'), ('optim.model.freeze', freeze)]
    experiment = Experiment(config_of(folder, 'labelled', *fields), None, tokenizer(folder))
    capsys.readouterr()
    initial.model(experiment)
    said = [line for line in capsys.readouterr().err.splitlines() if 'freeze' in line]
    assert said == ([f'note: optim.model.freeze: drawn and not trained: {left}; {mend}'] if left else [])


def test_each_seed_draws_its_own_head(folder):
    fields = [('init.run', str(folder / 'mlm')), ('num_seeds', '2')]
    found = parameters(Experiment(config_of(folder, 'labelled', *fields), None, tokenizer(folder)))
    one = parameters(of_mlm(folder))
    for name, value in found.items():
        same = 'kernel' not in name or not ('pooler' in name or 'classifier' in name)
        assert np.array_equal(value[0], value[1]) == same or name == 'model/embed/embedding', name
        if name.startswith('model/block'):
            np.testing.assert_array_equal(value[0], one[name])
    np.testing.assert_allclose(found['model/classifier/kernel'][0], one['model/classifier/kernel'], atol=1e-7)


@pytest.mark.parametrize('overrides, words', [
    ((('init.drawn', ''),), 'params/model/classifier/bias is float32'),
    ((('init.unused', ''),), 'it has params/model/mask_bias'),
    ((('init.drawn', 'heads'),), "init.drawn: 'heads' matches no parameter of this model"),
    ((('init.unused', 'mask_x'),), "init.unused: 'mask_x' matches no parameter of"),
    ((('init.drawn', '(('),), 'init.drawn'),
    ((('model.mlp_width', '16'),), 'params/model/block_0/down/kernel'),
    ((('model.mlp_width', '16'),), '; set model.mlp_width=32, as '),
    ((('model.positions', '0'),), '; set model.positions=50, as '),
], ids=lambda x: x if isinstance(x, str) else '')  # fmt: skip
def test_a_difference_that_the_config_does_not_ask_for_is_refused(folder, overrides, words):
    config = config_of(folder, 'labelled', ('init.run', str(folder / 'mlm')), *overrides)
    with pytest.raises(UserError) as error:
        initial.model(Experiment(config, None, tokenizer(folder)))
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('kind', ['labelled', 'tagged'])
def test_the_loss_and_the_metrics_are_over_what_there_is_to_tell(folder, kind):
    own = Experiment(config_of(folder, kind))
    task, batch = own.task, own.dataset.splits['train'][np.arange(6)]
    params = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), task.init(rng.stream(0, 'init'))[0]
    )
    ctx = rng.context(0, 'train', 0, jnp.arange(6))
    classifier = task.rounds[0][0].loss.__self__
    logits = jax.device_get(classifier.logits(params, EXTRA, batch, ctx))
    targets, counted = jax.device_get(classifier.targets(batch))
    logits, targets, counted = logits.reshape(-1, logits.shape[-1]), targets.ravel(), counted.ravel()
    if kind == 'tagged':
        assert 0 < counted.sum() == (batch['tags'] != NO_TAG).sum() < counted.size
    log_p = np.array(jax.nn.log_softmax(logits))[np.arange(len(targets)), targets][counted]
    value, aux = task.rounds[0][0].loss(params, EXTRA, batch, ctx)
    assert value == pytest.approx(-log_p.mean(), rel=1e-5) and aux.weight == counted.sum()
    # What fills up a row is read by nothing.
    row = np.arange(batch['tokens'].shape[1]) < batch['tokens_length'][:, None]
    other = {**batch, 'tokens': np.where(row, batch['tokens'], 5)}
    assert task.rounds[0][0].loss(params, EXTRA, other, ctx)[0] == pytest.approx(float(value), rel=1e-6)
    found = jax.device_get(task.get(Measures).per_example(params, EXTRA, batch, ctx))
    right = (logits.argmax(-1) == targets)[counted]
    accuracy = found['accuracy'] if kind == 'labelled' else found['accuracy'][0]
    assert accuracy.sum() == right.sum() and (found['accuracy'].dtype == bool if kind == 'labelled' else True)
    statistic = task.get(SplitStatistic)
    summary = statistic.summarize(jax.device_get(statistic.collect(params, EXTRA, batch, ctx)))
    f1 = []
    for k in range(logits.shape[-1]):
        a, b = logits.argmax(-1)[counted] == k, targets[counted] == k
        f1 += [2 * (a & b).sum() / (a.sum() + b.sum())] if a.any() or b.any() else []
    assert summary['macro_f1'] == pytest.approx(np.mean(f1))
    assert summary['most_frequent/accuracy'] == np.bincount(targets[counted]).max() / counted.sum()


def test_a_run_learns_from_where_the_other_ended(folder):
    fields = [('total_steps', '150'), ('eval_every_steps', '150'), ('checkpoint_every_steps', '150'),
              ('log_every_steps', '150'), ('optim.model.schedule.peak_value', '1e-2')]  # fmt: skip
    config = config_of(folder, 'tagged', ('init.run', str(folder / 'mlm')), *fields)
    train(config, Run(folder / 'tuned'))
    found = json.loads((folder / 'tuned' / 'evaluation.json').read_text())
    assert found['accuracy']['value'] > 0.95 > found['most_frequent/accuracy']['value'] and found['macro_f1']['n'] > 5


def test_other_data_are_refused(folder):
    rows = [json.dumps({'source': f'{i} a', 'target': 'b'}) for i in range(60)]
    (folder / 'pairs.jsonl').write_text('\n'.join(rows) + '\n')
    with pytest.raises(UserError, match='classify reads images, labelled or tagged texts; .* holds pairs of texts'):
        Experiment(config_of(folder, 'pairs'))


@pytest.mark.parametrize('kinds', [0, 1, 2])
def test_a_second_text_has_a_type_of_its_own(folder, kinds):
    rows = [{'one': 'red', 'two': 'blue' * (i % 3), 'label': i % 2} for i in range(60) if i % 3]
    rows = [{**row, 'one': f'{row["one"]} {i}'} for i, row in enumerate(rows)]
    (folder / 'two.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    more = [('data.name', f'labelled:{folder}/two.jsonl'), ('data.columns', "('one', 'two', 'label')")]
    experiment = Experiment(config_of(folder, 'labelled', *more, ('model.token_types', str(kinds))))
    params, batch = experiment.create_state().params, experiment.dataset.splits['train'][np.arange(4)]
    assert batch['types'].max() == 1
    measure, ctx = experiment.task.get(Measures).per_example, rng.context(0, 'eval', 0, jnp.arange(4))
    nats = lambda types: measure(params, EXTRA, {**batch, 'types': types}, ctx)['nats']
    assert bool((nats(batch['types']) != nats(batch['types'] * 0)).any()) == (kinds == 2)
