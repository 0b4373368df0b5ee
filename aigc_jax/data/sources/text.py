"""Text and source code as rows of tokens: embedded corpora, files, folders; windows of them as examples."""

import dataclasses
import hashlib
import itertools
import pathlib
import sysconfig
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from aigc_jax.core.errors import UserError, near
from aigc_jax.core.notes import note
from aigc_jax.core.types import Array, Batch
from aigc_jax.data import infilling, pretrained, tokenizer_files, tokenizers
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.rows import MOST_TOKENS, dtype_of
from aigc_jax.data.sources import reading
from aigc_jax.data.specs import Tokens
from aigc_jax.data.tokenizers import Tokenizer

FOLDER = 'hf:'  # before the folder of a tokenizer of Hugging Face
ORDERS = ('shuffled', 'contiguous')
SPLITS = ('train', 'valid', 'test')
CODE = ('python-stdlib', 'python-modules', 'programs', 'code', 'docstrings', 'identifiers')
PSF = 'PSF-2.0: part of the Python distribution'
_OWN = "the files' own"
_VOCAB_SIZE = 1024  # of 'word' and 'bpe', where data.vocab_size is -1
_CHUNK = 10_000  # documents whose tokens are put together at once


class Windows:
    """One split: windows of `block` + 1 tokens of a row of tokens, the inputs and, one further on, the targets.

    Window i begins at i · stride; with `cover` the last one is moved back so that it ends with the row. `source[i]` is
    {'tokens': S + (block + 1,) int32, 'counted': S int32}, S the shape of i: how many of the last targets no window
    before has had, so that what is summed over them is summed over the row, each token once.
    With identifiers (see infilling.marks), uint8 of each token, also these of the window's tokens; so with names (see
    infilling.numbered), int32.
    """

    def __init__(
        self, tokens: np.ndarray, block: int, stride: int, cover: bool, identifiers: np.ndarray | None = None,
        names: np.ndarray | None = None,
    ):  # fmt: skip
        self.tokens, self._block, self._stride = tokens, block, stride
        marks = {'identifiers': identifiers, 'names': names}
        self._marks = {name: value for name, value in marks.items() if value is not None}
        self._last = len(tokens) - 1 - block  # where the last window can begin
        self._cover = cover

    def __len__(self) -> int:
        return self._last // self._stride + 1 + (self._cover and self._last % self._stride > 0)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        index = np.asarray(index)
        if ((index < 0) | (index >= len(self))).any():
            raise IndexError(index)
        start = np.minimum(index * self._stride, self._last)
        before = np.minimum((index - 1) * self._stride, self._last)
        counted = np.where(index == 0, self._block, start - before).astype(np.int32)
        where = start[..., None] + np.arange(self._block + 1)
        marks = {name: value[where] for name, value in self._marks.items()}
        return {'tokens': self.tokens[where].astype(np.int32), 'counted': counted, **marks}

    @property
    def resident(self) -> dict[str, np.ndarray]:
        return {'tokens': self.tokens, **self._marks}

    def gather(self, data: Batch, index: Array) -> Batch:
        """{'tokens': index.shape + (block + 1,) int32, 'identifiers', 'names'}, inside the compiled step."""
        import jax.numpy as jnp

        where = index[..., None] * self._stride + jnp.arange(self._block + 1)
        found = {name: value.at[where].get(mode='promise_in_bounds') for name, value in data.items()}
        return {**found, 'tokens': found['tokens'].astype(jnp.int32)}


def load(
    cfg, documents: list[str], licence: str, tokenizer: Tokenizer | None, held_out: Mapping[str, list[str]] = {},
) -> Dataset:  # fmt: skip
    """Documents, cut into splits and tokens as `cfg`, the config's `data`, says.

    One document is cut by place: its first part is trained on, the last valid_percent and test_percent are held out.
    Several are told apart by the hash of what they hold, so that a document stays in its split whatever stands beside.

    tokenizer: of the run that is gone on with; None: one is made. held_out: {split: documents} of the splits valid and
    test that are given, and so not cut from `documents`. Raises UserError.
    """
    check_percents(cfg)
    by_split = cut(documents, *(0.0 if split in held_out else cfg[f'{split}_percent'] for split in ('valid', 'test')))
    has_end = any(len(texts) > 1 for texts in (documents, *held_out.values()))
    origin = origin_of_splits(cfg, held_out, len(documents) > 1)
    return from_splits(cfg, by_split | held_out, has_end, licence, tokenizer, origin)


def origin_of_splits(cfg, given: Collection[str], several: bool) -> str:
    """Which splits were cut from the documents, several or one, and how; in words."""
    cut_off = [f'{split} {cfg[f"{split}_percent"]:g} %' for split in ('valid', 'test') if split not in given]
    how = 'of the documents, by their hash' if several else 'at the end of the text'
    return f'{", ".join(cut_off)} {how}' if cut_off else 'as given'


def check_percents(cfg) -> None:
    if cfg.valid_percent + cfg.test_percent >= 100:
        raise UserError('data.valid_percent, data.test_percent: together less than 100')


def from_splits(
    cfg, by_split: Mapping[str, Collection[str]], has_end: bool, licence: str, tokenizer: Tokenizer | None,
    origin: str = 'as given',
) -> Dataset:  # fmt: skip
    """The same for documents whose splits are known; each split is read once or twice, from its beginning.

    has_end: whether a token stands before each document. origin: of the splits, in words. Raises UserError.
    """
    infilling.check(cfg)
    has_fim, has_sentinels = cfg.fim_rate > 0, cfg.sentinels > 0  # what is written between them has an end
    if not len(by_split['train']):
        raise UserError(f'data.name={cfg.name}: holds no text to train on')
    tokenizer = tokenizer or make_tokenizer(cfg, by_split, has_end or has_fim or has_sentinels, has_fim)
    check_tokenizer(cfg, tokenizer)
    if has_end and tokenizer.end is None:
        if tokenizer.can_grow:
            tokenizer = dataclasses.replace(tokenizer, has_end=True)
            note(f'data.name={cfg.name}: the end of a document is a new token, which the run of init.run lacks')
        else:
            note(f'data.name={cfg.name}: read as one text, for the tokenizer of the run has no end of a document')
    if has_fim and not tokenizer.fim:
        raise UserError(f'data.fim_rate: {cfg.fim_rate}, but the tokenizer of the run has no tokens for infilling')
    eval_block = cfg.eval_block or cfg.block
    if cfg.eval_stride != -1 and not 1 <= cfg.eval_stride <= eval_block:
        raise UserError(
            f'data.eval_stride: {cfg.eval_stride}; 1 to the {eval_block} tokens of a window, as no token may be passed '
            'over, or -1, half of a window'
        )
    splits = {}
    for split, texts in by_split.items():
        if not len(texts):
            continue
        tokens, training = _tokens(tokenizer, texts), split == 'train'
        if len(tokens) > MOST_TOKENS:
            raise UserError(f'data.name={cfg.name}: {split} has {len(tokens)} tokens; at most {MOST_TOKENS} are read')
        block = cfg.block if training else eval_block
        if not training and 2 <= len(tokens) <= block:
            block = len(tokens) - 1
            note(f'data.name={cfg.name}: the {split} split has {len(tokens)} tokens, which are one window of {block}')
        if len(tokens) < block + 1:
            mend = f', or a data.block of {len(tokens) - 1} or less' if len(tokens) > 1 else ''
            raise UserError(
                f'data.name={cfg.name}: the {split} split has {len(tokens)} tokens, less than a window of {block} and '
                f'the token after it; give a longer text{mend}'
            )
        eval_stride = max(1, block // 2) if cfg.eval_stride == -1 else min(cfg.eval_stride, block)
        stride = (1 if cfg.order == 'shuffled' else block) if training else eval_stride
        marks, names = None, None
        if training and cfg.fim_identifiers:
            marks = _of_tokens(tokenizer, texts, lambda text: infilling.marks(tokenizer, text, is_code(cfg)))
        if cfg.number_identifiers:
            numbers: dict[bytes, int] = {}
            number = lambda text, numbers=numbers: infilling.numbered(tokenizer, text, is_code(cfg), numbers)
            names = _of_tokens(tokenizer, texts, number)
        splits[split] = Windows(tokens, block, stride, not training, marks, names)
    digest = hashlib.sha256(tokenizer.to_json().encode())
    for split, windows in splits.items():
        digest.update(f'{split} {len(windows.tokens)}\n'.encode())
        digest.update(windows.tokens.data)
    return Dataset(
        splits=splits,
        spec=Tokens(cfg.block, tokenizer, contiguous=cfg.order == 'contiguous'),
        licence=licence,
        fingerprint=digest.hexdigest(),
        origin=origin,
    )


def make_tokenizer(
    cfg, by_split: Mapping[str, Collection[str]], has_end: bool, has_fim: bool = False
) -> Tokenizer:  # fmt: skip
    """The tokenizer that `cfg` asks for, of these texts or of a folder. Raises UserError."""
    if place := folder_of(cfg.tokenizer):
        try:
            return tokenizer_files.read(place)
        except UserError as error:
            raise UserError(f'data.tokenizer: {error}') from None
    every = itertools.chain.from_iterable(by_split.values())
    kind = 'byte' if cfg.tokenizer == 'auto' else cfg.tokenizer
    vocab_size = _VOCAB_SIZE if cfg.vocab_size == -1 else cfg.vocab_size
    return tokenizers.train(kind, every, by_split['train'], vocab_size, has_end, has_fim, cfg.special, cfg.sentinels)


def folder_of(tokenizer: str) -> str:
    """The folder that data.tokenizer names; '' where it names a kind. Raises UserError for another name."""
    known, place = ('auto', *tokenizers.KINDS), tokenizer.removeprefix(FOLDER)
    if tokenizer == place and tokenizer not in known:
        raise UserError(f'data.tokenizer: {tokenizer!r}{near(tokenizer, (*known, FOLDER))}')
    if not place:
        raise UserError(f'data.tokenizer: {FOLDER}; what comes after the colon is missing')
    return '' if tokenizer == place else place


def check_tokenizer(cfg, tokenizer: Tokenizer) -> None:
    """Raises UserError where the tokenizer, which may be that of a run, is not what `cfg` asks for."""
    wanted = pretrained.KIND if folder_of(cfg.tokenizer) else cfg.tokenizer
    if wanted not in ('auto', tokenizer.kind):
        raise UserError(
            f'data.tokenizer: {cfg.tokenizer}, but the run has a tokenizer of kind {tokenizer.kind}; set it to auto'
        )
    if lacking := [name for name in cfg.special if getattr(tokenizer, name) is None]:
        raise UserError(f'data.special: the tokenizer has no token {", ".join(lacking)}')
    if cfg.sentinels > (has := len(tokenizer.sentinels)):
        raise UserError(f'data.sentinels: {cfg.sentinels}, but the tokenizer has {has}')


def cut(documents: list[str], valid_percent: float, test_percent: float) -> dict[str, list[str]]:
    """{split: its documents}; see `load`."""
    if len(documents) == 1:
        (text,) = documents
        n = len(text)
        first, second = (round(n * (100 - percent) / 100) for percent in (valid_percent + test_percent, test_percent))
        parts = text[:first], text[first:second], text[second:]
        return {split: [part] if part else [] for split, part in zip(SPLITS, parts, strict=True)}
    by_split = {split: [] for split in SPLITS}
    for text in documents:
        by_split[split_of(text, valid_percent, test_percent)].append(text)
    wanted = [split for split, percent in (('test', test_percent), ('valid', valid_percent)) if percent]
    if len(documents) > len(wanted) and not all(by_split[split] for split in ('train', *wanted)):
        # Too few for chance: the longest is trained on, the shortest are held out.
        ordered = sorted(documents, key=lambda text: (-len(text), reading.digest(text)))
        by_split = {'train': ordered[: -len(wanted)], 'valid': [], 'test': []}
        by_split |= {split: [text] for split, text in zip(wanted, ordered[-len(wanted) :], strict=True)}
        note(f'{len(documents)} documents are too few for their hashes: {", ".join(wanted)} get the shortest, one each')
    return by_split


def split_of(document: str, valid_percent: float, test_percent: float) -> str:
    """The split of one of several documents, by its hash."""
    place = int.from_bytes(reading.digest(document)[:8], 'big') / 2**64 * 100
    return 'test' if place < test_percent else 'valid' if place < test_percent + valid_percent else 'train'


def _tokens(tokenizer: Tokenizer, documents: Iterable[str]) -> np.ndarray:
    dtype = dtype_of(tokenizer.vocab_size)
    end = [] if tokenizer.end is None else [np.array([tokenizer.end], dtype)]
    chunks, documents = [], iter(documents)
    while texts := list(itertools.islice(documents, _CHUNK)):  # an array a document would be most of the memory
        encoded = tokenizer.encode_all(texts)
        chunks.append(np.concatenate([part for tokens in encoded for part in (*end, tokens.astype(dtype))]))
    return np.concatenate(chunks)


def _of_tokens(tokenizer: Tokenizer, documents: Iterable[str], of: Callable[[str], np.ndarray]) -> np.ndarray:
    """of(document) of all tokens of the documents; 0 of the end before each."""
    end = [] if tokenizer.end is None else [np.zeros(1, np.uint8)]
    return np.concatenate([part for text in documents for part in (*end, of(text))])


def is_code(cfg) -> bool:
    """Whether the data are Python source: as `data.code` or their name says."""
    return cfg.code or cfg.name.partition(':')[0] in CODE


def pydoc(cfg, tokenizer) -> Dataset:
    """The language reference as Python's own help() shows it, English prose about Python, as one document.

    The topics follow one another in alphabetical order. Many repeat paragraphs of others; each is kept where it first
    stands, or what is held out would be known from training.
    """
    from pydoc_data.topics import topics

    paragraphs = (paragraph for _, topic in sorted(topics.items()) for paragraph in topic.strip().split('\n\n'))
    return load(cfg, ['\n\n'.join(dict.fromkeys(paragraphs)) + '\n'], PSF, tokenizer)


def python_stdlib(cfg, tokenizer) -> Dataset:
    """The source code of the running interpreter's standard library, some 11 MB; see `stdlib`."""
    return load(cfg, reading.distinct(reading.texts(stdlib()[1], True)), PSF, tokenizer)


def stdlib() -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The folder of the running interpreter's standard library and its files, without its tests, and without the
    character maps of `encodings`, which are variations of one table: they would be known from training."""
    root = pathlib.Path(sysconfig.get_paths()['stdlib'])
    left_out = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__', 'lib2to3', 'encodings'}
    return root, [path for path in root.rglob('*.py') if not left_out & set(path.relative_to(root).parts)]


def by_module() -> dict[str, str]:
    """The source of each module of `stdlib`, by its name and in the order of these."""
    root, paths = stdlib()
    paths = sorted(paths)
    names = ('.'.join(path.relative_to(root).with_suffix('').parts) for path in paths)
    return dict(zip(names, reading.texts(paths, True), strict=True))


def text_files(cfg, where: Mapping[str, str], tokenizer) -> Dataset:
    """text:FILE, one document, or text:GLOB, each file one."""
    kept = is_kept(cfg, tokenizer)
    files = {split: reading.matching(cfg, place) for split, place in where.items()}
    return documents(cfg, {split: reading.texts(paths, kept) for split, paths in files.items()}, tokenizer)


def code(cfg, where: Mapping[str, str], tokenizer) -> Dataset:
    """code:DIR: the Python files below a folder, each one document."""
    by_split = {}
    for split, place in where.items():
        root = pathlib.Path(place)
        if not root.is_dir():
            raise UserError(f'data.name={cfg.name}: there is no folder {root}')
        by_split[split] = reading.texts(sorted(root.rglob('*.py')), is_kept(cfg, tokenizer))
        if not any(by_split[split]):
            raise UserError(f'data.name={cfg.name}: no .py file with a text lies below {root}')
    return documents(cfg, by_split, tokenizer)


def jsonl(cfg, where: Mapping[str, str], tokenizer) -> Dataset:
    """jsonl:FILE or jsonl:GLOB: one object a line, its field 'text' a document, its field 'split' the split of that."""
    by_split = {}
    for split, place in where.items():
        by_split |= reading.json_lines(cfg, reading.matching(cfg, place), split)
    return documents(cfg, by_split, tokenizer)


def documents(cfg, by_split: Mapping[str, list[str]], tokenizer) -> Dataset:
    """The user's documents; those of '' are to be cut into splits, and so are those of 'train', for others."""
    by_split = reading.once(cfg, by_split)
    training = by_split.pop('', None) or by_split.pop('train', [])
    return load(cfg, training, _OWN, tokenizer, by_split)


def is_kept(cfg, tokenizer: Tokenizer | None) -> bool:
    """Whether there are tokens for bytes that are no UTF-8. Runs of earlier days have them among their characters."""
    if tokenizer and any('\udc80' <= piece <= '\udcff' for piece in tokenizer.pieces if tokenizer.kind == 'char'):
        return True
    return (tokenizer.kind if tokenizer else cfg.tokenizer) in ('byte', 'auto')
