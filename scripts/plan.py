"""What a training step takes on each of N devices, without having them: memory, FLOPs, bytes between devices.

    python scripts/plan.py --config=configs/gpt.py [--devices=8] [--hbm_gb=80] [--config.FIELD=VALUE …]

The step is compiled for N virtual devices, and no array of the model is made. Parameters and optimizer are counted by
their shardings, and the step's other memory is XLA's account of the compiled program. FLOPs are those of the whole
batch before the compiler divides them. Bytes between devices are those of the results of all collectives of the
compiled program. In both, a loop over layers, parts of a batch or tokens counts as often as it runs.
The program is XLA's for a CPU, so a GPU's differs in the temporaries: fused attention keeps no weights, for example.

Exit codes: 0 it fits, 1 it does not, 2 a wrong flag or config.
"""

import argparse
import collections
import math
import os
import re
import sys

_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}
_COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
_GB = 1e9


def collectives(hlo: str) -> dict[str, int]:
    """{kind of collective: bytes of its results on one device} of one call of a compiled program, given as text."""
    computations = dict(re.findall(r'^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}', hlo, re.DOTALL | re.MULTILINE))
    entry = re.search(r'^ENTRY %?([\w.\-]+)', hlo, re.MULTILINE)[1]
    found: dict[str, int] = collections.Counter()

    def count(name: str, times: int) -> None:
        for line in computations[name].splitlines():
            called = re.search(r' = (.*?) ([a-z\-]+)\(', line)
            if not called:
                continue
            shape, kind = called[1], called[2].removesuffix('-start')
            if kind in _COLLECTIVES:
                found[kind] += times * sum(
                    _BYTES[dtype] * math.prod(map(int, filter(None, sizes.split(','))))
                    for dtype, sizes in re.findall(r'([a-z]+\d*)\[([\d,]*)\]', shape)
                )
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for inner in re.findall(r'(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)', line):
                if inner in computations:
                    count(inner, times * (int(trips[1]) if trips else 1))

    count(entry, 1)
    return dict(found)


def _uncounted(program) -> float:
    """FLOPs of the rounds of all loops (jax.lax.scan) of a traced program, but for the first, which XLA counts."""
    import jax
    from jax.extend import core

    def of_one(body) -> float:
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in body.in_avals]
        lowered = jax.jit(core.jaxpr_as_fun(body)).trace(*shapes).lower(lowering_platforms=('cpu',))
        return lowered.cost_analysis().get('flops', 0.0)

    total = 0.0
    for equation in program.jaxpr.eqns:
        if equation.primitive.name == 'scan':
            body, rounds = equation.params['jaxpr'], equation.params['length']
            total += (rounds - 1) * of_one(body) + rounds * _uncounted(body)
            continue
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
            if hasattr(inner, 'eqns'):
                total += _uncounted(inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ()))
    return total


def words(number: float, unit: str) -> str:
    for scale, prefix in ((1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if number >= scale:
            return f'{number / scale:.3g} {prefix}{unit}'
    return f'{number:.3g} {unit}'


def _local(tree) -> int:
    """Bytes on one device of arrays that are not made."""
    import jax

    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def planned(path: str, overrides: list[tuple[str, str]]) -> dict:
    """What main prints, {'parameters', 'bytes', 'flops', 'collectives', 'tokens'}. Raises UserError."""
    import jax
    import numpy as np

    from aigc_jax.core.errors import UserError
    from aigc_jax.runs import config as config_lib
    from aigc_jax.runs import initial, teacher
    from aigc_jax.runs.experiment import Experiment

    every = {name: '1' for name in ('steps_per_call', 'log_every_steps')}
    config = config_lib.load(path, [*overrides, *every.items()])
    experiment = Experiment(config, tokenizer=initial.tokenizer(config), is_plan=True)
    if experiment.plan.axis_name:
        raise UserError('parallel.mode: pmap; what is planned is a step of jit, so set it to jit')
    state, data, feed = experiment.abstract_state, experiment.resident_data(), next(experiment.feeds(0))
    seeds = jax.ShapeDtypeStruct(np.shape(experiment.seeds) if experiment.plan.replicas else (), np.int32)
    taught = teacher.abstract(experiment)
    given = (data, taught.params) if taught else data
    traced = experiment.train_call(taught).trace(state, seeds, given, feed)
    lowered = traced.lower()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return {
        'parameters': sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        'bytes': {
            'parameters': _local(state.params),
            'optimizer': _local(state.opt),
            'rest of the state': _local((state.stats, state.carry)),
            **({'teacher': _local(taught.params)} if taught else {}),
            'data and feed': sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((data, feed))),
            'gradients, activations and the rest': memory.temp_size_in_bytes,
        },
        'program': memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        'flops': lowered.cost_analysis()['flops'] + _uncounted(traced.jaxpr),
        'collectives': collectives(compiled.as_text()),
        'devices': experiment.plan.mesh.size,
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('--devices', type=int, default=1)
    parser.add_argument('--hbm_gb', type=float, default=80.0, help='memory of a device, in 10^9 bytes')
    options, rest = parser.parse_known_args(argv)
    os.environ['JAX_PLATFORMS'] = 'cpu'
    devices = f'--xla_force_host_platform_device_count={options.devices}'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {devices}'

    from aigc_jax.core.errors import UserError
    from aigc_jax.runs import config as config_lib

    try:
        left, path, overrides = config_lib.split_arguments(['plan', *rest])
        if len(left) > 1 or not path:
            raise UserError(f'{left[1]!r} is no flag of this script' if len(left) > 1 else '--config: missing')
        if options.devices < 1 or options.hbm_gb <= 0:
            raise UserError('--devices, --hbm_gb: they are more than 0')
        found = planned(path, overrides)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    total = sum(found['bytes'].values())
    print(f'{words(found["parameters"], "").strip()} parameters on {found["devices"]} devices, of each:')
    for name, size in found['bytes'].items():
        print(f'  {name:36} {words(size, "B"):>10}')
    print(f'  {"together":36} {words(total, "B"):>10} of {options.hbm_gb:g} GB')
    each = words(found['flops'] / found['devices'], 'FLOP')
    print(f'a step: {words(found["flops"], "FLOP")} in all, {each} a device')
    for kind, size in found['collectives'].items():
        print(f'  {kind:36} {words(size, "B"):>10} a device')
    fits = total <= options.hbm_gb * _GB
    print('it fits' if fits else f'it does not fit: {words(total - options.hbm_gb * _GB, "B")} too much')
    return 0 if fits else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
