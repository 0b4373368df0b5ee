"""The tokenizer of a folder in Hugging Face format, read and written without transformers.

Read: tokenizer.json, or else vocab.json and merges.txt (GPT-2, RoBERTa, CodeT5), vocab.txt (BERT), or spiece.model
(T5), with the special tokens of tokenizer_config.json, special_tokens_map.json and added_tokens.json. Written:
tokenizer.json, tokenizer_config.json and special_tokens_map.json. Nothing is unpickled, and nothing is executed.
"""

import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from aigc_jax.core import mends, records
from aigc_jax.core.errors import UserError, first_line, unreadable
from aigc_jax.data import pretrained
from aigc_jax.data.pretrained import Pretrained
from aigc_jax.data.tokenizers import FIM, Tokenizer, byte_level, bytes_of_letters

_MOST_BYTES = 1 << 26
_CONVERT = (
    'import sys; from transformers import AutoTokenizer as t; '
    't.from_pretrained(sys.argv[1]).backend_tokenizer.save(sys.argv[1] + "/tokenizer.json")'
)
SENTENCEPIECE = ('spiece.model', 'tokenizer.model', 'sentencepiece.bpe.model')
# What the classes of transformers fill in where a tokenizer_config.json leaves it out.
_USUAL = {
    'Bert': {'pad': '[PAD]', 'mask': '[MASK]', 'cls': '[CLS]', 'sep': '[SEP]', 'unk': '[UNK]'},
    'Roberta': {'pad': '<pad>', 'mask': '<mask>', 'bos': '<s>', 'eos': '</s>', 'unk': '<unk>'},
    'T5': {'pad': '<pad>', 'eos': '</s>', 'unk': '<unk>'},
    'GPT2': {'bos': '<|endoftext|>', 'eos': '<|endoftext|>', 'unk': '<|endoftext|>'},
}


def read(folder) -> Pretrained:
    """The tokenizer of a folder. Raises UserError, in one line that names the file."""
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f'{folder}: there is no such folder')
    settings, named = _object(folder / 'tokenizer_config.json'), _object(folder / 'special_tokens_map.json')
    settings = {**named, **{key: value for key, value in settings.items() if value is not None}}
    if kind := settings.get('tokenizer_class') or _object(folder / 'config.json').get('tokenizer_class'):
        settings['tokenizer_class'] = str(kind)
    has = lambda name: (folder / name).is_file()
    readers = {
        'tokenizer.json': lambda: _text(folder / 'tokenizer.json'),
        'merges.txt': lambda: _of_merges(folder, settings),
        'vocab.txt': lambda: _of_words(folder, settings),
        **{name: functools.partial(_of_pieces, folder / name, settings) for name in SENTENCEPIECE},
    }
    name = next((name for name in readers if has(name) and (name != 'merges.txt' or has('vocab.json'))), None)
    if name is None:
        kinds = 'tokenizer.json, vocab.json with merges.txt, vocab.txt or spiece.model'
        raise UserError(f'{folder}: holds no tokenizer, which is {kinds}')
    try:
        model = readers[name]()
        found = pretrained.make(model, _with_roles(settings, pretrained.parsed(model)))
    except (KeyError, TypeError, AttributeError, IndexError):  # of a tokenizer.json that lacks what each has
        raise UserError(f'{folder}: {name}: it is no tokenizer.json that the tokenizers library wrote') from None
    except ValueError as error:
        raise UserError(f'{folder}: {name}: {first_line(error)}') from None
    for role, token in pretrained.role_tokens(settings).items():
        if role not in found.roles and role != 'unk':
            raise UserError(f'{folder}: its {role}_token is {token!r}, which its vocabulary lacks')
    return found


def are_in(folder) -> bool:
    """Whether a folder holds a tokenizer."""
    folder = pathlib.Path(folder).expanduser()
    return any((folder / name).is_file() for name in ('tokenizer.json', 'merges.txt', 'vocab.txt', *SENTENCEPIECE))


def files(tokenizer: Tokenizer) -> dict[str, str]:
    """{name: text} of the files of a folder, from which transformers' AutoTokenizer reads the tokenizer.

    Raises UserError for a tokenizer of words, which keeps no white space.
    """
    if not isinstance(tokenizer, Pretrained):
        tokenizer = _of_trained(tokenizer)
    settings = json.loads(tokenizer.config)
    roles = {f'{role}_token': settings[f'{role}_token'] for role in tokenizer.roles}
    more = {key: settings[key] for key in ('additional_special_tokens', 'extra_special_tokens') if key in settings}
    lines = lambda value: json.dumps(value, ensure_ascii=False, indent=2) + '\n'
    return {
        'tokenizer.json': tokenizer.model,
        'tokenizer_config.json': lines(settings),
        'special_tokens_map.json': lines({**roles, **more}),
    }


def _with_roles(settings: Mapping, whole: Mapping) -> dict[str, Any]:
    """The settings with the tokens of the roles that it leaves out: what frames a text, what such vocabularies have."""
    added = {token['content'] for token in whole.get('added_tokens') or ()}
    vocab = whole['model']['vocab']
    words = {*(vocab if isinstance(vocab, dict) else (piece for piece, _ in vocab)), *added}
    found = dict(pretrained.role_tokens(settings))
    frame = whole.get('post_processor') or {}
    if frame.get('type') in ('RobertaProcessing', 'BertProcessing'):
        found = {'cls': frame['cls'][0], 'sep': frame['sep'][0], **found}
    kind = settings.get('tokenizer_class') or ''
    fits = lambda usual: len(words & {*usual.values()}) >= min(2, len({*usual.values()}))
    families = [family for family, usual in _USUAL.items() if (family in kind if kind else fits(usual))]
    usual = _USUAL[families[0]] if families else {}
    found = {**{role: token for role, token in usual.items() if token in words}, **found}
    return {'tokenizer_class': kind or 'PreTrainedTokenizerFast', **settings, **{
        f'{role}_token': settings.get(f'{role}_token') or token for role, token in found.items()
    }}  # fmt: skip


def _of_merges(folder: pathlib.Path, settings: Mapping) -> str:
    """Byte-level BPE; framed as RoBERTa's where its class or its tokens are RoBERTa's."""
    from tokenizers import models, processors

    vocab = _object(folder / 'vocab.json')
    lines = _text(folder / 'merges.txt').split('\n')
    merges = [tuple(line.split(' ')) for line in lines if line and not line.startswith('#version')]
    if not all(type(number) is int for number in vocab.values()) or any(len(merge) != 2 for merge in merges):
        raise ValueError('they are no vocabulary and its merges')
    library = _built(lambda: byte_level(models.BPE(vocab, merges), bool(settings.get('add_prefix_space'))))
    roles = pretrained.role_tokens(settings)
    kind = settings.get('tokenizer_class') or ''
    if kind.startswith('Roberta') or (not kind and {'<s>', '</s>', '<mask>'} <= vocab.keys()):
        cls, sep = roles.get('cls', '<s>'), roles.get('sep', '</s>')
        if not {cls, sep} <= vocab.keys():
            raise ValueError(f'the vocabulary lacks {cls} or {sep}')
        library.post_processor = processors.RobertaProcessing((sep, vocab[sep]), (cls, vocab[cls]), True, False)
        roles = {**_USUAL['Roberta'], **roles}
    return _with_added(library, folder, settings, roles)


def _of_words(folder: pathlib.Path, settings: Mapping) -> str:
    """WordPiece, as BERT's."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    roles = {**_USUAL['Bert'], **pretrained.role_tokens(settings)}
    words = _text(folder / 'vocab.txt').removesuffix('\n').split('\n')
    vocab = {word.removesuffix('\r'): i for i, word in enumerate(words)}
    if lacking := [roles[name] for name in ('unk', 'cls', 'sep') if roles[name] not in vocab]:
        raise ValueError(f'the vocabulary lacks {", ".join(lacking)}')
    library = _built(lambda: tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=roles['unk'])))
    flags = {'lowercase': 'do_lower_case', 'handle_chinese_chars': 'tokenize_chinese_chars'}
    flags = {name: settings[theirs] is not False for name, theirs in flags.items() if theirs in settings}
    strip = settings.get('strip_accents')
    library.normalizer = normalizers.BertNormalizer(strip_accents=strip if isinstance(strip, bool) else None, **flags)
    library.pre_tokenizer, library.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(prefix='##')
    cls, sep = roles['cls'], roles['sep']
    library.post_processor = _template(
        f'{cls}:0 $A:0 {sep}:0', f'{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1', {token: vocab[token] for token in (cls, sep)}
    )
    return _with_added(library, folder, settings, roles)


def _of_pieces(path: pathlib.Path, settings: Mapping) -> str:
    """A sentencepiece model of Unigram, as T5's, read by the package sentencepiece."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise UserError(
            f'{path}: reading it needs the package {error.name}: pip install sentencepiece protobuf. A tokenizer.json '
            'beside it is read without'
        ) from None
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(_bytes(path))
    except DecodeError:
        raise ValueError('it is no sentencepiece model, or only a part of one') from None
    if proto.trainer_spec.model_type != 1 or not proto.pieces:
        raise UserError(
            f'{path}: is no Unigram model, as T5 has it; make a tokenizer.json of it where transformers is installed, '
            f'once: {mends.python(_CONVERT, path.parent, by="python")}'
        )
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    roles = {**_USUAL['T5'], **pretrained.role_tokens(settings)}
    sentinels = settings['extra_ids'] if 'extra_ids' in settings else 100
    if type(sentinels) is not int or not 0 <= sentinels <= 10_000:
        raise ValueError(f'extra_ids of tokenizer_config.json is {sentinels!r}')
    pieces += [(f'<extra_id_{i}>', 0.0) for i in reversed(range(sentinels))]
    number = {piece: i for i, (piece, _) in enumerate(pieces)}
    if roles['eos'] not in number:
        raise ValueError(f'it has no piece {roles["eos"]}')
    library = _built(lambda: tokenizers.Tokenizer(models.Unigram(pieces, proto.trainer_spec.unk_id, False)))
    if proto.normalizer_spec.precompiled_charsmap:
        library.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    metaspace = dict(replacement='▁', prepend_scheme='always', split=True)
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
    )
    library.decoder = decoders.Metaspace(**metaspace)
    eos = roles['eos']
    library.post_processor = _template(f'$A {eos}', f'$A {eos} $B {eos}', {eos: number[eos]})
    special = [*roles.values(), *(f'<extra_id_{i}>' for i in range(sentinels))]
    library.add_special_tokens([token for token in special if token in number])
    return _with_added(library, path.parent, settings, roles)


def _with_added(library, folder: pathlib.Path, settings: Mapping, roles: Mapping[str, str]) -> str:
    """The tokenizer.json with the tokens that stand beside its vocabulary, at the ids that are stated."""
    from tokenizers import AddedToken

    stated = _object(folder / 'added_tokens.json')
    if not all(type(number) is int for number in stated.values()):
        raise ValueError('added_tokens.json gives no numbers')
    stated = {token: {'content': token, 'id': number} for token, number in stated.items()}
    decoder = settings.get('added_tokens_decoder')
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        if isinstance(token, dict) and re.fullmatch('[0-9]+', number) and isinstance(token.get('content'), str):
            stated[token['content']] = {**token, 'id': int(number)}
    more = settings.get('additional_special_tokens')
    more = [settings.get(f'{role}_token') for role in pretrained.ROLES] + (more if isinstance(more, list) else [])
    special = {*roles.values()}
    for token in more:
        token = token if isinstance(token, dict) else {'content': token}
        if not isinstance(token.get('content'), str) or not token['content']:
            continue
        special.add(token['content'])
        stated[token['content']] = {**token, **stated.get(token['content'], {})}
    for token in roles.values():
        if library.token_to_id(token) is not None:
            stated.setdefault(token, {'content': token})
    kept = ('single_word', 'lstrip', 'rstrip')
    for token in sorted(stated.values(), key=lambda token: token.get('id', 1 << 40)):
        content, is_special = token['content'], token['content'] in special or token.get('special', False)
        flags = {name: bool(token[name]) for name in kept if name in token}
        library.add_tokens([AddedToken(content, special=is_special, normalized=not is_special, **flags)])
        if token.get('id', library.token_to_id(content)) != library.token_to_id(content):
            raise ValueError(f'{content} is said to be token {token["id"]}, but is {library.token_to_id(content)}')
    return library.to_str()


def _of_trained(tokenizer: Tokenizer) -> Pretrained:
    """A trained tokenizer in the form of the `tokenizers` library, its special tokens added behind its pieces."""
    import tokenizers
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

    if tokenizer.kind == 'bpe':
        library = tokenizer.library()
    elif tokenizer.kind == 'byte':
        library = byte_level(models.BPE(bytes_of_letters(), []))
    elif tokenizer.kind == 'char':
        library = tokenizers.Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(tokenizer.pieces)}))
        library.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
        library.decoder = decoders.Fuse()
    else:
        raise UserError('a tokenizer of words keeps no white space, and has no form of Hugging Face; use bpe')
    library.add_tokens([AddedToken(one, special=True, normalized=False) for one in tokenizer.special_ids])
    spelled = {number: one for one, number in tokenizer.special_ids.items()}
    frame = [' '.join(spelled[token] for token in part) for part in tokenizer.frame]
    if any(tokenizer.frame):
        used = {spelled[token]: token for part in tokenizer.frame for token in part}
        library.post_processor = _template(f'{frame[0]} $A {frame[2]}', f'{frame[0]} $A {frame[1]} $B {frame[2]}', used)
    of = {'pad': tokenizer.pad, 'mask': tokenizer.mask, 'cls': tokenizer.cls, 'sep': tokenizer.sep}
    of |= {'eos': tokenizer.end, 'bos': tokenizer.bos}
    settings = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False}
    settings |= {f'{role}_token': spelled[token] for role, token in of.items() if token is not None}
    more = [spelled[token] for token in tokenizer.sentinels] + [*FIM] * (tokenizer.fim is not None)
    if more:
        settings['additional_special_tokens'] = more
    return pretrained.make(library.to_str(), settings)


def _template(single: str, pair: str, used: Mapping[str, int]):
    from tokenizers import processors

    split = lambda text: text.split()
    return processors.TemplateProcessing(single=split(single), pair=split(pair), special_tokens=[*used.items()])


def _built(make):
    """What make() gives. Raises ValueError where the library refuses."""
    try:
        return make()
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f'the tokenizers library cannot read it: {first_line(error)}') from None


def _object(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file. Raises UserError."""
    if not path.exists():
        return {}
    try:
        return records.read(path)
    except OSError as error:
        raise UserError(f'{path}: {unreadable(error)}') from None
    except ValueError as error:
        raise UserError(f'{path}: is no JSON object: {first_line(error)}') from None


def _text(path: pathlib.Path) -> str:
    try:
        return _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: is not UTF-8 at byte {error.start}') from None


def _bytes(path: pathlib.Path) -> bytes:
    try:
        with open(path, 'rb', opener=records.regular) as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f'{path}: {unreadable(error)}') from None
    if len(data) > _MOST_BYTES:
        raise UserError(f'{path}: is larger than {_MOST_BYTES >> 20} MiB')
    return data
