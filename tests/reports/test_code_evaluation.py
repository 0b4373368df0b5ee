"""pass@k against its definition, readers of problems, and the rows of the final evaluation."""

import gzip
import itertools
import json
import lzma
import math
import pathlib

import numpy as np
import pytest
import zstandard

from aigc_jax.core.errors import UserError
from aigc_jax.decoding.generate import Generator, Text
from aigc_jax.metrics import python_code as python_code_lib
from aigc_jax.reports import problems as problems_lib
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.sandbox import problems
from aigc_jax.sandbox.sandbox import Sandbox

SHARED = pathlib.Path(__file__).parents[3] / 'shared/data'
CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
HUMANEVAL = {
    'task_id': 'Own/0', 'entry_point': 'double', 'prompt': 'def double(x):\n    """Twice x."""\n',
    'canonical_solution': '    return 2 * x\n', 'test': 'def check(f):\n    assert f(2) == 4 and f(-1) == -2\n',
}  # fmt: skip
MBPP = {
    'task_id': 7, 'text': 'Write a function to negate.', 'code': 'def neg(x):\n    return -x',
    'test_list': ['assert neg(1) == -1', 'assert neg(BIG) == -BIG'], 'test_setup_code': 'BIG = 10 ** 9',
}  # fmt: skip
SANITIZED = {
    'task_id': 8, 'prompt': 'Write a function to take the root.', 'code': 'def root(x):\n    return x ** 0.5',
    'test_list': ['assert math.isclose(root(4), TWO)'], 'test_imports': ['import math'], 'test_setup_code': 'TWO = 2',
}  # fmt: skip


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for n, k in ((5, 1), (5, 2), (6, 4), (6, 6)):
        for c in range(n + 1):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert python_code_lib.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    exact = 1 - math.comb(9_990, 100) / math.comb(10_000, 100)
    assert python_code_lib.pass_at_k(10_000, 10, 100) == pytest.approx(exact, rel=1e-12)
    assert python_code_lib.pass_at_k(10**6, 1, 1) == pytest.approx(1e-6)
    random = np.random.default_rng(0)
    estimates = [python_code_lib.pass_at_k(10, int(random.binomial(10, 0.2)), 3) for _ in range(20_000)]
    assert np.mean(estimates) == pytest.approx(1 - 0.8**3, abs=0.01)  # unbiased
    for wrong in ((5, 6, 1), (5, -1, 1), (5, 2, 6), (5, 2, 0)):
        with pytest.raises(ValueError):
            python_code_lib.pass_at_k(*wrong)


def test_what_parses_and_what_compiles(recwarn):
    both = ['', 'x = 1', 'def f():\n    return 1\n', 'x = "\\d"', 'x is 1']
    neither = ['x = ', 'def f(:', '  x\n y', 'x = "\0"', '(' * 5000, 'x = ' + '1' * 10_000]
    for text in both:
        assert python_code_lib.parses(text) and python_code_lib.compiles(text), text
    for text in neither:
        assert not python_code_lib.parses(text) and not python_code_lib.compiles(text), text[:20]
    for text in ('return 1', 'break', 'nonlocal x', 'f(a=1, a=2)'):
        assert not python_code_lib.compiles(text), text
    assert python_code_lib.parses('return 1')
    assert not [found for found in recwarn if found.category is not ResourceWarning]  # of other tests' garbage


def test_problems_are_read_and_solved_by_their_solutions(tmp_path):
    lines, sanitized = tmp_path / 'h.jsonl', tmp_path / 's.json'
    lines.write_text(json.dumps(HUMANEVAL) + '\n\n' + json.dumps({**HUMANEVAL, 'task_id': 'Own/1'}) + '\n')
    (tmp_path / 'h.jsonl.gz').write_bytes(gzip.compress(b'\xef\xbb\xbf' + lines.read_bytes()))
    (tmp_path / 'h.jsonl.zst').write_bytes(zstandard.compress(lines.read_bytes()))
    (tmp_path / 'm [1].xz').write_bytes(lzma.compress(json.dumps(MBPP).encode() + b'\n'))
    sanitized.write_text(json.dumps([SANITIZED], indent=1))
    assert [p.name for p in problems.humaneval(tmp_path / 'h.jsonl.zst')] == [p.name for p in problems.humaneval(lines)]
    read = [problems.humaneval(lines)[1], problems.humaneval(tmp_path / 'h.jsonl.gz')[0]]
    read += [problems.mbpp(tmp_path / 'm [1].xz')[0], problems.mbpp(sanitized)[0]]
    assert [problem.name for problem in read] == ['Own/1', 'Own/0', 'MBPP/7', 'MBPP/8']
    assert read[2].prompt == '"""\nWrite a function to negate.\nassert neg(1) == -1\nassert neg(BIG) == -BIG\n"""\n'
    right = [HUMANEVAL['canonical_solution']] * 2 + [MBPP['code'], SANITIZED['code']]
    wrong = ['    return x * x\n', '    import sys; sys.exit(0)\n', 'def neg(x): return x', 'exit()']
    with Sandbox(1) as sandbox:
        run = lambda texts: sandbox.run([p.program(text) for p, text in zip(read, texts, strict=True)], 60)
        assert all(result.passed for result in run(right))
        assert not any(result.passed for result in run(wrong))
    assert read[0].cut('    return 2 * x\n\ndef other(): pass\n') == '    return 2 * x\n'
    assert read[0].cut('    return 1') == '    return 1'


def test_what_stands_beside_the_function_of_a_prompt_is_the_tests_own(tmp_path):
    """A completion that defines it anew changes nothing for its tests, nor does one that defines `abs` or `check`."""
    path = tmp_path / 'root.jsonl'
    prompt = 'import math\n\ndef poly(a, x):\n    return a[0] + a[1] * x\n\n'
    prompt += 'def root(a):\n    """Where poly is 0."""\n'
    test = 'def check(f):\n    assert abs(poly([3, 2], f([3, 2]))) < 1e-9\n    assert math.isclose(f([1, 1]), -1)\n'
    path.write_text(json.dumps(dict(task_id='R', entry_point='root', prompt=prompt, test=test, canonical_solution='')))
    (problem,) = problems.humaneval(path)
    right = '    return -a[0] / a[1]\n'
    wrong = '    global poly, abs, check, math\n    poly = abs = check = math = lambda *_: 0\n    return -1\n'
    assert problem.program(right).names == ('root',)
    with Sandbox(1) as sandbox:
        results = sandbox.run([problem.program(text) for text in (right, wrong, f'{right}abs = poly = None\n')], 60)
    assert [result.passed for result in results] == [True, False, True]


def test_which_names_of_the_tests_are_the_programs(tmp_path):
    """A builtin that the solution defines anew; a class; a module that the solution imports; what the tests have."""
    rows = [
        ('def sum(a, b): return a * b', ['assert sum(2, 3) == 6'], '', ('sum',), False),
        ('class Node: pass\ndef depth(n): return 0', ['assert depth(root) == 0'], 'root = Node()\nroot.left = Node()',
         ('Node', 'depth'), True),
        ('import sys\ndef size(x): return sys.getsizeof(x)', ['assert size(1) == sys.getsizeof(1)'], '',
         ('size',), False),
        ('def f(x): return x', ['assert [f(y) for y in xs] == xs', 'assert len(xs) == 2'], 'xs = [1, 2]',
         ('f',), False),
        (None, ['assert Pair(1).x == f(1)'], '', ('Pair', 'f'), True),
        (None, ['assert f(LIMIT) == sum([1])'], '', ('LIMIT', 'f'), False),
    ]  # fmt: skip
    path = tmp_path / 'names.jsonl'
    objects = [
        dict(task_id=i, text='', test_list=tests, test_setup_code=setup) | ({'code': code} if code else {})
        for i, (code, tests, setup, *_) in enumerate(rows)
    ]
    path.write_text('\n'.join(map(json.dumps, objects)))
    read = problems.mbpp(path)
    assert [p.program('')[2:] for p in read] == [row[3:] for row in rows]
    with Sandbox(1) as sandbox:
        own = [p.program(row[0]) for p, row in zip(read, rows, strict=True) if row[0]]
        assert all(result.passed for result in sandbox.run(own, 60))


def test_programs_whose_tests_do_not_fit_the_sandbox_are_told(experiment, capsys):
    solver = problems_lib.Problems(Evaluator(experiment))
    program = problems_lib.Program('f = lambda x: x', 'import datetime\nf(datetime.date(2000, 1, 1))\n', ('f',))
    solver._problems = [problems.Problem('own', '', (), lambda text: program)]
    assert solver._correct([['']]).tolist() == [[False]]
    assert '1 programs count as wrong because their tests do not fit' in capsys.readouterr().err


@pytest.mark.parametrize(
    'reader, content, words',
    [
        (problems.humaneval, b'{"task_id": "a"}', 'line 1: the field "prompt" is missing'),
        (problems.humaneval, json.dumps(HUMANEVAL).encode() + b'\n{"x"', 'line 2: is no JSON'),
        (problems.humaneval, json.dumps({**HUMANEVAL, 'test': 1}).encode(), 'line 1: the field "test" is no text'),
        (problems.humaneval, json.dumps({**HUMANEVAL, 'test': 'def f('}).encode(), 'the field "test": is no Python'),
        (problems.mbpp, json.dumps({**MBPP, 'test_list': ['print 1']}).encode(), 'the tests: is no Python'),
        (problems.humaneval, b'[1]', 'problem 1: is no JSON object'),
        (problems.humaneval, b'\n', 'holds no problem'),
        (problems.humaneval, b'{}\n\xff', 'line 2: is not UTF-8'),
        (problems.humaneval, b'\x1f\x8b\x08xx', 'cannot be read'),
        (problems.humaneval, gzip.compress(b'x' * 9999)[:-9], 'cannot be read'),
        (problems.mbpp, json.dumps({**MBPP, 'test_list': 'x'}).encode(), '"test_list" is no list of texts'),
        (problems.mbpp, json.dumps({**MBPP, 'task_id': None}).encode(), '"task_id" is no whole number'),
        (problems.mbpp, b'[{"task_id": 1},\n]', 'line 2: is no JSON'),
    ],
    ids=range(13),
)
def test_broken_files_are_told(reader, content, words, tmp_path):
    path = tmp_path / 'broken'
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        reader(path)
    assert str(path) in str(error.value) and words in str(error.value) and '\n' not in str(error.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match='nowhere.jsonl: cannot be read: No such file'):
        problems.mbpp(tmp_path / 'nowhere.jsonl')


@pytest.mark.skipif(not (SHARED / 'human_eval').exists(), reason='no HumanEval on this machine')
def test_humanevals_own_solutions_pass():
    path = SHARED / 'human_eval/HumanEval.jsonl.gz'
    rows = [json.loads(line) for line in gzip.open(path, 'rt')]
    read = problems.humaneval(path)
    with Sandbox() as sandbox:
        own = [p.program(p.cut(row['canonical_solution'])) for p, row in zip(read, rows, strict=True)]
        assert [p.name for p, r in zip(read, sandbox.run(own, seconds=60), strict=True) if not r.passed] == []
        assert not any(result.passed for result in sandbox.run([p.program('    pass\n') for p in read], 60))


@pytest.mark.skipif(not (SHARED / 'mbpp').exists(), reason='no MBPP on this machine')
def test_mbpps_own_solutions_pass():
    path = SHARED / 'mbpp/mbpp.jsonl'
    rows, read = [json.loads(line) for line in path.open()], problems.mbpp(path)
    # Of those with classes, modules or a builtin defined anew all, of the others some.
    some = [i for i, p in enumerate(read) if i % 10 == 0 or p.program('').classes or len(p.program('').names) != 1]
    with Sandbox() as sandbox:
        own = [read[i].program(rows[i]['code']) for i in [*some, 596 - 1, 126 - 1]]
        assert [p for p, r in zip(own, sandbox.run(own, seconds=60), strict=True) if not r.passed] == []
        assert not any(result.passed for result in sandbox.run([read[i].program('') for i in some], 60))


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    """A model that has not been trained, with two problems: one of them longer than its context."""
    path = tmp_path_factory.mktemp('problems') / 'own.jsonl'
    long = {**HUMANEVAL, 'task_id': 'Own/1', 'prompt': HUMANEVAL['prompt'] * 4}
    path.write_text(json.dumps(HUMANEVAL) + '\n' + json.dumps(long) + '\n')
    overrides = [
        ('eval.problems', f'humaneval:{path}'), ('data.block', '96'), ('eval.problem_tokens', '24'),
        ('eval.problem_samples', '4'), ('eval.pass_k', '(1, 2)'), ('eval.problem_beam', '2'),
    ]  # fmt: skip
    return Experiment(config_lib.load(f'{CONFIGS / "gpt.py"}:smoke', overrides))


def test_the_rows_of_an_evaluation(experiment, monkeypatch):
    """By a writer whose second text of four is right, and whose beam is: one problem of two fits."""
    asked = []

    def generate(self, state, prompts, num_samples, seed):
        asked.append((len(prompts), num_samples))
        wrong, right = '    return 3 * x\n', '    return 2 * x\n\ndef more('
        written = [right] if num_samples == 1 else [wrong, right, 'return )', wrong]
        return [
            Text(prompt, text, np.zeros(1, np.int32), 0.0, 'length', 0.0, 1, '')
            for prompt in prompts
            for text in written
        ]

    monkeypatch.setattr(Generator, 'generate', generate)
    rows = problems_lib.Problems(Evaluator(experiment)).measure(experiment.create_state(), 0, 'test')
    assert asked == [(1, 4), (1, 1)]
    value = {name: row['value'] for name, row in rows.items()}
    assert value['humaneval/pass@1'] == pytest.approx(0.25 / 2) and value['humaneval/pass@2'] == pytest.approx(0.5 / 2)
    assert value['humaneval/solved@beam'] == 0.5 and value['humaneval/does_not_fit'] == 1
    assert value['humaneval/parses'] == value['humaneval/compiles'] == 0.75
    assert value['humaneval/2-gram/pass@1'] == 0
    assert rows['humaneval/pass@1']['n'] == 2 and rows['humaneval/parses']['n'] == 1  # four texts of one problem
    assert all(row['over'] == 'problems' for name, row in rows.items() if 'does_not_fit' not in name)
    assert rows['humaneval/pass@1']['low'] == 0 < rows['humaneval/pass@1']['high'] == 0.25
    none, half = rows['humaneval/2-gram/pass@1'], rows['humaneval/solved@beam']
    assert (none['low'], none['high']) == pytest.approx((0, 0.6576), abs=1e-4)  # Wilson's, of 0 of 2
    assert half['low'] < 0.1 and half['high'] > 0.9


def test_the_model_itself_writes(experiment):
    experiment.config.eval.problem_beam = 1
    rows = problems_lib.Problems(Evaluator(experiment)).measure(experiment.create_state(), 0, 'test')
    assert 'humaneval/solved@beam' not in rows
    assert rows['humaneval/pass@2']['value'] == 0 and rows['humaneval/does_not_fit']['value'] == 1


@pytest.mark.parametrize(
    'field, text, words',
    [
        ('problems', 'humanevil:x', 'did you mean humaneval'),
        ('problems', 'humaneval:/nowhere.gz', 'cannot be read'),
        ('pass_k', '(1, 11)', '1 to problem_samples, 10'),
        ('pass_k', '()', 'eval.pass_k'),
        ('problem_samples', '0', 'eval.problem_samples: 0'),
        ('problem_temperature', '-1', 'eval.problem_temperature'),
        ('problem_beam', '999', 'eval.problem_beam: 999'),
    ],
)
def test_fields_that_do_not_fit_are_told_before_training(field, text, words, runner, tmp_path):
    flags = ['--config.eval.problems=programs'] * (field != 'problems') + [f'--config.eval.{field}={text}']
    answer = runner(f'--config={CONFIGS / "gpt.py"}:smoke', f'--workdir={tmp_path / "run"}', *flags)
    assert answer[0] == 2 and words in answer[2] and 'Traceback' not in answer[2] and not (tmp_path / 'run').exists()
