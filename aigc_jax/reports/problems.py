"""Programming problems that a language model solves, as executed in the sandbox, beside baselines."""

import functools
import math
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from aigc_jax.core import processes, progress
from aigc_jax.core.capabilities import CausalText
from aigc_jax.core.errors import UserError, near
from aigc_jax.core.notes import note
from aigc_jax.core.types import TrainState
from aigc_jax.data import Tokens
from aigc_jax.data.sources import programs
from aigc_jax.decoding import Sampling
from aigc_jax.metrics import python_code
from aigc_jax.metrics.intervals import mean_of_shares
from aigc_jax.reports import texts as texts_lib
from aigc_jax.reports.base import Report
from aigc_jax.reports.tables import Results
from aigc_jax.runs.experiment import Experiment
from aigc_jax.sandbox import problems
from aigc_jax.sandbox.problems import Problem
from aigc_jax.sandbox.sandbox import Program, Sandbox

MOST = 200  # problems of 'programs'
_ENUMERATED = (100, 1000)  # programs, beside as many as the model writes
_SECONDS = 10.0  # of each program


def read(experiment: Experiment) -> tuple[Problem, ...]:
    """The problems that eval.problems names; of 'programs' those of the test split."""
    name, colon, where = experiment.config.eval.problems.partition(':')
    if colon:
        return problems.READERS[name + colon](where)
    judged = lambda example: lambda text: Program(programs.START + text, example.tests, ('f',))
    return tuple(Problem(e.program.text, e.prompt, ('\n',), judged(e)) for e in _examples(experiment))


def _examples(experiment: Experiment) -> tuple[programs.Example, ...]:
    return programs.problems(experiment.config.data.valid_percent, experiment.config.data.test_percent, MOST)


class Problems(Report):
    """pass@k and solved@beam of the model, and of its baselines with as many programs executed for each problem, as
    means over problems. The baselines are computed once, whatever the number of replicas.

    A problem that does not fit the model's context, or has a character that it lacks, is not solved, and counted.
    """

    name, when, needs, switch = 'problems', 'final', (CausalText,), 'problems'
    title = 'programming problems'

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Of fields that do not fit each other or the model, and of files of problems."""
        config, language = experiment.config.eval, experiment.task.get(CausalText)
        if not isinstance(experiment.dataset.spec, Tokens) or not config.problems:
            return
        if not language:
            raise UserError(f'eval.problems: {experiment.config.task.name} writes no text')
        if not config.pass_k or max(config.pass_k) > config.problem_samples:
            raise UserError(
                f'eval.pass_k: {config.pass_k}; whole numbers of 1 to problem_samples, {config.problem_samples}'
            )
        if config.problem_beam > language.vocab_size:
            raise UserError(
                f'eval.problem_beam: {config.problem_beam}; at most the {language.vocab_size} tokens there are'
            )
        name, colon, _ = config.problems.partition(':')
        if name + colon not in (known := ['programs', *problems.READERS]):
            raise UserError(f'eval.problems: {config.problems!r}{near(name + colon, known)}')
        if not colon and not experiment.config.data.test_percent:
            raise UserError('eval.problems: programs are those of the test split; data.test_percent is 0')
        if colon:
            read(experiment)

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        config = experiment.config.eval
        name = config.problems.partition(':')[0]
        models = [name, *[f'{name}/{config.ngram_order}-gram'] * bool(config.ngram_order)]
        found = [f'{model}/pass@{k}' for model in models for k in config.pass_k]
        found += [f'{name}/solved@beam'] * (config.problem_beam > 1)
        found += [f'{name}/{what}' for what in ('parses', 'compiles', 'does_not_fit')]
        if name == 'programs':
            found += [f'programs/enumeration/solved@{k}' for k in {*config.pass_k, *_ENUMERATED}]
            found.append('programs/solved_by_training_programs')
        return found

    def __init__(self, *args):
        super().__init__(*args)
        self._problems_name = self.config.problems.partition(':')[0]
        self._problems = read(self.experiment)
        self._fits = [self._encoded(problem) is not None for problem in self._problems]

    @classmethod
    def files(cls, experiment: Experiment) -> list[pathlib.Path]:
        return [pathlib.Path(experiment.config.eval.problems.partition(':')[2]).expanduser()]

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        config, name = self.config, self._problems_name
        samples = self._written(state, Sampling(temperature=config.problem_temperature), config.problem_samples, seed)
        searches = config.problem_beam > 1
        beams = self._written(state, Sampling(beam_size=config.problem_beam), 1, seed) if searches else []
        if not processes.first():  # every process writes, one executes
            return {}
        results = self._passed(name, samples)
        if searches:
            results[f'{name}/solved@beam'] = mean_of_shares(self._correct(beams).mean(axis=1), 'problems')
        texts = [[p.prompt + text for text in own] for p, own in zip(self._problems, samples, strict=True) if own]
        for what in (python_code.parses, python_code.compiles):
            if texts:
                shares = [np.mean([what(text) for text in own]) for own in texts]
                results[f'{name}/{what.__name__}'] = mean_of_shares(shares, 'problems')
        results[f'{name}/does_not_fit'] = {'value': float(self._fits.count(False)), 'n': len(self._fits)}
        return results | self._baselines

    def _written(self, state: TrainState, how: Sampling, n: int, seed: int) -> list[list[str]]:
        """n completions of each problem that fits; none of the others."""
        stops = set().union(*(problem.stops for problem in self._problems))
        stop = stops.pop() if len(stops) == 1 and how.beam_size == 1 else ''  # else they are cut afterwards alone
        prompts = [problem.prompt for problem, fits in zip(self._problems, self._fits, strict=True) if fits]
        if not prompts:
            return [[] for _ in self._problems]
        writer = texts_lib.writer(self.experiment, how, self.config.problem_tokens, stop=stop)
        texts = iter(writer.generate(state, prompts, n, seed))
        return [
            [problem.cut(next(texts).text) for _ in range(n * fits)]
            for problem, fits in zip(self._problems, self._fits, strict=True)
        ]

    def _encoded(self, problem: Problem) -> np.ndarray | None:
        """The prompt's tokens, where they leave room for a program."""
        tokens, context = self._tokens(problem.prompt), self.experiment.task.get(CausalText).context
        if tokens is None or context and len(tokens) + 1 + self.config.problem_tokens > context:
            return None
        return tokens

    def _tokens(self, text: str) -> np.ndarray | None:
        """None where the tokenizer lacks a character."""
        try:
            return self.experiment.dataset.spec.tokenizer.encode(text)
        except UserError:
            return None

    def _correct(self, completions: Sequence[Sequence[str]]) -> np.ndarray:
        """(problems, samples) bool: which pass in the sandbox; each program is executed once."""
        written = [[p.program(text) for text in own] for p, own in zip(self._problems, completions, strict=True)]
        different = list(dict.fromkeys(text for own in written for text in own))
        with Sandbox() as sandbox:
            if not sandbox.kernel_layers:
                note('programs run without a filter of the kernel here; see aigc_jax/sandbox/README.md')
            results = dict(zip(different, sandbox.run(different, _SECONDS), strict=True))
        if odd := [result.message for result in results.values() if result.status == 'unsupported']:
            note(f'{len(odd)} programs count as wrong because their tests do not fit the sandbox: {odd[0]}')
        n = max(1, *map(len, written))
        return np.array([[results[text].passed for text in own] or [False] * n for own in written])

    def _passed(self, name: str, completions: Sequence[Sequence[str]]) -> Results:
        n, counts = self.config.problem_samples, self._correct(completions).sum(axis=1).tolist()
        at = lambda k: mean_of_shares([python_code.pass_at_k(n, c, k) for c in counts], 'problems')
        return {f'{name}/pass@{k}': at(k) for k in self.config.pass_k}

    @functools.cached_property
    def _baselines(self) -> Results:
        """An n-gram model of the training text with the same prompts; of 'programs', the shortest ones in order."""
        results, config, ngram = {}, self.config, self.evaluator.text_splits.ngram if self.config.ngram_order else None
        if ngram:
            tokenizer = self.experiment.dataset.spec.tokenizer
            random, completions = np.random.default_rng(0), []
            for problem in progress.each(self._problems, 'n-gram model'):
                tokens, own, stops = self._encoded(problem), [], map(self._tokens, problem.stops)
                single = (int(stop[0]) for stop in stops if stop is not None and len(stop) == 1)
                ends = {tokenizer.end, *single} - {None}
                for _ in range(0 if tokens is None else config.problem_samples):
                    written = ngram.sample(tokens, config.problem_tokens, ends, config.problem_temperature, random)
                    own.append(problem.cut(tokenizer.decode(written)))
                completions.append(own)
            results |= self._passed(f'{self._problems_name}/{config.ngram_order}-gram', completions)
        if self._problems_name == 'programs':
            examples, data = _examples(self.experiment), self.experiment.config.data
            results |= enumeration(examples, {*config.pass_k, *_ENUMERATED})
            results |= by_training_programs(examples, programs.split(data.valid_percent, data.test_percent)['train'])
        return results


def enumeration(examples: Sequence[programs.Example], budgets: Iterable[int]) -> Results:
    """solved@k for each k of `budgets`: one of the first k programs of a problem's kind, the smallest first, is right.

    Operators of our own need no sandbox.
    """
    most = max(budgets := sorted(budgets))
    smallest = {kind: [p for p in programs.generate() if p.kind == kind][:most] for kind in 'LS'}

    def rank(example):
        tries = enumerate(smallest[example.program.kind])
        return next((i for i, p in tries if example.solved_by(p)), math.inf)

    ranks = np.array([rank(example) for example in examples])
    return {f'programs/enumeration/solved@{k}': mean_of_shares(ranks < k, 'problems') for k in budgets}


def by_training_programs(examples: Sequence[programs.Example], trained: Sequence[programs.Program]) -> Results:
    """The share of problems that a program which stands in the training text solves word for word."""
    solved = [any(map(example.solved_by, trained)) for example in examples]
    return {'programs/solved_by_training_programs': mean_of_shares(solved, 'problems')}
