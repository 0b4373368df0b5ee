"""Texts of a run's language model: what writes them, prompts from files, and texts in files."""

import io
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from aigc_jax.core import records
from aigc_jax.core.capabilities import WritesText
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import atomic_write, lines_of, read_text
from aigc_jax.data import Tokens
from aigc_jax.data.sources import example_files, reading
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


Rows = tuple[str, tuple[str, ...]]  # of the training data, as data.row_columns has them
_NO_ROWS: Rows = ('', ())


def read_prompts(prompt: str, prompt_file: str, rows: Rows = _NO_ROWS) -> list[str]:
    """--prompt, or the lines of --prompt_file, each as it stands, or a JSON string where it begins with a quote; or
    what a model reads of a file of `rows`."""
    return [text for (text,) in read_examples(prompt, prompt_file, (), rows)]


def read_examples(
    prompt: str, prompt_file: str, columns: Sequence[str], rows: Rows = _NO_ROWS
) -> list[tuple[str, ...]]:  # fmt: skip
    """The texts of each example, as many as there are `columns`: --prompt, or each line of --prompt_file, with a tab
    between two; or what a model reads of a file of `rows`, as its training data have them. Raises UserError.

    columns: (): one text, in which a tab is text.
    """
    if prompt and prompt_file:
        raise UserError('--prompt and --prompt_file: give one of them')
    if not prompt_file:
        return [_fitting(_cells(prompt, columns), columns, '--prompt')]
    path, name = pathlib.Path(prompt_file).expanduser(), f'--prompt_file: {prompt_file}'
    kind, _ = rows = rows if rows[0] or not columns else ('labelled', (*columns, 'label'))
    content = read_text(path, '--prompt_file: ', records.regular_or_pipe).replace('\r\n', '\n')
    if kind and reading.is_of_rows(path, content) and (kind != 'jsonl' or not reading.is_tsv(path)):
        found = [*_of_rows(path, content, name, rows)]
    else:
        found = [
            (where := f'{name}, line {number}', [_unquoted(cell, where, kind) for cell in _cells(line, columns)])
            for number, line in enumerate(lines_of(content), 1)
        ]
    if not found:
        raise UserError(f'{name} has no line')
    return [_fitting(cells, columns, where) for where, cells in found]


def _of_rows(path: pathlib.Path, content: str, name: str, rows: Rows) -> Iterator[tuple[str, list[str]]]:
    """(place, texts) of each row; what is to be written or told of them is passed over, and may be missing."""
    kind, names = rows
    if kind == 'tagged' and reading.is_tsv(path):
        for where, words, _ in example_files.conll(content, names, name, has_tags=False):
            yield where, [' '.join(words)]
        return
    read = names if kind == 'jsonl' else names[:-1]
    first = next(filter(str.strip, lines_of(content)), '').split('\t')
    every = names if len(first) == len(names) and not set(read) <= set(first) else read
    for number, row in reading.table(path, content, every, name):
        where = f'{name}, line {number}'
        if kind != 'tagged':
            yield where, [reading.text_of(row, column, where) for column in read]
            continue
        words = row.get(names[0])
        if not isinstance(words, list) or not words:
            raise UserError(f'{where} is no JSON object with a list "{names[0]}" of words')
        yield where, [' '.join(example_files.word(word, where) for word in words)]


def _cells(line: str, columns: Sequence[str]) -> list[str]:
    return line.split('\t') if columns else [line]


def _unquoted(cell: str, where: str, kind: str = '') -> str:
    if kind == 'tagged' and '\t' in cell and not cell.startswith('"'):
        raise UserError(
            f'{where} holds a tab, as between a word and its tag; a file of these has a name that ends in .tsv, and a '
            'text with a tab in it stands in JSON quotes'
        )
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
