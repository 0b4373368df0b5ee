"""Intervals of 95 % against their coverage, exact or simulated; what a text is cut into; means over seeds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom, bootstrap, t

from aigc_jax import reports
from aigc_jax.core.capabilities import CausalText
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra
from aigc_jax.decoding.generate import Text, summary
from aigc_jax.metrics import intervals, text_likelihood
from aigc_jax.metrics.ngram import mixture_nats
from aigc_jax.metrics.python_code import pass_at_k
from aigc_jax.reports import tables
from aigc_jax.reports.evaluation import Evaluation
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.reports.text_likelihood import Baselines
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment

DOCUMENTS = 'documents'


def test_a_share_of_nothing_is_no_certain_zero():
    none, every = intervals.wilson(0, 200), intervals.wilson(200, 200)
    assert (none['value'], none['low'], none['n']) == (0, 0, 200) and none['high'] == pytest.approx(0.01885, abs=1e-5)
    assert every['high'] == 1 and every['low'] == pytest.approx(1 - none['high'])
    half = intervals.wilson(100, 200)  # Wilson's formula by hand
    assert (half['low'], half['high']) == pytest.approx((0.431361, 0.568639), abs=1e-6)


def test_intervals_of_shares_cover_the_truth():
    """Of 200 successes or failures: exactly, for each p of a fine grid."""
    rows = [intervals.wilson(x, 200) for x in range(201)]
    low, high = (np.array([row[end] for row in rows]) for end in ('low', 'high'))
    for p in np.concatenate([np.geomspace(0.0005, 0.5, 500), [0.005, 0.01, 0.02, 0.05, 0.1, 0.2]]):
        assert binom.pmf(np.arange(201), 200, p)[(low <= p) & (p <= high)].sum() >= 0.93, p


@pytest.mark.parametrize('p', [0.005, 0.01, 0.05, 0.2, 0.5])
def test_the_mean_of_zeros_and_ones_is_a_share(p):
    draws = np.random.default_rng(0).random((1000, 200)) < p
    rows = [intervals.mean_of_shares(draw, 'problems') for draw in draws]
    assert np.mean([row['low'] <= p <= row['high'] for row in rows]) >= 0.93
    assert rows[0] == intervals.wilson(draws[0].sum(), 200, 'problems')


def test_pass_at_k_has_the_bootstraps_interval():
    random = np.random.default_rng(1)
    counts = random.binomial(10, random.beta(1, 3, 200) * (random.random(200) < 0.3))
    values = [pass_at_k(10, c, 5) for c in counts]
    row = intervals.mean_of_shares(values, 'problems')
    want = bootstrap((values,), np.mean, n_resamples=20_000, rng=5).confidence_interval
    assert (row['low'], row['high']) == pytest.approx(tuple(want), abs=3e-3) and row['value'] == np.mean(values)
    assert row == intervals.mean_of_shares(values, 'problems')  # the same draws
    none = intervals.mean_of_shares([0.0] * 200, 'problems')
    assert none['low'] == 0 and none['high'] == pytest.approx(0.01885, abs=1e-5)
    alike = intervals.mean_of_shares([0.3] * 20, 'problems')
    assert alike['low'] < 0.2 and alike['high'] > 0.4


def test_few_clusters_have_students_quantile():
    total, count = np.array([3.0, 10.0, 4.0]), np.array([1.0, 5.0, 2.0])
    row, value = intervals.ratio(total, count, DOCUMENTS), 17 / 8
    residual = total - value * count
    error = math.sqrt(np.square(residual).sum() / 2) / (math.sqrt(3) * count.mean())
    assert row == {'value': value, 'ci': pytest.approx(t.ppf(0.975, 2) * error), 'n': 3, 'over': DOCUMENTS}
    assert math.isnan(intervals.ratio(total[:1], count[:1])['ci'])
    random = np.random.default_rng(0)
    hits = [abs((found := intervals.ratio(random.normal(size=5)))['value']) <= found['ci'] for _ in range(2000)]
    assert 0.93 < np.mean(hits) < 0.97


def test_what_a_task_gives_as_successes_is_a_share():
    assert tables.mean_row(np.zeros(200, bool)) == intervals.wilson(0, 200)
    assert tables.mean_row(np.zeros(200)) == {'value': 0, 'ci': 0, 'n': 200, 'over': 'examples'}


def test_one_text_is_not_told_as_one_texts():
    written = Text('', 'a', np.zeros(1, np.int32), 1.5, 'length', 0.0, 1, '')
    assert summary([written]).startswith('1 text (1 cut off') and summary([written] * 2).startswith('2 texts (2 cut')


def text_of(sizes, end=9):
    return np.concatenate([[end, *[1] * (size - 1)] for size in sizes])


def test_a_text_is_cut_into_documents_each_with_its_end():
    clusters = text_likelihood.Clusters.of_text(text_of([3, 4] + [2] * 20), 9)
    assert clusters.over == 'documents' and clusters.index[:8].tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
    assert clusters.sizes.tolist() == [3, 4] + [2] * 19 + [1]  # the end of the last one is not there
    assert clusters.sums(np.arange(len(clusters.index)))[:2].tolist() == [3, 18]


@pytest.mark.parametrize('sizes', [[1000] * 19, [500_00] + [1000] * 30, [20_000]])
def test_few_documents_or_one_that_is_most_of_the_text_become_blocks(sizes):
    tokens = text_of(sizes)
    for end in (9, None):
        clusters = text_likelihood.Clusters.of_text(tokens, end)
        assert clusters.over == 'blocks of 4096 tokens' and (clusters.sizes[:-1] == 4096).all()
        assert 4096 <= clusters.sizes[-1] < 8192 and clusters.sizes.sum() == len(tokens) - 1
    short = text_likelihood.Clusters.of_text(tokens[:8000], None)
    assert short.sizes.tolist() == [7999] and short.over == 'texts'


def documents_that_differ(random, count):
    """Tokens' nats and documents: what makes a document hard is common to all of its tokens."""
    sizes = random.integers(50, 400, count)
    nats = [random.normal(2 + random.normal(0, 0.5), 1.0, size) for size in sizes]
    return np.concatenate(nats), np.repeat(np.arange(count), sizes)


def test_intervals_over_documents_cover_the_truth_and_those_over_windows_do_not():
    random, hits = np.random.default_rng(0), []
    for _ in range(400):
        nats, index = documents_that_differ(random, 25)
        clusters = text_likelihood.Clusters(index, DOCUMENTS)
        windows = nats[: len(nats) // 64 * 64].reshape(-1, 64).mean(axis=1)
        rows = intervals.ratio(clusters.sums(nats), clusters.sizes), intervals.ratio(windows)
        hits.append([abs(row['value'] - 2) <= row['ci'] for row in rows])
    by_document, by_window = np.mean(hits, axis=0)
    assert by_document >= 0.92 and by_window < 0.7


def test_models_of_the_same_text_are_compared_by_the_paired_difference():
    theirs, index = documents_that_differ(np.random.default_rng(0), 30)
    ours = theirs - 0.1 + np.random.default_rng(1).normal(0, 0.1, len(theirs))
    clusters, num_bytes = text_likelihood.Clusters(index, DOCUMENTS), np.full(len(index), 2)
    rows = text_likelihood.beside('5-gram', clusters.sums(theirs), clusters.sums(ours), clusters, num_bytes)
    row = rows['5-gram/nats_per_token']
    assert row['value'] == pytest.approx(theirs.mean()) and row['over'] == DOCUMENTS and row['n'] == 30
    assert row['difference']['value'] == pytest.approx(np.mean(theirs - ours))
    assert abs(row['difference']['value'] - 0.1) < row['difference']['ci'] < 0.05 * row['ci']
    bits = rows['5-gram/bits_per_byte']
    assert bits['value'] == pytest.approx(theirs.mean() / math.log(2) / 2)
    assert bits['difference']['ci'] == pytest.approx(row['difference']['ci'] / math.log(2) / 2)
    assert 'minus the model 0.1' in tables.table({'5-gram/nats_per_token': row}) and 'over 30 documents' in (
        tables.table({'5-gram/nats_per_token': row})
    )
    assert list(text_likelihood.beside('5-gram', theirs[:30], ours[:30], clusters, None)) == ['5-gram/nats_per_token']


@pytest.fixture(scope='module')
def text_experiment(tmp_path_factory):
    """30 documents of different lengths in windows that overlap; a Transformer that has not been trained."""
    folder = tmp_path_factory.mktemp('text')
    for i in range(300):
        (folder / f'{i}.txt').write_text(f'{i} is the number of this document. ' * (1 + i % 5))
    overrides = [
        ('data.name', f'text:{folder}/*.txt'), ('data.test_percent', '10.0'), ('data.eval_stride', '7'),
        ('data.eval_block', '20'), ('eval.batch_size', '64'),
    ]  # fmt: skip
    return Experiment(config_lib.load('configs/gpt.py:smoke', overrides))


def assert_same(found, want):
    numbers = [{name: value for name, value in row.items() if name != 'over'} for row in (found, want)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-4) and found['over'] == want['over']


def test_each_token_of_a_window_goes_to_its_document(text_experiment):
    """Against sums written out, token by token, of a model whose nats differ from window to window."""
    experiment = text_experiment
    evaluator = Evaluator(experiment)
    windows, tokenizer = experiment.dataset.splits['test'], experiment.dataset.spec.tokenizer
    state = experiment.create_state()
    jitter = lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)
    state = state._replace(params=jax.tree.map(jitter, state.params))
    found = Evaluation(evaluator).each(state, 0, 'test') | Baselines(evaluator).measure(state, 0, 'test')
    tokens, document, seen = windows.tokens, -1, {}
    of_place = [document := document + (token == tokenizer.end) for token in tokens]
    sums = {}  # document: nats, tokens, bytes, nats over windows, places
    of_windows = jax.jit(experiment.task.get(CausalText).token_nll)
    rows = of_windows(state.params, Extra({}, {}), windows[np.arange(len(windows))]['tokens'])
    for i, nats in enumerate(np.asarray(rows, np.float64)):
        start = min(7 * i, len(tokens) - 21)
        for k, value in enumerate(nats):
            place = start + k + 1
            own = sums.setdefault(of_place[place - 1], np.zeros(5))
            own[3:] += value, 1
            if place not in seen:
                seen[place] = value
                own[:3] += value, 1, tokens[place] != tokenizer.end
    assert len(seen) == len(tokens) - 1 and len(sums) >= 20
    nats, count, num_bytes, total, places = np.array([*sums.values()]).T
    want = {
        'nats_per_token': intervals.ratio(nats, count, DOCUMENTS),
        'bits_per_byte': intervals.ratio(nats / math.log(2), num_bytes, DOCUMENTS),
        'nats_per_token_window': intervals.ratio(total, places, DOCUMENTS),
    }
    for name, row in want.items():
        assert_same(found[f'model/{name}'], row)
    perplexity, mean = found['model/perplexity'], want['nats_per_token']
    assert perplexity['value'] == pytest.approx(math.exp(mean['value']), rel=1e-4)
    assert perplexity['high'] == pytest.approx(math.exp(mean['value'] + mean['ci']), rel=1e-4)
    ours = np.array([seen[place] for place in range(1, len(tokens))])
    theirs = evaluator.text_splits.ngram.nats(tokens)[1:]
    index = np.array(of_place[:-1])
    by_document = lambda values: np.bincount(index, values)
    gram, mixture = found['2-gram/nats_per_token'], found['mixture/nats_per_token']
    assert_same(gram['difference'], intervals.ratio(by_document(theirs - ours), count, DOCUMENTS))
    mixed = mixture_nats(ours, theirs, np.zeros(len(ours), int))[0]
    assert mixture['value'] == pytest.approx(mixed / len(ours), rel=1e-4) and mixture['n'] == len(sums)
    assert [row['over'] for row in (gram, mixture)] == [DOCUMENTS] * 2


def test_words_have_no_bits_a_byte(text_experiment):
    config = text_experiment.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.tokenizer, config.data.vocab_size = 'word', 40
    experiment = Experiment(config)
    evaluator, state = Evaluator(experiment), experiment.create_state()
    found = Evaluation(evaluator).each(state, 0, 'test')
    assert list(found) == text_likelihood.names(False) == [n for n in text_likelihood.names(True) if 'byte' not in n]
    assert list(Baselines(evaluator).measure(state, 0, 'test')) == ['2-gram/nats_per_token', 'mixture/nats_per_token']
    with config.unlocked():
        config.eval.best_metric = 'model/bits_per_byte'
    with pytest.raises(UserError, match='no .model/bits_per_byte'):
        reports.check(Experiment(config))


def replicas(*values, **more):
    return {seed: {'model/nll': {'value': value, 'ci': 0.5, 'n': 10, 'over': 'examples', **more}} for seed, value in
            enumerate(values)}  # fmt: skip


def test_a_diverged_seed_is_told():
    found = tables.across(replicas(1.0, 3.0, math.nan))
    row, text = found['model/nll'], tables.table(found)
    assert row['value'] == 2 and row['ci'] == pytest.approx(12.706, abs=1e-3)
    assert (row['n'], row['over'], row['n_each'], row['diverged']) == (2, 'seeds', 10, 1)
    assert row['values']['2'] is not None and 'over 2 seeds' in text and '1 of 3 diverged' in text
    whole = tables.across(replicas(1.0, 3.0))
    assert 'diverged' not in whole['model/nll'] and 'diverged' not in tables.table(whole)
    assert tables.across(replicas(1.0, math.inf))['model/nll']['diverged'] == 1


def test_what_no_seed_changes_keeps_its_own_interval():
    """0 of 200 problems for three seeds, and an n-gram model, are no certainty."""
    by_seed = {seed: {'programs/pass@1': intervals.wilson(0, 200, 'problems')} for seed in range(3)}
    row = tables.across(by_seed)['programs/pass@1']
    assert row['over'] == 'problems' and row['n'] == 200 and row['high'] == pytest.approx(0.01885, abs=1e-5)
    exact = {seed: {'xz/bits_per_byte': {'value': 1.5, 'n': 900}} for seed in range(3)}
    assert '±' not in (text := tables.table(tables.across(exact))) and '(n=900)' in text
    assert '(0–0.01885) over 200 problems' in tables.table({'programs/pass@1': row})


def test_perplexity_over_seeds_is_the_exponential_of_the_mean():
    by_seed = {}
    for seed, nats in enumerate((1.0, 2.0, 4.5, math.nan)):
        row = {'value': nats, 'ci': 0.1, 'n': 25, 'over': DOCUMENTS}
        by_seed[seed] = {'model/nats_per_token': row, 'model/perplexity': intervals.exponential(
            'model/nats_per_token', row)}  # fmt: skip
    found = tables.across(by_seed)
    nats, perplexity = found['model/nats_per_token'], found['model/perplexity']
    assert nats['value'] == 2.5 and perplexity['value'] == pytest.approx(math.exp(2.5))
    assert perplexity['low'] == pytest.approx(math.exp(2.5 - nats['ci']))
    assert perplexity['high'] == pytest.approx(math.exp(2.5 + nats['ci'])) and perplexity['diverged'] == 1
    assert perplexity['values']['2'] == pytest.approx(math.exp(4.5)) and perplexity['over'] == 'seeds'


def test_differences_are_joined_over_seeds_too():
    by_seed = {s: {'mixture/bits_per_byte': {'value': v, 'ci': 1.0, 'n': 25, 'over': DOCUMENTS, 'difference': {
        'value': v - 3, 'ci': 0.1, 'n': 25, 'over': DOCUMENTS}}} for s, v in enumerate((1.0, 2.0))}  # fmt: skip
    row = tables.across(by_seed)['mixture/bits_per_byte']['difference']
    assert row['value'] == -1.5 and row['over'] == 'seeds' and row['ci'] == pytest.approx(12.706 / 2, abs=1e-3)


def test_metrics_stand_in_the_order_of_their_numbers():
    names = [*(f'model/bound_k{k}' for k in (1, 10, 100, 2)), 'ais_b0.5', 'ais_b0.05', 'b1e-05']
    ordered = sorted(names, key=tables.by_numbers)
    assert ordered == ['ais_b0.05', 'ais_b0.5', 'b1e-05', *(f'model/bound_k{k}' for k in (1, 2, 10, 100))]
