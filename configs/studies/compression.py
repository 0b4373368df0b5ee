"""What quantization, pruning and distillation leave of a small GPT, in nats a token and in bytes.

    python -m aigc_jax.study --config=configs/studies/compression.py --workdir=runs/compression

The dense model is that of configs/gpt.py on the text of Python's help(), 400 steps. Quantized models are its weights as
they are, rounded, and without another step, or trained on with the rounding for 100 steps. Pruned models keep the
greatest weights of each layer and are trained on for as long. `longer` is the dense model trained on for as long: what
the steps alone do. Students have half its width and half its layers; one of them learns from it.
"""

from aigc_jax.studies.claims import Claim, Study, Versus

_DENSE, _MORE = 400, 100
_RATE = 'optim.model.schedule.peak_value'


def _steps(steps):
    return {'total_steps': steps, 'eval_every_steps': steps or 10, 'checkpoint_every_steps': steps or 10}


_ON = {**_steps(_MORE), _RATE: 2e-3}  # a tenth of the rate of the dense model
_INT4 = {'quantize.weights': 'int4', 'quantize.group': 32}
# name: (what it is, the field that is given the dense model, fields, the claim that it is compared with)
_MODELS = {
    'longer': ('trained on', 'init.run', _ON, 'dense'),
    'int8': ('8-bit weights, rounded', 'init.run', {**_steps(0), 'quantize.weights': 'int8'}, 'dense'),
    'int8-int8': (
        '8-bit weights and activations, rounded', 'init.run',
        {**_steps(0), 'quantize.weights': 'int8', 'quantize.activations': 'int8'}, 'dense',
    ),
    'int4': ('4-bit weights, rounded', 'init.run', {**_steps(0), **_INT4}, 'dense'),
    'int4-gptq': ('4-bit weights by GPTQ', 'init.run', {**_steps(0), **_INT4, 'quantize.method': 'gptq'}, 'int4'),
    'int4-trained': ('4-bit weights, trained on with the rounding', 'init.run', {**_ON, **_INT4}, 'int4'),
    'half': ('half of the weights, trained on', 'init.run', {**_ON, 'prune.keep': 0.5}, 'longer'),
    'tenth': ('a tenth of the weights, trained on', 'init.run', {**_ON, 'prune.keep': 0.1}, 'longer'),
    'student': ('half of the width and of the layers', '', _steps(_DENSE), 'dense'),
    'distilled': ('the same, distilled from the dense model', 'distill.run', _steps(_DENSE), 'student'),
}  # fmt: skip
_SMALL = {'model.width': 64, 'model.mlp_width': 256, 'model.layers': 2}


def study():
    common = dict(config='../gpt.py', better='min')
    measured = {'quality': ('model/nats_per_token', 'nats a token'), 'bytes': ('model/bytes', 'bytes')}
    claims = []
    for kind, (metric, words) in measured.items():
        suffix = '-bytes' if kind == 'bytes' else ''
        shared = {'eval.model_bytes': True}
        claims.append(Claim(
            name=f'dense{suffix}', claim=f'The dense model: {words}', fields=shared | _steps(_DENSE), metric=metric,
            **common,
        ))  # fmt: skip
        for name, (what, into, fields, than) in _MODELS.items():
            small = _SMALL if name in ('student', 'distilled') else {}
            start = dict(start=f'dense{suffix}', into=into) if into else {}
            claims.append(Claim(
                name=f'{name}{suffix}', claim=f'{what[0].upper()}{what[1:]}, against {than}: {words}',
                fields=shared | fields | small, metric=metric, expected=Versus(f'{than}{suffix}'), **start, **common,
            ))  # fmt: skip
    return Study(title='Compression of a small GPT', claims=claims, seeds=3, pareto=[
        ('model/bytes', 'model/nats_per_token'),
    ])  # fmt: skip
