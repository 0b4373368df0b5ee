"""python -m aigc_jax.compare: runs that were trained, as arms, on stdout and as a page."""

import base64
import hashlib
import html.parser
import json
import math
import pathlib
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from aigc_jax import compare
from aigc_jax.core.errors import RunError, UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.folder import Run
from aigc_jax.studies import arms, comparison, statistics
from aigc_jax.training.trainer import train

CONFIG = str(pathlib.Path(__file__).parents[2] / 'configs' / 'vae.py')
RATE = 'optim.model.schedule.init_value'
QUICK = [('total_steps', '20'), ('eval_every_steps', '10')]


def trained(folder, **fields):
    given = [(name.replace('__', '.'), str(value)) for name, value in fields.items()]
    train(config_lib.load(f'{CONFIG}:smoke', [*QUICK, *given]), Run(folder))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Of one config seeds 0 and 1 in folders of their own; seeds 0 and 1 at another rate as replicas of one run; and
    one that diverged."""
    root = tmp_path_factory.mktemp('runs')
    for seed in (0, 1):
        trained(root / 'slow' / f'seed{seed}', seed=seed)
    trained(root / 'fast', num_seeds=2, optim__model__schedule__init_value=0.01)
    logs = []
    for _ in range(2):  # the same command again trains from the last good checkpoint, and leaves the same log
        with pytest.raises(RunError, match='training stopped'):
            trained(root / 'lost', seed=3, optim__model__schedule__init_value=1e30)
        logs.append((root / 'lost' / 'metrics.jsonl').read_bytes())
    assert logs[0] == logs[1] and b'"diverged": 1.0' in logs[0]
    return root


@pytest.fixture
def copies(runs, tmp_path):
    """A copy that a test may change."""
    return pathlib.Path(shutil.copytree(runs, tmp_path / 'runs'))


def contents(folder):
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def evaluation(folder):
    return json.loads((folder / 'evaluation.json').read_text())


def call(capsys, *arguments):
    try:
        compare.main(['compare', *map(str, arguments)])
        code = 0
    except SystemExit as error:
        code = error.code
    answer = capsys.readouterr()
    return code, answer.out, answer.err


def of(compared, metric):
    return next(measured for measured in compared.metrics if measured.title.split(' at ')[0] == metric)


def test_runs_that_differ_in_their_seeds_are_one_arm(runs):
    compared = comparison.Comparison([str(runs / 'slow'), str(runs / 'fast')])
    assert [arm.name for arm in compared.arms] == ['A', 'B'] and [len(arm.runs) for arm in compared.arms] == [2, 1]
    assert [arm.fields for arm in compared.arms] == [{RATE: '0.001'}, {RATE: '0.01'}]
    assert compared.made_with['execution.replicas'] == ['none', 'vmap of 2']
    measured = of(compared, 'model/nll')
    slow, fast = measured.entries
    own = {seed: evaluation(runs / 'slow' / f'seed{seed}')['model/nll']['value'] for seed in (0, 1)}
    assert slow.values == own and slow.row['value'] == pytest.approx(np.mean([*own.values()]))
    # A run of replicas has the row that its own evaluation.json has.
    row = evaluation(runs / 'fast')['model/nll']
    assert {str(seed): value for seed, value in fast.values.items()} == row['values']
    assert (fast.row['value'], fast.row['ci'], fast.row['n']) == (row['value'], row['ci'], 2)
    test = stats.ttest_rel([*fast.values.values()], [*own.values()])
    assert fast.difference.test == statistics.PAIRED and fast.difference.p == pytest.approx(test.pvalue)
    assert measured.better == 'min' and of(compared, 'model/kl').better == ''  # eval.best_metric is model/nll
    (measured,) = comparison.Comparison([str(runs / 'slow')], ['model/kl'], better='max').metrics
    assert measured.better == 'max' and measured.absent == [] and len(measured.entries) == 1


def test_the_text_and_the_page_show_all_of_it_and_no_run_is_changed(runs, capsys, tmp_path):
    before, page = contents(runs), tmp_path / 'page.html'
    code, out, err = call(capsys, runs, f'--html={page}')
    assert code == 0 and str(page) in err and contents(runs) == before
    for words in (
        'A  1 run, seeds 0, 1', 'B  1 run, seed 3', 'C  2 runs, seeds 0, 1', RATE, '1e+30', 'vmap of 2',
        'model/nll (less is better)', 'C − A = ', "Student's paired t",
        'diverged: seed 3; counted as the worst', 'n too few to say',
    ):  # fmt: skip
        assert words in out, words
    text = page.read_text()
    tags, links = [], []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)
            links.extend(value for name, value in attrs if name in ('src', 'href'))

    Reader().feed(text)
    pictures = [base64.b64decode(link.removeprefix('data:image/png;base64,')) for link in links]
    assert len(pictures) == 2 and all(picture.startswith(b'\x89PNG') for picture in pictures)
    assert 'script' not in tags and tags.count('table') == 3 + len(comparison.Comparison([str(runs)]).metrics)
    assert 'http' not in re.sub(r'base64,[A-Za-z0-9+/=]+', '', text)
    for value in evaluation(runs / 'fast')['model/nll']['values'].values():
        assert f'{value:.5g}' in text and f'{value:.5g}' in out


def test_arms_of_several_families_show_their_metrics_first_and_not_each_field(runs, smoke, capsys, tmp_path):
    code, out, _ = call(capsys, runs / 'slow', smoke('gpt'), f'--html={tmp_path / "page.html"}')
    assert code == 0 and out.index('model/nll (less is better)') < out.index('\nconfig\n')
    below = out.partition('\nconfig\n')[2].splitlines()
    assert len(below) < 30 and '  --html=FILE shows each of them' in below
    alone = [re.fullmatch(r'  ([AB]) alone: (\d+) fields \((.*)\)', line) for line in below]
    counts = {found[1]: int(found[2]) for found in filter(None, alone)}
    assert counts.keys() == {'A', 'B'} and min(counts.values()) > 10
    arms = comparison.Comparison([str(runs / 'slow'), str(smoke('gpt'))]).arms
    text = (tmp_path / 'page.html').read_text()
    assert all(f'<td>{name}</td>' in text for name in arms[0].fields) and len(arms[0].fields) > sum(counts.values())
    common = [name for name in arms[0].fields if '–' not in (arm.fields[name] for arm in arms)]
    assert len(common) + sum(counts.values()) == len(arms[0].fields)
    assert all(any(line.split()[0] == name for line in below if line) for name in common[:20])


def test_a_run_that_diverged_is_the_worst_seed(runs):
    compared = comparison.Comparison([str(runs / 'slow'), str(runs / 'lost')])
    lost = of(compared, 'model/nll').entries[1]
    assert [*lost.values] == [3] and math.isnan(lost.values[3]) and lost.difference.row['value'] == math.inf
    assert lost.words.startswith('n too few') and comparison.mean_words(lost.row).startswith('not finite')
    assert any('diverged: seed 3; counted as the worst' in remark for remark in compared.remarks)
    (measured,) = comparison.Comparison([str(runs)], ['eval:model/nll']).metrics
    assert [[*e.values] for e in measured.entries] == [[0, 1], [3], [0, 1]]
    assert math.isnan(measured.entries[1].values[3])
    # Where nobody says which side is the worst there is no test.
    (measured,) = comparison.Comparison([str(runs)], ['model/kl']).metrics
    assert measured.entries[1].difference.test == ''


def test_a_replica_that_diverged_counts_too(copies):
    rows = [*(copies / 'fast' / 'metrics.jsonl').read_text().splitlines()]
    rows.insert(2, json.dumps({'step': 5, 'split': 'train', 'seed': 1, 'diverged': 1.0}))
    (copies / 'fast' / 'metrics.jsonl').write_text('\n'.join(rows) + '\n')
    found = evaluation(copies / 'fast')
    for row in found.values():
        if isinstance(row, dict):
            row['values']['1'] = None
    (copies / 'fast' / 'evaluation.json').write_text(json.dumps(found))
    compared = comparison.Comparison([str(copies / 'slow'), str(copies / 'fast')])
    entry = of(compared, 'model/nll').entries[1]
    assert math.isnan(entry.values[1]) and entry.row['diverged'] == 1 and entry.improvement['value'] <= 0.5
    assert entry.difference.test == statistics.SIGNED_RANKS
    assert entry.words == 'n too few to say: 2 seeds compared by their ranks'
    assert 'without the 1 not finite' in comparison.mean_words(entry.row)
    assert comparison.seed_values(entry.values).endswith('1: not finite')


def test_runs_that_do_not_count_are_named(copies):
    shutil.copytree(copies / 'slow' / 'seed0', copies / 'slow' / 'again')
    (copies / 'slow' / 'seed1' / 'evaluation.json').unlink()
    other = shutil.copytree(copies / 'slow' / 'seed0', copies / 'slow' / 'other')
    manifest = json.loads((other / 'manifest.json').read_text())
    manifest['data']['fingerprint'] = 'f' * 64
    (other / 'manifest.json').write_text(json.dumps(manifest))
    bare = shutil.copytree(copies / 'slow' / 'seed0', copies / 'slow' / 'bare')
    (bare / 'manifest.json').unlink()
    compared = comparison.Comparison([str(copies / 'slow')])
    names = [[run.folder.name for run in arm.runs] for arm in compared.arms]
    assert names == [['again', 'seed0', 'seed1'], ['bare'], ['other']]
    remarks = '\n'.join(compared.remarks)
    for words in (
        'seed0 (A): seed 0 is in', 'seed1 (A): not finished, at step 20 of 20; not counted',
        'bare (B): has no manifest.json', 'the arms have other data',
    ):  # fmt: skip
        assert words in remarks, words
    assert [arm.fields['data.fingerprint'] for arm in compared.arms][1:] == [arms.ABSENT, 'f' * 12]
    entries = of(compared, 'model/nll').entries
    assert [len(entry.values) for entry in entries] == [1, 1, 1]
    assert all(entry.words == 'n too few to say: one seed shows no spread between seeds' for entry in entries[1:])
    # With one seed the interval is that of its examples, and says so.
    assert '(over 180 examples)' in comparison.mean_words(entries[0].row)


def test_metrics_are_chosen_by_name_beginning_and_pattern(runs):
    titles = lambda *metrics: [m.title for m in comparison.Comparison([str(runs / 'slow')], metrics).metrics]
    assert titles('model/nll', 'model/k*') == ['model/nll', 'model/kl']
    assert titles('train:model/loss', 'eval:*nll') == ['train:model/loss at step 20', 'eval:model/nll at step 20']
    curves = comparison.Comparison([str(runs / 'slow')], ['train:model/loss']).metrics[0].entries[0].values
    row = next(row for row in reversed(Run(runs / 'slow' / 'seed1').rows()) if row['split'] == 'train')
    assert curves[1] == row['model/loss']
    with pytest.raises(UserError, match=r"no run has 'model/nil'; did you mean .*model/nll"):
        titles('model/nil')


def test_unfinished_runs_alone_are_compared_by_their_curves(copies):
    for name in ('seed0', 'seed1'):
        (copies / 'slow' / name / 'evaluation.json').unlink()
    compared = comparison.Comparison([str(copies / 'slow')])
    assert 'eval:model/nll at step 20' in [measured.title for measured in compared.metrics]
    assert [*of(compared, 'eval:model/nll').entries[0].values] == [0, 1]


def test_what_a_difference_says_in_plain_words():
    a, b = np.array([1.0, 3.0, 2.5]), np.array([2.0, 1.0, 3.5])
    for paired, unit in ((False, 'seeds of each arm'), (True, 'pairs of seeds')):
        words = comparison._words(statistics.difference(a, b, paired=paired), a, b, 'min', paired)
        assert words.startswith('n too few to say: 3 ' + unit) and 'a probability of 80%' in words

    def said(a, b, better=''):
        return comparison._words(statistics.difference(a, b, better), np.array(a), np.array(b), better, False)

    assert said([5.0, 5.1, 5.2], [1.0, 1.1, 1.2]) == 'higher' and said([1.0, 1.1, 1.2], [5.0, 5.1, 5.2]) == 'lower'
    assert said([5.0, 5.1, 5.2], [1.0, 1.1, 1.2], 'min') == 'worse'
    assert said([2.0, 2.0], [2.0, 2.0]) == 'no difference: the values are the same'
    assert said([2.0, math.nan], [2.0, 2.0]).startswith('no test: a value is not finite')


def test_perplexities_are_compared_by_their_logarithms(tmp_path, runs):
    over = {'n': 9, 'over': 'documents'}
    for name, base in (('a', 1.0), ('b', 2.0)):
        for seed in (0, 1):
            folder = shutil.copytree(runs / 'slow' / f'seed{seed}', tmp_path / f'{name}{seed}')
            config = json.loads((folder / 'config.json').read_text()) | {'batch_size': 32 if name == 'a' else 64}
            (folder / 'config.json').write_text(json.dumps(config))
            nats = base + 0.1 * seed
            perplexity = {'value': math.exp(nats), 'low': 1.0, 'high': 9.0, 'exp_of': 'm/nats', **over}
            metrics = {'m/nats': {'value': nats, 'ci': 0.1, **over}, 'm/perplexity': perplexity}
            (folder / 'evaluation.json').write_text(json.dumps({'step': 20, **metrics}))
    compared = comparison.Comparison([str(tmp_path)])
    first, second = of(compared, 'm/perplexity').entries
    assert first.row['value'] == pytest.approx(math.exp(1.05)) and second.row['value'] == pytest.approx(math.exp(2.05))
    assert second.difference is None and second.words == 'see m/nats, of which this is the exponential'
    assert of(compared, 'm/nats').entries[1].difference.row['value'] == pytest.approx(1.0)


def test_arms_that_lack_a_metric_are_named(copies):
    """The first arm that has it is what the others are compared with."""
    for name, metric in (('seed0', 'model/nll'), ('seed1', 'model/kl')):
        folder = copies / 'slow' / name
        config = json.loads((folder / 'config.json').read_text()) | {'batch_size': 32 if name == 'seed0' else 64}
        (folder / 'config.json').write_text(json.dumps(config))
        found = evaluation(folder)
        del found[metric]
        (folder / 'evaluation.json').write_text(json.dumps(found))
    compared = comparison.Comparison([str(copies / 'slow'), str(copies / 'fast')])
    nll, kl = of(compared, 'model/nll'), of(compared, 'model/kl')
    assert (nll.absent, kl.absent) == (['A'], ['B']) and nll.entries[1].reference == 'B'
    assert '  no value: A\n' in comparison.text(compared)


def test_evaluations_of_two_versions_of_an_arm_are_compared_by_what_both_have(copies):
    path = copies / 'slow' / 'seed1' / 'evaluation.json'
    found = evaluation(path.parent)
    name = next(name for name, row in found.items() if name != 'step' and 'perfect' not in row)
    first = evaluation(copies / 'slow' / 'seed0')
    first[name]['perfect'] = 1.0
    (copies / 'slow' / 'seed0' / 'evaluation.json').write_text(json.dumps(first))
    (entry,) = of(comparison.Comparison([str(copies / 'slow')]), name).entries
    assert len(entry.values) == 2 and 'perfect' not in entry.row


def test_many_runs_are_told_in_few_words(runs, tmp_path):
    for seed in range(6):
        folder = pathlib.Path(shutil.copytree(runs / 'slow' / 'seed0', tmp_path / f'seed{seed}'))
        config = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps({**config, 'seed': seed}))
    line = comparison.text(comparison.Comparison([str(tmp_path)], ['model/nll'])).partition('\n')[0]
    shown = ', '.join(str(tmp_path / f'seed{seed}') for seed in range(3))
    assert line == f'A  6 runs, seeds 0 to 5: {shown}, and 3 more'


def test_arms_are_lettered():
    assert [arms._letters(k) for k in (0, 25, 26, 27, 701, 702)] == ['A', 'Z', 'AA', 'AB', 'ZZ', 'AAA']


def test_places_are_folders_patterns_and_folders_of_runs(runs, monkeypatch):
    found = lambda *places: [run.folder.name for run in arms.find([str(place) for place in places])]
    assert found(runs) == ['fast', 'lost', 'seed0', 'seed1'] and found(runs / 'slow' / 'seed[1-9]') == ['seed1']
    assert found(runs / 'slow' / 'seed1', runs / 'slow') == ['seed1', 'seed0']  # each is taken once
    monkeypatch.chdir(runs)
    assert found('slow/*') == ['seed0', 'seed1']


@pytest.mark.parametrize(
    'arguments, words',
    [
        ([], 'RUN'),
        (['{runs}/none'], 'there is no such folder'),
        (['{runs}/none*'], 'there is no such folder'),
        (['{runs}/fast/config.json'], 'is no folder'),
        (['{runs}/fast/plots'], 'holds no run'),
        (['{runs}', '--metric=none'], "no run has 'none'"),
        (['{runs}', '--better=less'], 'min or max'),
        (['{runs}', '--nothing'], "Unknown command line flag 'nothing'"),
        (['{runs}', '--html={runs}/fast/page.html'], 'lies in the run'),
        (['{runs}', '--html={runs}'], 'is a folder'),
        (['{runs}', '--html={runs}/none/page.html'], 'is no folder'),
    ],
)
def test_a_mistake_is_one_line(runs, capsys, arguments, words):
    before = contents(runs)
    code, out, err = call(capsys, *(argument.format(runs=runs) for argument in arguments))
    assert code == 2 and out == '' and err.startswith('error: ') and err.count('\n') == 1 and words in err
    assert contents(runs) == before


@pytest.mark.parametrize(
    'name, text',
    [
        ('config.json', '{"seed": 0'),
        ('config.json', '{"seed": "x"}'),
        ('evaluation.json', '[]'),
        ('evaluation.json', '{"step": 20, "m": {"value": 1, "n": 2, "values": {"7": 1}}}'),
        ('evaluation.json', '{"step": 20, "m": {"value": 1, "n": 2, "exp_of": "none", "values": {"0": 1, "1": 2}}}'),
        ('evaluation.json', '{"step": 20, "m": {"value": 1, "n": 2, "values": {"0": 1%s, "1": 2}}}' % ('0' * 400)),
        ('evaluation.json', '{"step": 20, "m": {"n": 2}}'),
        ('config.json', '{"seed": 0, "num_seeds": 2, "total_steps": 20, "eval": 3}'),
        ('manifest.json', '{"data": 3}'),
    ],
)
def test_a_damaged_run_is_one_line_that_names_it(copies, capsys, name, text):
    (copies / 'fast' / name).write_text(text)
    code, _, err = call(capsys, copies)
    assert code == 2 and str(copies / 'fast') in err and err.count('\n') == 1, err
