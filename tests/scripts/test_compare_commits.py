"""scripts/compare_commits.py: it lists every variant, tells two runs apart, and runs a commit and the working tree."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from configfiles import FILES, needs_files, variants

from aigc_jax.runs import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
PATH = ROOT / 'scripts' / 'compare_commits.py'
spec = importlib.util.spec_from_file_location('compare_commits', PATH)
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)

ROWS = ({'step': 10, 'split': 'train', 'model/loss': 0.5}, {'step': 10, 'split': 'final', 'model/nll': 3.0})
EVALUATION = {'step': 10, 'model/nll': {'value': 3.0, 'n': 7}}


def results(folder, rows=ROWS, evaluation=EVALUATION, **dumps):
    folder.mkdir()
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row, **dumps) + '\n' for row in rows))
    (folder / 'evaluation.json').write_text(json.dumps(evaluation))
    return folder


def test_every_variant_of_every_config_is_listed_with_data_that_are_here():
    listed = compare.variants(ROOT)
    assert list(listed) == [f'{path.stem}:{variant}' for path in FILES for variant in variants(path)]
    for arguments in listed.values():
        _, given, overrides = config_lib.split_arguments(['main', *arguments])
        config = config_lib.load(str(ROOT / given), overrides)
        assert not needs_files(config) and config.total_steps == 40, arguments


@pytest.mark.parametrize(
    'after, said',
    [
        ({}, ''),
        ({'rows': ROWS[:1]}, 'metrics.jsonl, line 2, step 10, final: step: 10 → absent'),
        (
            {'rows': (ROWS[0] | {'model/loss': 0.5000000000000001}, ROWS[1])},
            'metrics.jsonl, line 1, step 10, train: model/loss: 0.5 → 0.5000000000000001',
        ),
        (
            {'rows': (ROWS[0], ROWS[1] | {'model/kl': 1.0})},
            'metrics.jsonl, line 2, step 10, final: model/kl: absent → 1.0',
        ),
        (
            {'separators': (',', ':')},
            'metrics.jsonl, line 1, step 10, train: the same values, written in another way',
        ),
        ({'evaluation': EVALUATION | {'model/kl': {'value': 1.0}}}, ''),
        ({'evaluation': EVALUATION | {'model/nll': {'value': 3.0, 'n': 7, 'ci': 0.1}}}, ''),
        ({'evaluation': EVALUATION | {'model/nll': {'value': 3.0, 'n': 8}}}, 'evaluation.json: model/nll.n: 7 → 8'),
        ({'evaluation': {'step': 10}}, "evaluation.json: model/nll: {'value': 3.0, 'n': 7} → absent"),
    ],
)
def test_the_first_difference_is_told(tmp_path, after, said):
    before = results(tmp_path / 'before')
    assert compare.difference(before, results(tmp_path / 'after', **after)) == said


# In place of the package: its command line writes what its config says.
MAIN = """
import json, pathlib, runpy, sys
given = dict(argument.split('=') for argument in sys.argv[1:])
path, _, argument = given['--config'].partition(':')
config = runpy.run_path(path)['get_config'](argument)
if config.loss is None:
    sys.exit('error: no loss')
folder = pathlib.Path(given['--workdir'])
(folder / 'metrics.jsonl').write_text(json.dumps({'step': 1, 'split': 'train', 'loss': config.loss}))
(folder / 'evaluation.json').write_text(json.dumps({'data': given.get('--config.data.name')}))
"""
CONFIG = """
from types import SimpleNamespace

VARIANTS = %s

def get_config(argument):
    return SimpleNamespace(loss=VARIANTS[argument.partition(',')[0]], data=SimpleNamespace(name='idx:mnist'))
"""


def test_a_commit_against_the_working_tree(tmp_path):
    def git(*arguments):
        subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a', *arguments], cwd=tmp_path, check=True)

    def compared(*arguments):
        command = [sys.executable, tmp_path / 'scripts' / PATH.name, f'--out={tmp_path}/out', *arguments]
        ended = subprocess.run(command, capture_output=True, text=True)
        return ended.returncode, ended.stdout.splitlines()[2:], ended.stderr

    for folder in ('scripts', 'aigc_jax', 'configs'):
        (tmp_path / folder).mkdir()
    shutil.copy(PATH, tmp_path / 'scripts')
    (tmp_path / 'aigc_jax' / 'main.py').write_text(MAIN)
    config = tmp_path / 'configs' / 'toy.py'
    config.write_text(CONFIG % {'smoke': 1.0, 'a': 2.0, 'b': 3.0, 'c': 4.0})
    git('init', '--quiet')
    git('add', '--all')
    git('commit', '--quiet', '--message=one')
    assert compared('--only=toy:a') == (0, ['toy:a                    equal', '1 equal'], '')
    runs = list((tmp_path / 'out').glob('*/toy.a-*'))
    assert len(runs) == 1 and json.loads((runs[0] / 'evaluation.json').read_text()) == {'data': 'digits'}
    config.unlink()  # what git does not track yet counts too
    config.write_text(CONFIG % {'smoke': 1.0, 'a': 2.5, 'b': None, 'd': 5.0})
    (tmp_path / 'configs' / 'untracked.py').write_text(CONFIG % {'smoke': 6.0})
    code, lines, _ = compared('HEAD', '--jobs=2')
    assert code == 1 and lines == [
        'toy:a                    differs  metrics.jsonl, line 1, step 1, train: loss: 2.0 → 2.5',
        'toy:b                    failed   after: error: no loss',
        'toy:c                    gone     not in after',
        'toy:d                    new      not in before',
        'toy:smoke                equal',
        'untracked:smoke          new      not in before',
        '1 differs, 1 failed, 1 gone, 2 new, 1 equal',
    ]
    assert not subprocess.run(['git', 'diff', '--cached', '--quiet'], cwd=tmp_path).returncode  # nothing was added
    marked = runs[0] / 'metrics.jsonl'
    marked.write_text(marked.read_text().replace('2.0', '2.5'))  # a run that is there is not run again
    assert compared('--only=toy:a')[0] == 0
    for mistake, said in ((['nowhere'], 'nowhere: '), (['--only=toy:e'], "--only: 'toy:e' is none of toy:a, ")):
        code, _, told = compared(*mistake)
        assert code == 2 and said in told.splitlines()[-1]
