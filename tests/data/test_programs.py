"""The benchmark of small programs: operators, splits without a leak, documents, problems, and the n-gram's samples."""

import pathlib
from random import Random

import numpy as np
import pytest
from ml_collections import ConfigDict

from aigc_jax import data
from aigc_jax.core.errors import UserError
from aigc_jax.data import tokenizers
from aigc_jax.data.sources import programs
from aigc_jax.data.sources.programs import Program
from aigc_jax.metrics.ngram import KneserNey
from aigc_jax.reports import problems as problems_lib
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.sandbox import sandbox as sandbox_lib

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
PERCENT = (5.0, 10.0)


def test_a_program_gives_what_its_text_gives():
    assert Program('L', ('sort', 'reverse', 'first2')).text == 'sorted(x)[::-1][:2]'
    assert Program('S', ('split', 'lengths', 'sum'))('ab c') == 3
    random = Random(1)
    for program in programs.generate()[::97]:
        x = programs.draw_input(program.kind, random)
        assert eval(program.text, {'x': x}) == program(x), program.text


def test_each_operator_is_in_some_program_and_each_text_is_short():
    every = programs.generate()
    assert {name for program in every for name in program.chain} == set(programs.OPERATORS)
    assert {len(program.chain) for program in every} == {1, 2, 3, 4} and max(len(p.text) for p in every) <= 90
    assert len({(program.kind, program.text) for program in every}) == len(every) > 8000
    sizes = [len(program.chain) for program in every]
    assert sizes == sorted(sizes)


def test_no_held_out_chain_is_trained_on_alone_or_within_a_longer_one():
    split = programs.split(*PERCENT)
    trained = {' '.join(program.chain) for program in split['train']}
    everything = '|' + '|'.join(f' {chain} ' for chain in trained) + '|'
    for name in ('valid', 'test'):
        assert not [p for p in split[name] if f' {" ".join(p.chain)} ' in everything]
    assert not set(split['valid']) & set(split['test'])
    sizes = {name: len(held) for name, held in split.items()}
    assert sizes['train'] > 3000 and 700 < sizes['test'] < 1100 and 300 < sizes['valid'] < 600
    smaller = programs.split(5.0, 5.0)['test']
    assert set(smaller) < set(split['test'])  # by hash: what is held out does not jump


def test_held_out_functions_differ_from_those_trained_on_where_fresh_inputs_tell():
    """On inputs that generation has not used."""
    split, random = programs.split(*PERCENT), Random('fresh')
    for kind in 'LS':
        inputs = [programs.draw_input(kind, random) for _ in range(100)]
        given = lambda p: tuple(programs.show(p(x)) for x in inputs)
        trained = {given(p) for p in split['train'] if p.kind == kind}
        held_out = [given(p) for p in split['test'] if p.kind == kind]
        assert held_out and not trained & set(held_out)


def test_the_set_is_a_function_of_the_seed():
    assert programs.generate.__wrapped__() == programs.generate()
    # Of this version: a change of the generator makes scores of before and after incomparable.
    assert programs.split(*PERCENT)['test'][0].text == 'x.title().split()'


def test_documents_show_the_examples_of_their_program():
    documents = programs.documents(*PERCENT)
    for text in documents['train'][::997] + documents['test'][::97]:
        *lines, program = text.splitlines()
        assert len(lines) == programs.SHOWN
        for line in lines:
            x, y = line.removeprefix('# ').split(' -> ')
            assert eval(f'({program.removeprefix("f = ")})({x})') == eval(y)
    assert max(len(text) for texts in documents.values() for text in texts) < 256


def test_a_problem_is_solved_by_its_program_and_by_no_shorter_way():
    examples = programs.problems(*PERCENT, 60)
    assert len(examples) == 60 and {len(e.program.chain) for e in examples} == {2, 3, 4}
    by_table = [
        f'{dict((repr(x), y) for x, y in e.pairs[: programs.SHOWN])}.get(repr(x))' for e in examples
    ]  # what is shown, learned by heart
    judged = lambda e, text: sandbox_lib.Program(programs.START + text, e.tests, ('f',))
    with sandbox_lib.Sandbox() as sandbox:
        solved = lambda texts: [r.passed for r in sandbox.run([*map(judged, examples, texts)], 60)]
        assert all(solved([e.program.text for e in examples]))
        assert not any(solved(by_table)) and not any(solved(['x'] * 60)) and not any(solved(['exit()'] * 60))
    assert examples[0].prompt.endswith('\n' + programs.START) and examples[0].prompt.count('->') == programs.SHOWN
    shown = {repr(x) for x, _ in examples[0].pairs}
    assert len(shown) > programs.SHOWN + programs.HIDDEN


def test_no_problem_is_solved_by_a_program_of_the_training_text_or_by_any_other_of_its_kind():
    """The texts that training shows are run, whatever kind of input they were made for: x[:2] takes both."""
    split, every = programs.split(*PERCENT), programs.generate()
    texts = {program.text for program in split['train']}
    assert {text.split(programs.START)[1].strip() for text in programs.documents(*PERCENT)['train']} == texts
    calls = {program.text: eval(f'lambda x: {program.text}') for program in every}

    def solves(text, example):
        try:
            return all(repr(calls[text](x)) == repr(y) for x, y in example.pairs)
        except Exception:
            return False

    problems = programs.problems(*PERCENT, problems_lib.MOST)
    assert len(problems) == problems_lib.MOST
    for i, example in enumerate(problems):
        assert solves(example.program.text, example) and example.solved_by(example.program)
        assert not any(solves(text, example) for text in texts), example.program.text
        assert i % 10 or sum(p.kind == example.program.kind and solves(p.text, example) for p in every) == 1


def test_the_share_that_training_programs_solve_is_a_row_of_the_evaluation():
    trained, problems = programs.split(*PERCENT)['train'], programs.problems(*PERCENT, 30)
    # With the inputs that are drawn alone x[:2] passes for list(dict.fromkeys(x[:2])), and is found.
    narrow = programs.example(Program('L', ('first2', 'unique')), -1, programs.SHOWN + programs.HIDDEN)
    (row,) = problems_lib.by_training_programs([narrow, *problems[:3]], trained).values()
    assert row['value'] == 0.25 and row['n'] == 4
    overrides = {'data.name': 'programs', 'data.tokenizer': 'char', 'data.test_percent': '10.0'}
    overrides |= {'eval.problems': 'programs', 'eval.ngram_order': '0'}
    experiment = Experiment(config_lib.load(f'{CONFIGS / "gpt.py"}:smoke', list(overrides.items())))
    rows = problems_lib.Problems(Evaluator(experiment))._baselines
    row = rows['programs/solved_by_training_programs']
    assert row['value'] == 0 and row['n'] == problems_lib.MOST == rows['programs/enumeration/solved@100']['n']


def test_enumeration_solves_what_stands_among_its_first_programs():
    examples = programs.problems(*PERCENT, 30)
    every = len(programs.generate())
    found = problems_lib.enumeration(examples, (every, 1, 50))
    value = {name.rpartition('@')[2]: row['value'] for name, row in found.items()}
    assert list(value) == ['1', '50', str(every)] and value['1'] == 0 and value[str(every)] == 1
    # The rank of a problem's own program bounds what is found before it.
    of_kind = {kind: [p for p in programs.generate() if p.kind == kind] for kind in 'LS'}
    own = [of_kind[e.program.kind].index(e.program) < 50 for e in examples]
    assert np.mean(own) <= value['50'] < 1


def config(**fields):
    return ConfigDict(dict(
        name='programs', tokenizer='char', vocab_size=0, order='shuffled', valid_percent=5.0, test_percent=10.0,
        block=64, eval_block=0, eval_stride=32, stream=False) | fields)  # fmt: skip


def test_the_data_source_has_these_splits():
    dataset = data.load(config())
    for split, texts in programs.documents(*PERCENT).items():
        decoded = dataset.spec.tokenizer.decode(dataset.splits[split].tokens[:2000])
        assert decoded.startswith(tokenizers.END + texts[0] + tokenizers.END + texts[1])
    with pytest.raises(UserError, match='data.valid_percent, data.test_percent'):
        data.load(config(valid_percent=60.0, test_percent=40.0))


def test_the_ngrams_distribution_is_that_of_its_likelihood_and_of_its_samples():
    random = np.random.default_rng(0)
    tokens = random.choice(4, 400, p=[0.5, 0.3, 0.15, 0.05])
    for order in (1, 2, 4):
        model = KneserNey(tokens, order, 5)
        for context in ([], [0], [1, 0, 0, 2], [4, 4, 4], [3, 3, 3, 3, 3, 1]):
            expected = [np.exp(-model.nats([*context, w])[-1]) for w in range(5)]
            np.testing.assert_allclose(model.distribution(context), expected, rtol=1e-12)
    model, n = KneserNey(tokens, 2, 5), 20_000
    drawn = np.array([model.sample([1], 1, (), 1.0, random)[0] for _ in range(n)])
    p = model.distribution([1])
    counts = np.bincount(drawn, minlength=5)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < 23.5  # χ² of 4 degrees of freedom, 1 in 10,000
    assert model.sample([1], 5, (), 0.0, random)[0] == p.argmax()
    assert all(0 not in model.sample([1], 30, {0}, 1.0, random) for _ in range(20))
    assert len(model.sample([1], 30, (), 1.0, random)) == 30
