"""Texts of a run's language model: what writes them, prompts from files, and texts in files."""

import io
import pathlib
from collections.abc import Sequence

import numpy as np

from aigc_jax.core import records
from aigc_jax.core.capabilities import WritesText
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import atomic_write, lines_of, read_text
from aigc_jax.data import Tokens
from aigc_jax.data.sources import reading
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
    return [text for (text,) in read_examples(prompt, prompt_file, ())]


def read_examples(prompt: str, prompt_file: str, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts of each example, as many as there are `columns`: --prompt, or each line of --prompt_file, with a tab
    between two; or the `columns` of a file of rows, as the data have them (reading.table). Raises UserError.

    columns: (): one text, in which a tab is text.
    """
    if prompt and prompt_file:
        raise UserError('--prompt and --prompt_file: give one of them')
    if not prompt_file:
        return [_fitting(_cells(prompt, columns), columns, '--prompt')]
    path, name = pathlib.Path(prompt_file).expanduser(), f'--prompt_file: {prompt_file}'
    content = read_text(path, '--prompt_file: ', records.regular_or_pipe).replace('\r\n', '\n')
    if columns and reading.is_of_rows(path, content):
        found = [
            (where := f'{name}, line {number}', [reading.text_of(row, column, where) for column in columns])
            for number, row in reading.table(path, content, tuple(columns), name)
        ]
    else:
        found = [
            (where := f'{name}, line {number}', [_unquoted(cell, where) for cell in _cells(line, columns)])
            for number, line in enumerate(lines_of(content), 1)
        ]
    if not found:
        raise UserError(f'{name} has no line')
    return [_fitting(cells, columns, where) for where, cells in found]


def _cells(line: str, columns: Sequence[str]) -> list[str]:
    return line.split('\t') if columns else [line]


def _unquoted(cell: str, where: str) -> str:
    try:
        text = records.parse(cell) if cell.startswith('"') else cell
        text.encode(errors='surrogateescape')
    except UnicodeEncodeError as error:
        raise UserError(f'{where}: character {error.start + 1} is half of a letter, which no UTF-8 has') from None
    except ValueError:
        raise UserError(f'{where}: begins with a quote and is no JSON') from None
    return text


def _fitting(texts: list[str], columns: Sequence[str], where: str) -> tuple[str, ...]:
    """The texts of one example. Raises UserError unless there are as many as `columns`."""
    if len(columns) == 1 < len(texts):
        raise UserError(
            f'{where}: a tab divides {len(texts)} texts, and the model tells of one; a text with a tab in it stands in '
            'JSON quotes in a --prompt_file'
        )
    if len(columns) == 2 and not (len(texts) == 2 and all(map(str.strip, texts))):
        raise UserError(
            f'{where}: the model tells of two texts, {" and ".join(columns)}; write both with one tab between, as '
            "--prompt=$'one\\tanother'"
        )
    return tuple(texts)


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
