"""Text from a trained language model: prompts in, texts out, with their likelihood and how each ended."""

import dataclasses
import io
import json
import pathlib
from collections import Counter
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from aigc_jax import pictures
from aigc_jax.core import optim, rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import atomic_write
from aigc_jax.core.types import Extra, TrainState
from aigc_jax.decoding import Sampling, pad_prompts
from aigc_jax.experiment import Experiment

_MOST = 200  # tokens of a text where nothing else is said


@dataclasses.dataclass(frozen=True)
class Text:
    """ended: 'end' (of a document), 'stop' (before the stop text) or 'length' (cut off); nats: −log p of `tokens`."""

    prompt: str
    text: str
    tokens: np.ndarray
    nats: float
    ended: str


class Generator:
    """Writes with one model. Raises UserError for flags that do not fit it or each other.

    max_new_tokens: the most that a text gets; None: what its model has room for, at most _MOST.
    """

    def __init__(self, experiment: Experiment, how: Sampling, max_new_tokens: int | None = None, stop: str = ''):
        self._language, self._tokenizer = experiment.task.language, experiment.dataset.tokenizer
        how.check(self._language.vocab_size)
        if stop and how.beam_size > 1:
            raise UserError('--stop: a beam search ends at the end of a document or after --max_new_tokens')
        self._how, self._most, self._stop = how, max_new_tokens, stop
        self._stop_tokens = tuple(self._encode(stop, '--stop').tolist())
        self._chunk = experiment.config.eval.batch_size

    def generate(self, state: TrainState, prompts: Sequence[str], num_samples: int, seed: int) -> list[Text]:
        """num_samples texts for each prompt; text i of all is a function of (seed, i), whatever stands beside it."""
        language = self._language
        encoded = [self._encode(prompt, '--prompt') for prompt in prompts]
        longest = max(map(len, encoded))  # one shape, so one program, for all chunks
        most = self._most or (min(_MOST, max(1, language.context - longest)) if language.context else _MOST)
        for prompt, tokens in zip(prompts, encoded, strict=True):
            if language.context and len(tokens) + most > language.context:
                raise UserError(
                    f'--prompt: {_shortened(prompt)} has {len(tokens)} tokens, and with --max_new_tokens={most} '
                    f'the {language.context} of the model leave room for {max(language.context - most, 0)}'
                )
        params, extra = optim.averaged(state.params, state.opt), Extra(state.stats, state.carry)
        rows = [(prompt, tokens) for prompt, tokens in zip(prompts, encoded, strict=True) for _ in range(num_samples)]
        key, texts = rng.context(seed, 'generate', 0, jnp.arange(1)).key, []
        for begin in range(0, len(rows), self._chunk):
            part = rows[begin : begin + self._chunk]
            tokens, start = pad_prompts([*(tokens for _, tokens in part), np.zeros(longest, np.int32)])
            index = jnp.arange(begin, begin + len(part), dtype=jnp.int32)
            found = language.generate(
                params, extra, tokens[:-1], start[:-1], key, index, self._how, most, self._stop_tokens
            )
            for (prompt, _), written, length, log_prob in zip(part, *map(np.asarray, found), strict=True):
                texts.append(self._text(prompt, written[:length], float(log_prob)))
        return texts

    def _encode(self, text: str, flag: str) -> np.ndarray:
        try:
            tokens = self._tokenizer.encode(text)
        except UserError as error:
            raise UserError(f'{flag}: {error}') from None
        # A prompt that begins a text follows what stands before each document.
        begins = flag == '--prompt' and (self._tokenizer.end is not None or not len(tokens))
        return np.concatenate([[self._language.first], tokens]).astype(np.int32) if begins else tokens

    def _text(self, prompt: str, tokens: np.ndarray, log_prob: float) -> Text:
        ended = 'length'
        kept = tokens
        if len(tokens) and tokens[-1] == self._tokenizer.end:
            kept, ended = tokens[:-1], 'end'
        text = self._tokenizer.decode(kept)
        if self._stop and self._stop in text:
            text, ended = text[: text.index(self._stop)], 'stop'
        return Text(prompt, text, tokens, -log_prob, ended)


def read_prompts(prompt: str, prompt_file: str) -> list[str]:
    """--prompt, or the lines of --prompt_file, each as it stands, or a JSON string where it begins with a quote."""
    if prompt and prompt_file:
        raise UserError('--prompt and --prompt_file: give one of them')
    if not prompt_file:
        return [prompt]
    try:
        lines = pathlib.Path(prompt_file).expanduser().read_text(encoding='utf-8').splitlines()
    except OSError as error:
        raise UserError(f'--prompt_file: {prompt_file} cannot be read: {error.strerror or error}') from None
    except UnicodeDecodeError as error:
        raise UserError(f'--prompt_file: {prompt_file}, byte {error.start}: is not UTF-8') from None
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            prompts.append(json.loads(line) if line.startswith('"') else line)
        except ValueError:
            raise UserError(
                f'--prompt_file: {prompt_file}, line {number}: begins with a quote and is no JSON'
            ) from None
    if not prompts:
        raise UserError(f'--prompt_file: {prompt_file} has no line')
    return prompts


def save(path: pathlib.Path, texts: list[Text]) -> None:
    """`path`.txt to read; `path`.npz with samples (n, tokens) int32, −1 behind the last, nats and length (n,)."""
    most = max(len(text.tokens) for text in texts)
    samples = np.full((len(texts), most), -1, np.int32)
    for row, text in zip(samples, texts, strict=True):
        row[: len(text.tokens)] = text.tokens
    buffer = io.BytesIO()
    nats, length = np.array([text.nats for text in texts]), np.array([len(text.tokens) for text in texts])
    np.savez_compressed(buffer, samples=samples, nats=nats, length=length)
    atomic_write(path.with_suffix('.npz'), buffer.getvalue())
    atomic_write(path.with_suffix('.txt'), pictures.join_texts([text.prompt + text.text for text in texts]))


def summary(texts: list[Text]) -> str:
    """How the texts ended and what they cost, in one line."""
    written = sum(len(text.tokens) for text in texts)
    nats = sum(text.nats for text in texts)
    counts = Counter(text.ended for text in texts)
    words = {'end': 'to the end of a document', 'stop': 'to the stop text', 'length': 'cut off by length'}
    ends = ', '.join(f'{counts[ended]} {words[ended]}' for ended in words if counts[ended])
    return f'{len(texts)} texts ({ends}), {written} tokens, {nats / max(written, 1):.4g} nats a token'


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:27] + '…')
