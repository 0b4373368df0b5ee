"""The configs of older runs, brought to the fields of today: each function adds to a run's config.json what the runs
of its version lack, with the value that they were made with, and moves what has another name now.

A field that configs get, or that moves, later takes a number more for SCHEMA and a function here. What stands in such a
function is never changed afterwards, for the runs that it is for are not either.
"""

from ml_collections import ConfigDict

from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note

SCHEMA = 6  # of the configs of today


def migrate(config: ConfigDict, where: str) -> None:
    """Brings `config`, as a run's folder holds it, to SCHEMA. where: the file, for messages. Raises UserError."""
    found = config.get('schema', 0)  # the runs of before there was a number have none
    if type(found) is not int or not 0 <= found <= SCHEMA:
        raise UserError(
            f'{where}: schema is {found!r}; this version of aigc_jax reads 0 to {SCHEMA}, so open it with the version '
            'that made the run (manifest.json has its commit)'
        )
    for version in range(found, SCHEMA):
        _MIGRATIONS[version](config)
        config.schema = version + 1


def _from_0(config: ConfigDict) -> None:
    """Of the runs of before 2026-11-27. Their oldest lack all of these fields."""
    groups = [config.get(name) for name in ('data', 'task', 'model', 'eval', 'optim')]
    if not all(isinstance(group, ConfigDict) for group in groups):
        return  # no config at all, which the check of its fields says
    data, task, model, evaluation, optim = groups
    # What they started from were the newest parameters themselves.
    run = config.get('init_from', '')
    _add(config, init=dict(run=run, step='', average=not run))
    if 'init_from' in config:
        del config['init_from']
    for player in optim.values():
        _add(player, clip_weights=0.0)
    _add(evaluation, also_each=())
    if 'tokenizer' in data:
        _add(data, dir='', code=False, fim_rate=0.0, fim_identifiers=0.0)
        _add(evaluation, num_samples=0)  # the metrics of samples of text came with this field
        _add(
            evaluation, problems='', problem_samples=10, pass_k=(1, 10), problem_tokens=128, problem_temperature=0.8,
            problem_beam=8,
        )  # fmt: skip
    else:
        _add(data, shape=(), augment=dict(flip=False, shift=0, rotation=0.0, scale=0.0, cutout=0, mixup=0.0))
        _add(evaluation, extractor='', num_samples=10_000)  # there were no metrics of images
        _add(evaluation, interpolation='spherical')
    if task.get('name') in ('vae', 'gan'):
        _add(model, kind='mlp')
    if task.get('name') == 'vae':
        _add(task, estimator='standard', free_bits=0.0, tc_weight=0.0)
        _add(
            model, prior='normal', pseudo_inputs=100, posterior='gaussian', posterior_context=0, stochastic_layers=1,
            flow=dict(layers=6, features=(64, 64), activation='relu'),
            second=dict(latent_dim=8, features=(64, 64), activation='relu', bias_init='zeros'),
        )  # fmt: skip
        _add(
            evaluation, k_curve=False, temperature=1.0, ais_temperatures=0, ais_chains=16, ais_examples=100,
        )  # fmt: skip
    if task.get('name') == 'vq':
        _add(evaluation, temperature=1.0)
        _add(model.get('prior'), scan_layers=False)
    elif model.get('kind') == 'transformer':
        _add(model, scan_layers=False)
    for role, network in model.items():
        if isinstance(network, ConfigDict) and 'block' in network:  # a convolutional one
            _add(network, attention=0, depth=1)
            _add(network if task.get('name') in ('vae', 'gan') else None, spectral=False)
            _add(network if role == 'discriminator' else None, deviation=0)
    if task.get('name') == 'gan':
        _add(
            task, dragan=0.0, dragan_std=0.5, penalty_every=1, lecam=0.0, lecam_decay=0.99, augmentation='none',
            transforms=('colour', 'translation', 'cutout'), ada_target=0.6, ada_examples=500_000, consistency_real=0.0,
            consistency_fake=0.0, packing=1, unrolled_steps=0, unrolled_rate=0.01, top_k=1.0, top_k_percent=50.0,
            auxiliary=0.0,
        )  # fmt: skip


def _from_1(config: ConfigDict) -> None:
    """Of the runs of before `sample`, which has what says how samples are drawn; `eval` had it."""
    task, evaluation = config.get('task'), config.get('eval')
    if not isinstance(task, ConfigDict) or not isinstance(evaluation, ConfigDict):
        return
    _add(config, sample={})
    name, sample = task.get('name'), config.sample
    moved = {'vae': ('temperature',), 'vq': ('temperature',), 'flow': ('solver', 'steps', 'tolerance', 'guidance')}
    if name == 'flow' and 'tolerance' in evaluation:  # it was that of both
        _add(evaluation, nll_tolerance=evaluation.tolerance)
    for field in moved.get(name, ()):
        if field in evaluation:
            sample[field] = evaluation[field]
            del evaluation[field]
    data, most = config.get('data'), evaluation.get('num_samples')
    if isinstance(data, ConfigDict) and 'tokenizer' not in data:
        _add(evaluation, transport_samples=min(most, 2000) if type(most) is int else 2000)
    if name in ('lm', 'vq'):
        _add(sample, repetition_penalty=1.0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def _from_2(config: ConfigDict) -> None:
    """Of the runs of before pre-training, whose Transformers are those of GPT alone, and whose tokenizers have no
    special tokens that a config asks for."""
    _add(config, adapt=dict(name='', rank=8, alpha=16.0, targets='(query|value)/kernel'))
    data, model = config.get('data'), config.get('model')
    _add(config.get('init'), drawn='', unused='')
    if isinstance(data, ConfigDict) and 'tokenizer' in data:
        _add(data, special=(), sentinels=0)
        if 'order' in data:  # windows of text
            _add(data, number_identifiers=False)
    if not isinstance(model, ConfigDict):
        return
    if config.get('task', {}).get('name') == 'lm':
        _add(model, vocab_size=0)
    for network in (model, model.get('prior')):
        if isinstance(network, ConfigDict) and 'kv_heads' in network:
            _add(
                network, head_width=0, norm_epsilon=0.0, qk_scale=False, qkv_bias=False, rope_theta=10_000.0,
                rope_scaling=(),
            )  # fmt: skip


def _from_3(config: ConfigDict) -> None:
    """Of the runs of before compression."""
    data = config.get('data')
    if isinstance(data, ConfigDict) and 'columns' in data:
        _add(data, train_examples=-1, both_ways=False, packed=False)
    if config.get('task', {}).get('name') == 'seq2seq':
        _add(config.get('eval'), code_bleu=False)
    _add(config, quantize=dict(weights='', activations='', group=0, targets='.*', method='rtn', examples=128))
    _add(config.get('eval'), model_bytes=False)
    _add(
        config,
        prune=dict(
            keep=1.0, targets='.*', rules=(), scope='layer', run='', step='', redrawn=False, begin=0, end=0,
            every=100,
        ),
    )  # fmt: skip
    _add(config, distill=dict(run='', step='', average=True, weight=0.5, temperature=2.0))
    optim = config.get('optim')
    for player in optim.values() if isinstance(optim, ConfigDict) else ():
        _add(player, layer_decay=1.0)


def _from_4(config: ConfigDict) -> None:
    """Of the runs of before identifier tagging."""
    if config.get('task', {}).get('name') == 'seq2seq':
        _add(config.task, tagging_share=0.0)


def _from_5(config: ConfigDict) -> None:
    """Of the runs of before init.rename, and before encoders and encoder-decoders had their layers in a loop. Prefix
    language models cut windows in the middle then."""
    _add(config.get('init'), rename=())
    if config.get('task', {}).get('objective') == 'prefix':
        note('task.objective: prefix cut each window in the middle when this run was made, and cuts it anywhere now')
    model = config.get('model')
    of_text = isinstance(model, ConfigDict) and 'remat' in model  # a classifier may be of images
    if of_text and config.get('task', {}).get('name') in ('mlm', 'electra', 'classify', 'seq2seq'):
        _add(model, scan_layers=False)


_MIGRATIONS = {0: _from_0, 1: _from_1, 2: _from_2, 3: _from_3, 4: _from_4, 5: _from_5}


def _add(group: ConfigDict | None, **fields) -> None:
    """Gives `group` those of `fields` that it lacks."""
    if isinstance(group, ConfigDict):
        for name, value in fields.items():
            if name not in group:
                group[name] = ConfigDict(value) if isinstance(value, dict) else value
