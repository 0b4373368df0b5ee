"""What an encoder-decoder writes for the sources of a split, against their targets."""

import functools

import jax
import numpy as np

from aigc_jax.core import optim, parallel, processes, rng
from aigc_jax.core import progress as progress_lib
from aigc_jax.core.capabilities import Seq2Seq
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import atomic_write
from aigc_jax.core.types import Extra, TrainState
from aigc_jax.data import Pairs, code_ways, is_code
from aigc_jax.decoding import Sampling
from aigc_jax.decoding.language import TextDecoder
from aigc_jax.decoding.sampling import pad_prompts
from aigc_jax.metrics import written
from aigc_jax.metrics.text import until_end
from aigc_jax.reports import pictures
from aigc_jax.reports.base import Report
from aigc_jax.reports.tables import Results
from aigc_jax.runs.experiment import Experiment


class Written(Report):
    """Metrics of the targets of eval.num_generated pairs, or all, drawn by rng.fixed_choice, as the model writes them:
    by the likeliest token each time, or by a beam search. The first eval.num_shown are kept in samples/, with source
    and target."""

    name, when, needs, switch = 'written', 'final', (Seq2Seq, Pairs), 'num_generated'
    title = 'texts written for the {split} split'

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        if cls.applies(experiment):
            beams, most = experiment.config.eval.generated_beams, experiment.task.get(Seq2Seq).vocab_size
            if beams > most:
                raise UserError(f'eval.generated_beams: {beams}; at most the {most} tokens that there are')
            if experiment.config.eval.code_bleu:
                cls._check_code(experiment.config.data)

    @staticmethod
    def _check_code(data) -> None:
        if not is_code(data):
            raise UserError('eval.code_bleu: is of Python; where the targets are, set data.code=True')
        if not any(code_ways(data)):
            mend = 'code' if data.name == 'docstrings' else "a name with 'code' in it, as given in data.columns"
            raise UserError(f'eval.code_bleu: is of Python, and no column that is written is; its name is {mend}')

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        return [f'written/{name}' for name in written.names(experiment.config.eval.code_bleu)]

    @functools.cached_property
    def _decoder(self) -> TextDecoder:
        return TextDecoder(self.evaluator.task.get(Seq2Seq))

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        dataset = self.experiment.dataset
        where = rng.fixed_choice(len(dataset.splits[split]), self.config.num_generated)
        examples = self.experiment.examples(split, where)
        rows = lambda name: [row[:n] for row, n in zip(examples[name], examples[f'{name}_length'], strict=True)]
        tokenizer = dataset.spec.tokenizer
        special = [*tokenizer.special_ids.values()]

        def text(tokens: np.ndarray) -> str:
            own = until_end(tokens, tokenizer.end)
            return tokenizer.decode(own[~np.isin(own, special)])

        wanted = [text(tokens) for tokens in rows('target')]
        ours = [text(tokens) for tokens in self._written(state, rows('source'), dataset.spec.target_block)]
        if self.evaluator.paths and processes.first():
            triples = zip(rows('source'), wanted, ours, strict=True)
            shown = [f'{text(source)}\n→ {a}\n≟ {b}' for source, a, b in triples][: self.config.num_shown]
            of_replica = f'_seed{seed}' if len(self.experiment.seeds) > 1 else ''
            path = self.evaluator.paths.samples / f'{int(state.step):08d}{of_replica}_written.txt'
            atomic_write(path, pictures.join_texts(shown))
        ways = code_ways(self.experiment.config.data) if self.config.code_bleu else (False,)
        scores = written.scores(ours, wanted, [ways[i % len(ways)] for i in where])
        return {f'written/{name}': row for name, row in scores.items()}

    def _written(self, state: TrainState, sources: list[np.ndarray], most: int) -> list[np.ndarray]:
        """The tokens of each."""
        beams, chunk = self.config.generated_beams, self.config.batch_size
        how = Sampling(beam_size=beams) if beams > 1 else Sampling(temperature=0.0)
        model = optim.averaged(state.params, state.opt), Extra(state.stats, state.carry)
        key, found = jax.random.key(0), []
        widest = np.zeros(max(map(len, sources)), np.int32)  # so that all chunks have one shape
        for begin in progress_lib.each(range(0, len(sources), chunk), f'writing {len(sources)} texts'):
            part = sources[begin : begin + chunk]
            rows = part + [part[-1]] * (min(chunk, len(sources)) - len(part))
            tokens, start = pad_prompts([*rows, widest])
            index = np.arange(len(rows), dtype=np.int32)
            texts = self._decoder.generate(*model, tokens[:-1], start[:-1], key, index, how, most, ())
            texts = parallel.fetch(texts)
            found += [row[:n] for row, n in zip(texts.tokens, texts.length, strict=True)][: len(part)]
        return found
