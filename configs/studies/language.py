"""Language models of texts that come with Python and, where its file is given, of Tiny Shakespeare.

    python -m aigc_jax.study --config=configs/studies/language.py:FILE --workdir=runs/language

FILE is input.txt of github.com/karpathy/char-rnn; its last 10 % are held out. Without :FILE the study has the other
rows alone. It takes days on two cores, and goes on where it was ended: about 0.1 hours a seed for the models of pydoc,
shakespeare and nanogpt, 0.3 for stdlib, 1.5 for stdlib-large and programs, and 4 for shakespeare-large.

The texts are those of the Python that runs, so that another version has other values. An n-gram model, its mixture with
the model, and xz stand beside the rows.
"""

from aigc_jax.studies.claims import Claim, Published, Study, Versus

_BITS, _CONTEXT, _WINDOWS = 'model/bits_per_byte', 'model/nats_per_token', 'model/nats_per_token_window'
_BESIDE_BITS = ('mixture/bits_per_byte', '5-gram/bits_per_byte', 'xz/bits_per_byte')
_BESIDE_NATS = ('mixture/nats_per_token', '7-gram/nats_per_token')
_STDLIB = {'total_steps': 1500, 'eval_every_steps': 500}
_PROGRAMS = {'total_steps': 5000, 'eval_every_steps': 2500, 'checkpoint_every_steps': 500}
_NANOGPT = 'github.com/karpathy/nanoGPT'


def study(text=''):
    """text: the file of Tiny Shakespeare; '': without its rows."""
    claims = _of_python() + (_of_shakespeare(text) if text else [])
    return Study(title='Language models', claims=claims, seeds=3)


def _of_python() -> list[Claim]:
    pydoc = dict(metric=_BITS, better='min', floors=_BESIDE_BITS)
    stdlib, large = dict(config='../gpt.py:code', fields=_STDLIB), dict(config='../gpt.py:code_large')
    parses = dict(metric='samples/parses', better='max', floors=('samples/distinct_4', 'samples/copied_16'))
    programs = dict(config='../gpt.py:programs', fields=_PROGRAMS, better='max')
    return [
        Claim('pydoc-lstm', 'An LSTM of 256 units on the bytes of help()', '../rnn_lm.py', **pydoc),
        Claim('pydoc', 'A Transformer of 0.85 M parameters on the bytes of help() is better than an LSTM',
              '../gpt.py', **pydoc, expected=Versus('pydoc-lstm')),
        Claim('stdlib', "A Transformer of 0.85 M parameters on the bytes of the standard library's source",
              **stdlib, **pydoc),
        Claim('stdlib-large', 'A Transformer of 2.76 M parameters and a context of 512 is better than one of 0.85 M',
              **large, **pydoc, expected=Versus('stdlib')),
        Claim('stdlib-parses', 'The share of the samples of the Transformer of 0.85 M that parse, as far as they go',
              **stdlib, **parses),
        Claim('stdlib-large-parses', 'More samples of the Transformer of 2.76 M parse', **large, **parses,
              expected=Versus('stdlib-parses')),
        Claim('programs', 'The share of the problems that a Transformer of 1.2 M parameters solves in one try',
              metric='programs/pass@1', floors=('programs/8-gram/pass@1',), **programs),
        Claim('programs-10', 'The share of the problems that it solves in ten tries',
              metric='programs/pass@10', **programs,
              floors=('programs/8-gram/pass@10', 'programs/enumeration/solved@10', 'programs/enumeration/solved@100',
                      'programs/enumeration/solved@1000', 'programs/solved_by_training_programs')),
        Claim('programs-beam', 'The share of the problems that it solves by a beam of 8',
              metric='programs/solved@beam', **programs),
    ]  # fmt: skip


def _of_shakespeare(text: str) -> list[Claim]:
    data = {'data.name': f'text:{text}'}
    ours = dict(config='../gpt.py:shakespeare', fields={'num_seeds': 3, **data}, better='min')
    theirs = dict(config='../gpt.py:nanogpt', fields=data, better='min')
    large = dict(config='../gpt.py:shakespeare_large', fields=data, better='min')
    return [
        # 20 batches of 12 windows drawn at random: by the spread of our windows ± 0.03. It is printed to 0.01.
        Claim('nanogpt', "nanoGPT's Transformer for a laptop reaches its published value, a mean over windows",
              metric=_WINDOWS, **theirs, expected=Published(1.88, tolerance=0.035, source=_NANOGPT)),
        Claim('nanogpt-context', "nanoGPT's Transformer where each character has 32 to 63 before it", metric=_CONTEXT,
              **theirs),
        Claim('shakespeare', "Today's block and Muon are better than nanoGPT's, with as many parameters and tokens",
              metric=_WINDOWS, **ours, expected=Versus('nanogpt')),
        Claim('shakespeare-context', "Today's block and Muon where each character has 32 to 63 before it",
              metric=_CONTEXT, floors=_BESIDE_NATS, **ours),
        # 200 batches of 64 windows of 256 are 29 times the text, so that the drawing of windows is no matter here.
        Claim('shakespeare-large', "A Transformer of 2.68 M parameters reaches the value of nanoGPT's, twice as wide",
              metric=_WINDOWS, **large, expected=Published(1.4697, tolerance=0.01, source=_NANOGPT)),
        Claim('shakespeare-large-context', 'The same Transformer where each character has 128 to 255 before it',
              metric=_CONTEXT, floors=_BESIDE_NATS, **large),
    ]  # fmt: skip
