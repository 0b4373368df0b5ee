"""Whether pre-training on source code helps on functions of held-out modules, and what of it is needed.

    python -m aigc_jax.study --config=configs/studies/pretraining.py --workdir=runs/pretraining

Two tasks on functions of Python's standard library. An encoder says of each token whether it is of an identifier
(CodeT5's identifier tagging, Wang et al. 2021, section 3.2); an encoder-decoder writes the name of a function that it
reads. Each is trained from a draw and from a pre-trained model, on all labelled examples and on fewer. Low-rank
adapters on the pre-trained encoder train 4.4 % of its parameters. CodeT5's identifier-aware denoising stands against
T5's span corruption.

All have the tokenizer of the pre-trained model, which saw no module of a held-out function. All arms of a task have the
same steps and the same learning rate, but for the adapters, which have theirs. It was chosen by hand on the validation
split of seed 0 with 500 functions, of 3e-3, 1e-2 and 3e-2.
"""

from aigc_jax.studies.claims import Claim, Study, Versus

_HELD_OUT = {'data.valid_percent': 10.0, 'data.test_percent': 10.0}
_SIZES = {'100': 100, '500': 500, 'all': -1}  # labelled functions


def _steps(steps, **fields):
    return {'total_steps': steps, 'eval_every_steps': steps, 'checkpoint_every_steps': steps, **_HELD_OUT, **fields}


_RATE = 'optim.model.schedule.peak_value'
_DRAWN = {'init.drawn': '.', 'init.unused': '.'}  # the tokenizer alone is taken
_TEXT = {'data.name': 'python-modules'}
_ENCODER = _steps(1000, **{'data.vocab_size': 2048})
_TAGS = _steps(400, **{_RATE: 1e-3})
_LORA = {
    'adapt.name': 'lora', 'adapt.rank': 5, 'adapt.alpha': 10.0, 'adapt.targets': 'block.*/kernel',
    'optim.model.freeze': '^(?!lora/|tagger)', _RATE: 1e-2,
}  # fmt: skip
_WIDTH = {'model.layers': 2, 'model.width': 96, 'model.mlp_width': 256}
_WRITER = _steps(800, **_WIDTH)
_NAMES = _steps(300, **_WIDTH, **{'data.block': 128, 'data.target_block': 16, _RATE: 1e-3})
_LABELS = {'spans': 'span corruption', 'aware': 'identifier-aware denoising'}


def study():
    return Study(title='Pre-training on source code', claims=[*_tags(), *_names()], seeds=5)


def _tags():
    tags = dict(config='../finetune_classify.py:modern', metric='accuracy', better='max')
    yield Claim(
        name='encoder', claim='The masked language model: nats a hidden token', config='../bert.py:code,modern,muon',
        fields=_ENCODER | _TEXT, metric='nats_per_masked_token', better='min',
    )  # fmt: skip
    for size, count in _SIZES.items():
        fields, drawn, whole = _TAGS | {'data.train_examples': count}, f'tags-{size}-drawn', f'tags-{size}'
        words = f'Tags of identifiers from {"all" if size == "all" else size} labelled functions'
        yield Claim(
            name=drawn, claim=f'{words}, trained from a draw', start='encoder', fields=fields | _DRAWN,
            floors=('most_frequent/accuracy',), **tags,
        )  # fmt: skip
        yield Claim(
            name=whole, claim=f'{words}: the pre-trained model is better', start='encoder', fields=fields,
            expected=Versus(drawn), **tags,
        )  # fmt: skip
        yield Claim(
            name=f'{whole}-lora', claim=f'{words}: so are low-rank adapters on it', start='encoder',
            fields=fields | _LORA, expected=Versus(drawn), **tags,
        )  # fmt: skip
        yield Claim(
            name=f'{whole}-lora-gain', claim=f'{words}: the adapters reach 95 % of the gain', start='encoder',
            fields=fields | _LORA, expected=Versus(whole, share=0.95, over=drawn), **tags,
        )  # fmt: skip


def _names():
    names = dict(config='../finetune_seq2seq.py:name', metric='model/nats_per_token', better='min')
    for name, words in _LABELS.items():
        yield Claim(
            name=name, claim=f'The encoder-decoder by {words}: nats a token of what is hidden',
            config='../t5.py:identifier_aware', metric='model/nats_per_token', better='min',
            fields=_WRITER | _TEXT | ({} if name == 'aware' else {'task.objective': 'spans'}),
        )  # fmt: skip
    for size in ('500', 'all'):
        fields = _NAMES | {'data.train_examples': _SIZES[size]}
        words = f'Names of functions from {"all" if size == "all" else size} labelled functions'
        yield Claim(
            name=f'names-{size}-drawn', claim=f'{words}, trained from a draw', start='spans', fields=fields | _DRAWN,
            **names,
        )  # fmt: skip
        yield Claim(
            name=f'names-{size}-spans', claim=f'{words}: the pre-trained model is better', start='spans',
            fields=fields, expected=Versus(f'names-{size}-drawn'), **names,
        )  # fmt: skip
    yield Claim(
        name='names-all-aware', claim=f'{words}: identifier-aware denoising is better than span corruption',
        start='aware', fields=fields, expected=Versus('names-all-spans'), **names,
    )  # fmt: skip
    for arm, words in {'drawn': 'trained from a draw', 'spans': 'pre-trained'}.items():
        yield Claim(
            name=f'exact-{arm}', claim=f'Names of functions, {words}: the share that greedy decoding writes exactly',
            start='spans', fields=_NAMES | {'data.train_examples': _SIZES['all']} | (_DRAWN if arm == 'drawn' else {}),
            config='../finetune_seq2seq.py:name', metric='written/exact_match', better='max',
            expected=Versus('exact-drawn') if arm == 'spans' else None,
        )  # fmt: skip
