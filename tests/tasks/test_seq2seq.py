"""Encoder-decoders as a task: what the loss is, what is measured, and what they write."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from configfiles import CONFIGS

from aigc_jax.core import rng
from aigc_jax.core.capabilities import CausalText, Measures, Samples, Seq2Seq
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra
from aigc_jax.decoding.generate import Generator
from aigc_jax.metrics import written
from aigc_jax.reports.trained import Trained
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

PAIRS = [{'source': f'{word} {n}', 'target': word} for n in range(40) for word in ('hello', 'bye', 'thanks')]


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp('pairs') / 'pairs.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in PAIRS))
    return str(path)


def config_of(pairs: str, **fields):
    fields = {'data.name': f'pairs:{pairs}', 'data.columns': (), **fields}
    return config_lib.load(f'{CONFIGS / "finetune_seq2seq.py"}:smoke', [(k, str(v)) for k, v in fields.items()])


@pytest.fixture(scope='module')
def trained(pairs, tmp_path_factory) -> Trained:
    """It knows the task well enough to write words that end."""
    folder = tmp_path_factory.mktemp('run')
    fields = {'total_steps': 160, 'eval_every_steps': 160, 'optim.model.schedule.peak_value': 2e-2,
              'checkpoint_every_steps': 160, 'data.code': True, 'eval.code_bleu': True}  # fmt: skip
    train(config_of(pairs, **fields), Run(folder))
    run = Run(folder)
    return Trained(run, *run.open())


@pytest.mark.parametrize('fields', [
    {}, {'task.label_smoothing': 0.1}, {'task.z_loss': 0.01, 'task.label_smoothing': 0.2},
], ids=str)  # fmt: skip
def test_the_loss_is_the_mean_over_the_tokens_of_the_targets(pairs, fields):
    """In NumPy, from the logits; the targets are of unequal length, and what fills them up is not read."""
    experiment = Experiment(config_of(pairs, **{'model.dropout': 0.0}, **fields))
    task, ctx = experiment.task, rng.context(0, 'train', 0, jnp.arange(6))
    (params, extra), batch = task.init(rng.stream(0, 'init')), experiment.examples('train', np.arange(6))
    value, aux = task.rounds[0][0].loss(params, extra, batch, ctx)
    nll, there = task.get(Seq2Seq).token_nll(params, extra, batch, ctx)
    lengths, there = batch['target_length'], np.asarray(there)
    assert len({*lengths.tolist()}) > 1 and there.sum() == float(aux.weight) == lengths.sum()
    other = {**batch, 'target': np.where(there, batch['target'], 7), 'source': np.where(
        np.arange(24) < batch['source_length'][:, None], batch['source'], 9)}  # fmt: skip
    assert task.rounds[0][0].loss(params, extra, other, ctx)[0] == value
    model = task.rounds[0][0].loss.__self__
    logits = np.asarray(model.score(params, batch)[0], np.float64)
    log_z = scipy.special.logsumexp(logits, axis=-1)
    chosen = np.take_along_axis(logits, batch['target'][..., None], -1)[..., 0]
    np.testing.assert_allclose(nll, log_z - chosen, rtol=1e-4, atol=1e-6)
    mean = lambda x: (x * there).sum() / there.sum()
    share, z = fields.get('task.label_smoothing', 0.0), fields.get('task.z_loss', 0.0)
    wanted = (1 - share) * mean(log_z - chosen) + share * mean(log_z - logits.mean(-1)) + z * mean(log_z**2)
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    assert float(aux.metrics['nats_per_token']) == pytest.approx(mean(log_z - chosen), rel=1e-5)


def test_the_loss_of_packed_rows_is_that_of_their_pairs_apart(pairs):
    """And its gradient; what fills the rows up, and the other pairs of a row, are not read."""
    fields = {'model.dropout': 0.0, 'data.block': 48, 'data.target_block': 25}
    packed, apart = (Experiment(config_of(pairs, **fields, **more)) for more in ({'data.packed': True}, {}))
    assert len(packed.dataset.splits['train']) < len(apart.dataset.splits['train']) / 3
    assert len(packed.dataset.splits['valid']) == len(apart.dataset.splits['valid'])
    ctx, (params, extra) = rng.context(0, 'train', 0, jnp.arange(4)), apart.task.init(rng.stream(0, 'init'))
    loss = jax.jit(jax.value_and_grad(lambda p, batch: apart.task.rounds[0][0].loss(p, extra, batch, ctx)[0]))
    batch = packed.examples('train', np.arange(4))
    each = {
        name: [row[of == k] for row, of in zip(batch[name], batch[f'{name}_part'], strict=True)
               for k in range(1, of.max() + 1)]
        for name in ('source', 'target')
    }  # fmt: skip
    assert len(each['source']) == len(each['target']) > 12
    whole = lambda rows: np.stack([np.pad(row, (0, 48 - len(row))) for row in rows])
    alone = {name: whole(rows) for name, rows in each.items()}
    alone |= {f'{name}_length': np.array([len(row) for row in rows]) for name, rows in each.items()}
    every = apart.examples('train', np.arange(len(apart.dataset.splits['train'])))
    known = {row[:n].tobytes() for row, n in zip(every['source'], every['source_length'], strict=True)}
    assert {row.tobytes() for row in each['source']} <= known
    (value, gradient), (wanted, theirs) = loss(params, batch), loss(params, alone)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, theirs)
    token_nll = apart.task.get(Seq2Seq).token_nll
    of = jax.jit(lambda batch: token_nll(params, extra, batch, ctx)[0])
    second = batch['source_part'] == 2
    other = {**batch, 'source': np.where(second | (batch['source_part'] == 0), 7, batch['source'])}
    changed, kept = of(other) != of(batch), batch['target_part'] != 2
    assert not changed[kept & (batch['target_part'] > 0)].any() and changed[batch['target_part'] == 2].any()
    with pytest.raises(UserError, match='data.packed: the rows of train hold several pairs each'):
        Experiment(config_of(pairs, **fields, **{'data.packed': True, 'eval.split': 'train'}))


PACKED = {
    'data.packed': True, 'data.block': 48, 'data.target_block': 25, 'model.dropout': 0.0, 'batch_size': 8,
    'total_steps': 4, 'eval.num_generated': 0, **{f'{name}_every_steps': 2 for name in ('log', 'eval', 'checkpoint')},
}  # fmt: skip


@pytest.fixture(scope='module')
def packed(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp('packed')
    train(config_of(pairs, **PACKED), Run(folder))
    return folder


def test_an_interrupted_run_on_packed_rows_is_the_uninterrupted_one(pairs, packed, tmp_path):
    shutil.copytree(packed, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
    train(config_of(pairs, **PACKED), Run(tmp_path / 'run'))
    assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == (packed / 'metrics.jsonl').read_bytes()
    own, wanted = (jax.device_get(Run(folder).open()[1].params) for folder in (tmp_path / 'run', packed))
    jax.tree.map(np.testing.assert_array_equal, own, wanted)


@pytest.mark.parametrize('layout', [
    ('parallel.mesh.fsdp=8', "parallel.rules=(('.*', 'fsdp'),)"), ('parallel.mode=pmap',),
], ids=['fsdp', 'pmap'])  # fmt: skip
def test_eight_devices_train_the_same_on_packed_rows(runner8, pairs, packed, layout, tmp_path):
    """Rows hold other numbers of tokens, over all of which the loss is a mean."""
    fields = {'data.name': f'pairs:{pairs}', 'data.columns': (), **PACKED}
    fields = [f'--config.{name}={value}' for name, value in fields.items()]
    more = [f'--config.{field}' for field in layout]
    code, _, err = runner8('--config=configs/finetune_seq2seq.py:smoke', f'--workdir={tmp_path}/run', *fields, *more)
    assert code == 0, err
    rows = lambda folder: [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    for own, wanted in zip(rows(tmp_path / 'run'), rows(packed), strict=True):
        assert own.keys() == wanted.keys()
        for name in wanted.keys() - {'split'}:
            assert own[name] == pytest.approx(wanted[name], rel=1e-4), name


def test_what_is_written_greedily_is_exactly_matched(trained):
    """exact_match, of the likeliest token at each place given those before it, is that greedy decoding writes it."""
    task, state = trained.experiment.task, trained.state
    batch = trained.experiment.examples('test', np.arange(3))
    sources = [PAIR['source'] for PAIR in PAIRS[:3]]
    texts = trained.generate(sources, n=1, temperature=0.0, max_new_tokens=8)
    tokens = [text.tokens for text in texts]
    assert [text.ended for text in texts] == ['end'] * 3  # else there is nothing to compare
    encoded = [np.append(trained.tokenizer.encode(source), trained.tokenizer.end) for source in sources]
    fill = lambda rows, width: np.stack([np.pad(row, (0, width - len(row))) for row in rows]).astype(np.int32)
    own = {
        'source': fill(encoded, 24), 'source_length': np.array([len(row) for row in encoded], np.int32),
        'target': fill(tokens, 12), 'target_length': np.array([len(row) for row in tokens], np.int32),
    }  # fmt: skip
    assert own.keys() == batch.keys()
    extra, ctx = Extra(state.stats, state.carry), rng.context(0, 'eval', 0, jnp.arange(3))
    found = task.get(Measures).per_example(state.params, extra, own, ctx)
    assert found['model/exact_match'].all() and (found['model/accuracy'][0] == own['target_length']).all()
    nats, _ = task.get(Seq2Seq).token_nll(state.params, extra, own, ctx)
    for text, row, length in zip(texts, nats, own['target_length'], strict=True):
        assert text.nats == pytest.approx(float(row[:length].sum()), rel=1e-3, abs=1e-4)
    wrong = {**own, 'target': own['target'].copy()}
    wrong['target'][:, 0] += 1
    assert not task.get(Measures).per_example(state.params, extra, wrong, ctx)['model/exact_match'].any()


def test_a_text_is_written_for_its_prompt_and_does_not_go_on_from_it(trained):
    assert trained.can(Seq2Seq) and not trained.can(CausalText) and not trained.can(Samples)
    (text,) = trained.generate('bye 7', temperature=0.0)
    assert str(text) == text.text and text.prompt == 'bye 7' and len(text.tokens) < 20
    shown = []
    (streamed,) = trained.generate('bye 7', temperature=0.0, stream=shown.append)
    assert shown[-1] == str(streamed) == str(text)
    (beams,) = trained.generate('bye 7', beam_size=3, max_new_tokens=6)
    assert beams.nats <= text.nats + 1e-3
    drawn = trained.generate(['bye 7', 'hello 3'], n=2, seed=5, max_new_tokens=6)
    alone = trained.generate(['bye 7'], n=2, seed=5, max_new_tokens=6)  # whatever stands beside it
    assert [t.text for t in drawn[:2]] == [t.text for t in alone]


def test_a_grammar_is_of_the_text_alone(trained, tmp_path):
    """The prompt is none of its words."""
    grammar = tmp_path / 'words.lark'
    grammar.write_text('start: "no" | "never"\n')
    (text,) = trained.generate('bye 7', temperature=0.0, grammar=str(grammar))
    assert text.text in ('no', 'never') and text.ruled_out > 0


@pytest.mark.parametrize('how, words', [({'draft': 'ngram'}, 'draft: is of'), ({'suffix': 'x'}, 'suffix: is of')])
def test_what_goes_on_from_a_prompt_is_refused(trained, how, words):
    with pytest.raises(UserError, match=f'{words} a text that goes on from its prompt'):
        trained.generate('bye 7', **how)


def test_the_final_evaluation_writes_targets_and_measures_them(trained):
    results = json.loads((trained.run.folder / 'evaluation.json').read_text())
    n = len(trained.experiment.dataset.splits['test'])
    assert results['written/exact_match']['n'] == n == results['model/exact_match']['n']
    assert results['written/exact_match']['value'] == results['model/exact_match']['value'] > 0
    # The words parse, as Python's names; without data flow, so all but that share is of them.
    assert results['written/code_parses']['value'] == 1 and 'written/code_dataflow' not in results
    assert 0 < results['written/code_ngrams']['value'] <= results['written/code_bleu']['value'] <= 100
    (path,) = (trained.run.folder / 'samples').glob('*_written.txt')
    assert path.name == '00000160_written.txt' and path.read_text().count('\n→ ') == min(n, 4)


def test_scores_are_those_of_the_libraries():
    pytest.importorskip('sacrebleu', reason='sacrebleu is not installed')
    pytest.importorskip('rouge_score', reason='rouge-score is not installed')
    ours, wanted = ['the cat sat on the mat', ' a b '], ['the cat sat on a mat', 'a b']
    found = written.scores(ours, wanted)
    assert found['exact_match']['value'] == 0.5 and found['rouge_l']['value'] == pytest.approx((5 / 6 + 1) / 2)
    assert found['bleu']['value'] == pytest.approx(56.1, abs=1)
    assert written.scores(wanted, wanted)['bleu']['value'] == pytest.approx(100)


def test_without_a_library_its_metric_is_left_out_and_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(written.importlib.util, 'find_spec', lambda name: None)
    assert list(written.scores(['a'], ['a'])) == ['exact_match']
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2
    assert "bleu: not measured, for sacrebleu is not installed; pip install 'aigc_jax[text]'" in notes[0]


def test_windows_are_made_into_pairs_alike_for_each_seed():
    """Sentinels in a prompt are read as such, and evaluations of all runs hide the same."""
    config = config_lib.load(f'{CONFIGS / "t5.py"}:smoke', [])
    experiment = Experiment(config)
    task = experiment.task
    params, extra = task.init(rng.stream(0, 'init'))
    batch = experiment.examples('valid', np.arange(3))
    measure = task.get(Measures).per_example
    a, b = (measure(params, extra, batch, rng.context(seed, 'eval', 0, jnp.arange(3))) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert set(a) == {'model/nats_per_token', 'model/accuracy'}
    tokenizer = experiment.dataset.spec.tokenizer
    generator = Generator(task.get(Seq2Seq), tokenizer, experiment_sampling(config))
    prompt = generator._prompt('a <extra_id_0> b')
    assert prompt.tolist() == [ord('a'), 32, tokenizer.sentinels[0], 32, ord('b'), tokenizer.end]


def test_an_empty_source_is_refused():
    """Of a prefix language model; other sources have an end."""
    config = config_lib.load(f'{CONFIGS / "t5.py"}:smoke,prefix', [])
    experiment = Experiment(config)
    model, tokenizer = experiment.task.get(Seq2Seq), experiment.dataset.spec.tokenizer
    state = experiment.create_state()
    with pytest.raises(UserError, match='prompt: is empty; it is the source'):
        Generator(model, tokenizer, experiment_sampling(config)).generate(state, ['a', ''], 1, 0)


def experiment_sampling(config):
    from aigc_jax.decoding import from_config

    return from_config(config.sample)


@pytest.mark.parametrize('config, fields, words', [
    ('t5', {'data.sentinels': 1}, r'data.sentinels: 1; a window has 2 spans to hide, so set it to 2 or more'),
    ('t5', {'data.fim_rate': 0.5}, 'data.fim_rate: infilling is for task.name=lm'),
    ('t5', {'data.order': 'contiguous'}, 'data.order: no state is carried'),
    ('t5', {'task.noise_density': 0.95, 'task.mean_span': 1.0}, 'task.mean_span: 1, and task.noise_density, 0.95'),
    ('t5', {'data.eval_block': 80}, 'data.eval_block: 80; sources and targets are made of windows'),
    ('t5', {'model.heads': 3}, 'model.heads: 3 does not divide model.width'),
    ('t5', {'model.max_distance': 16}, 'model.max_distance: 16; more than half of model.buckets'),
    ('t5', {'model.attention': 'xla', 'model.dropout': 0.1}, 'model.dropout: of attention weights'),
    ('t5', {'model.scan_layers': True, 'model.dropout': 0.1}, 'model.dropout: 0.1; with model.scan_layers all'),
    ('bert', {'model.scan_layers': True, 'model.dropout': 0.1}, 'model.dropout: 0.1; with model.scan_layers all'),
    ('t5', {'model.vocab_size': 100}, 'model.vocab_size: 100, but the tokenizer has'),
    ('bert', {'task.name': 'seq2seq'}, 'no such field'),
])  # fmt: skip
def test_fields_that_do_not_fit_are_refused_by_their_names(config, fields, words):
    with pytest.raises(UserError, match=words):
        Experiment(config_lib.load(f'{CONFIGS / config}.py:smoke', [(k, str(v)) for k, v in fields.items()]))
