"""Texts of a run's language model: what writes them, prompts from files, and texts in files."""

import io
import pathlib

import numpy as np

from aigc_jax.core import records
from aigc_jax.core.capabilities import WritesText
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import atomic_write, lines_of, read_text
from aigc_jax.data import Tokens
from aigc_jax.decoding import Sampling
from aigc_jax.decoding.generate import Generator, Text
from aigc_jax.reports import pictures
from aigc_jax.runs.experiment import Experiment

_DRAFT_TOKENS = 2_000_000  # of the training text, that a draft is made of


def writer(
    experiment: Experiment, how: Sampling, max_new_tokens: int | None = None, draft: str = '', **more
) -> Generator:  # fmt: skip
    """What writes with the model of an experiment. draft: 'ngram', of the training text; '': none. more: stop, suffix
    and grammar, as Generator has them."""
    if draft and draft != 'ngram':
        raise UserError(f"draft: {draft!r}; it is 'ngram', or left out")
    dataset = experiment.dataset
    read = dataset.splits['train'].tokens if isinstance(dataset.spec, Tokens) else np.zeros(0, np.int32)
    return Generator(
        experiment.task.get(WritesText), dataset.spec.tokenizer, how, max_new_tokens,
        draft=read[:_DRAFT_TOKENS] if draft else None,
        chunk=experiment.config.eval.batch_size, placement=experiment.plan.replicated, **more,
    )  # fmt: skip


def read_prompts(prompt: str, prompt_file: str) -> list[str]:
    """--prompt, or the lines of --prompt_file, each as it stands, or a JSON string where it begins with a quote."""
    if prompt and prompt_file:
        raise UserError('--prompt and --prompt_file: give one of them')
    if not prompt_file:
        return [prompt]
    path = pathlib.Path(prompt_file).expanduser()
    text = read_text(path, '--prompt_file: ', records.regular_or_pipe).replace('\r\n', '\n')
    prompts = []
    for number, line in enumerate(lines_of(text), 1):
        try:
            prompts.append(records.parse(line) if line.startswith('"') else line)
            prompts[-1].encode(errors='surrogateescape')
        except UnicodeEncodeError as error:
            raise UserError(
                f'--prompt_file: {prompt_file}, line {number}: character {error.start + 1} is half of a '
                'letter, which no UTF-8 has'
            ) from None
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
    atomic_write(path.with_suffix('.txt'), pictures.join_texts([str(text) for text in texts]))
