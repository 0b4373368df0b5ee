"""What decides the bits of a computation, as a manifest records it, and the key over it.

Two runs of one config, code and data give the same bits where their keys are equal. Where the keys differ, only the
rounding may. Measured on a CPU with jax 0.10.2 (matrix products, sums, convolutions, exp, a training of 20 steps):

    changes bits    the threads of XLA's pool (1, 2, 8, 64: matrix products and sums over many rows), the virtual
                    devices, AVX instead of AVX2 (which has no fused multiply-add), --xla_cpu_enable_fast_math
    changes none    AVX2 instead of AVX-512 in what XLA compiles, which core it is, --xla_cpu_prefer_vector_width,
                    jax_default_matmul_precision, jax_threefry_partitionable

What changes none there may do so elsewhere (matmul precision on a GPU; the libraries of matrix products choose by the
processor and its caches), so all of it is in the key.
"""

import hashlib
import json
import os
import pathlib
import platform
import re
from typing import Any

import jax
from jax.sharding import Mesh

# {group of a manifest: those of its names that decide bits}; a group without names: all of it.
PART = {
    'packages': ('jax', 'jaxlib'),
    'device': (
        'platform', 'kind', 'runtime', 'count', 'processes', 'mesh', 'machine', 'processor', 'instruction_set',
        'vector_features', 'threads',
    ),
    'xla_flags': (),
    'jax': (),
    'environment': (),
    'execution': (),
}  # fmt: skip
# Of JAX, the settings that change what is computed.
SETTINGS = (
    'jax_enable_x64', 'jax_default_matmul_precision', 'jax_default_prng_impl', 'jax_threefry_partitionable',
    'jax_threefry_gpu_kernel_lowering', 'jax_numpy_dtype_promotion', 'jax_random_seed_offset', 'jax_disable_jit',
    'jax_exec_time_optimization_effort', 'jax_optimization_level', 'jax_disable_most_optimizations',
    'jax_compiler_enable_remat_pass', 'jax_use_shardy_partitioner',
)  # fmt: skip
# Variables that the libraries below JAX read: NVIDIA's, and the compiler's of a TPU.
_VARIABLES = ('NVIDIA_TF32_OVERRIDE', 'CUBLAS_WORKSPACE_CONFIG', 'LIBTPU_INIT_ARGS')
_NO_MATTER = re.compile('dump|device_count')  # flags of XLA: where it writes, and what device.count says
_VECTOR = re.compile('(fma|f16c|avx|amx|sse|ssse|asimd|sve|sme|fphp|bf16|i8mm)')


def device(mesh: Mesh) -> dict[str, Any]:
    """The group `device` of a manifest, for a run over this mesh."""
    info = _cpu_info()
    features = info.get('flags', info.get('Features', '')).split()
    names = 'model name', 'cpu family', 'model', 'CPU implementer', 'CPU part', 'CPU variant'
    return {
        'platform': jax.default_backend(),
        'kind': jax.devices()[0].device_kind,
        'runtime': jax.devices()[0].client.platform_version,
        'count': jax.device_count(),
        'processes': jax.process_count(),
        'mesh': dict(mesh.shape),
        'machine': platform.machine(),
        'processor': ', '.join(info[name] for name in names if name in info) or 'unknown',
        'instruction_set': _widest(features) if info else 'unknown',
        'vector_features': ' '.join(sorted(filter(_VECTOR.match, features))),
        'threads': _threads(),
        'cores': os.cpu_count(),
    }


def settings() -> dict[str, str]:
    """The settings of JAX that change what is computed."""
    return {name: str(jax.config.values[name]) for name in SETTINGS if name in jax.config.values}


def environment() -> dict[str, str]:
    """The variables, of those that are set, that libraries below JAX read."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def part(manifest: dict) -> dict[str, Any]:
    """{'device.kind': value, …}: what decides bits, of what a manifest says. An older manifest says less."""
    found = {}
    for group, names in PART.items():
        held = manifest.get(group)
        if isinstance(held, dict):
            found |= {f'{group}.{name}': held[name] for name in names or held if name in held}
        elif isinstance(held, str):
            found[group] = ' '.join(flags_that_matter(held))
    return found


def flags_that_matter(flags: str) -> list[str]:
    """Those of XLA_FLAGS, in order, that change what is computed; the number of virtual devices is device.count."""
    return sorted(flag for flag in flags.split() if not _NO_MATTER.search(flag))


def key(manifest: dict) -> str:
    """16 hex digits that only this numerics has."""
    return hashlib.sha256(json.dumps(part(manifest), sort_keys=True).encode()).hexdigest()[:16]


def differing(there: dict, here: dict) -> tuple[list[str], list[str]]:
    """(['device.kind: A there, B here', …], the names that only one of the two manifests has).

    A setting of JAX, or a variable, that one of them lacks counts as a difference only where both record such.
    """
    a, b = part(there), part(here)
    alone = sorted(name for name in a.keys() ^ b.keys() if not name.startswith('environment.'))
    names = [name for name in b if name in a and a[name] != b[name]]
    if 'environment' in there and 'environment' in here:
        names += [name for name in a.keys() ^ b.keys() if name.startswith('environment.')]
    shown = lambda value: 'none' if value in (None, '') else str(value)
    return [f'{name}: {shown(a.get(name))} there, {shown(b.get(name))} here' for name in names], alone


def _threads() -> int:
    """Of XLA's pool on a CPU: it cuts sums and matrix products by their number."""
    told = os.environ.get('NPROC', '')
    if told.isdecimal():
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()  # macOS has no such


def _widest(features: list[str]) -> str:
    """The widest vector instructions of the processor."""
    return next((name for name in ('amx_tile', 'avx512f', 'avx2', 'avx', 'sse4_2') if name in features), 'baseline')


def _cpu_info() -> dict[str, str]:
    """What Linux says of its first processor; {} elsewhere."""
    try:
        first = pathlib.Path('/proc/cpuinfo').read_text().partition('\n\n')[0]
    except OSError:
        return {}
    pairs = (line.partition(':') for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
