"""A digest of an array in shards, which never gathers the array.

Each word of the array is mixed with its place in the whole array, and the results are added up modulo 2^32, in two
lanes of 64 bits together. A sum does not depend on how the array is cut, so the digest is the same on any mesh, on the
host, and over several processes. A change of a single word always changes it; any other change, or a swap of words,
passes with probability 2^-64. It tells of damage and of mistakes, not of forgery.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aigc_jax.core import processes

KIND = 'sum64'  # how such a digest begins
_LANES, _U = 2, np.uint32
_SMALL = 1 << 16  # words up to which numpy is faster than compiling a program
_CHUNK = 1 << 14  # words that numpy mixes at once, within a core's cache
# The finalizer of MurmurHash3 (Appleby 2011), and one with another pair of factors (Wellons 2018).
_MURMUR3, _WELLONS = (0x85EBCA6B, 13, 0xC2B2AE35), (0x7FEB352D, 15, 0x846CA68B)


def digests(leaves: dict[str, Any]) -> dict[str, str]:
    """{name: 'sum64:0123456789abcdef'} of arrays of any sharding. All processes call it, with the same names.

    Each device sums its own shard. Only the sums leave the device, and processes exchange only sums.
    """
    begun = {name: _begin(leaf) for name, leaf in leaves.items()}  # on all devices at once
    sums = {name: _own_sum(leaves[name], part) for name, part in begun.items()}
    shared = [name for name, leaf in leaves.items() if _is_shared(leaf)]
    if shared:
        parts = processes.gather('digests', [sums[name].tolist() for name in shared])
        totals = np.sum(np.asarray(parts, _U), axis=0, dtype=_U)
        sums |= dict(zip(shared, totals, strict=True))
    return {name: f'{KIND}:{int(low) | int(high) << 32:016x}' for name, (low, high) in sums.items()}


def _is_shared(leaf) -> bool:
    """Whether a process has only a part of it."""
    return isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


def _begin(leaf):
    """Sums of the shards on this process's devices, (devices, lanes), or of the whole leaf, (lanes,)."""
    if isinstance(leaf, jax.Array):
        if not leaf.is_fully_replicated:
            return _sums_of_shards(leaf, leaf.sharding)
        leaf = leaf.addressable_data(0)
        if leaf.size > _SMALL:
            return _sum_of_whole(leaf)
    return _sum_on_host(np.asarray(leaf))


def _own_sum(leaf, sums) -> np.ndarray:
    """(lanes,): the sum of this process's shards, each of which counts on a single device of all processes."""
    if sums.ndim == 1:
        return np.asarray(sums)
    owners = {shard.device for shard in leaf.addressable_shards if shard.replica_id == 0}
    own = [np.asarray(shard.data)[0] for shard in sums.addressable_shards if shard.device in owners]
    return np.sum(np.asarray(own, _U).reshape(-1, _LANES), axis=0, dtype=_U)


@functools.partial(jax.jit, static_argnums=1)
def _sums_of_shards(leaf, sharding: NamedSharding):
    mesh = sharding.mesh
    places = sharding.devices_indices_map(leaf.shape)
    starts = np.array([[s.start or 0 for s in places[device]] for device in mesh.devices.flat], _U)

    def own(block):
        return _sum(block, jnp.asarray(starts)[jax.lax.axis_index(mesh.axis_names)], leaf.shape)[None]

    # Each device gives a row of its own. All processes would have to reach a collective together.
    over = PartitionSpec(mesh.axis_names)
    return jax.shard_map(own, mesh=mesh, in_specs=sharding.spec, out_specs=over, check_vma=False)(leaf)


@jax.jit
def _sum_of_whole(leaf):
    return _sum(leaf, np.zeros(leaf.ndim, _U), leaf.shape)


def _sum(block, start, shape: tuple[int, ...]):
    """(lanes,) of a block of a leaf of `shape`, whose first element is at `start` in it."""
    words = _words(block)
    if words.ndim > block.ndim:  # two words an element
        start, shape = jnp.append(start, _U(0)), (*shape, 2)
    low, high = jnp.zeros(words.shape, _U), jnp.zeros(words.shape, _U)
    outer = _outer_axes(shape)
    for axis in range(len(shape)):
        place = jax.lax.broadcasted_iota(_U, words.shape, axis) + start[axis]
        if axis < outer:
            high += place * _U(math.prod(shape[axis + 1 : outer]) & 0xFFFFFFFF)
        else:
            low += place * _U(math.prod(shape[axis + 1 :]))
    return jnp.stack([jnp.sum(lane, dtype=_U) for lane in _lanes(words, low, high)])


def _sum_on_host(array: np.ndarray) -> np.ndarray:
    """The same of a whole array, by numpy."""
    words, shape = _host_words(array)
    inner, sums, count = math.prod(shape[_outer_axes(shape) :]), np.zeros(_LANES, _U), np.arange(_CHUNK, dtype=_U)
    for outer in range(0, words.size, inner or 1):  # once, but for an array of 2^32 words or more
        row, high = words[outer : outer + inner], np.full(1, outer // inner, _U)
        for begin in range(0, row.size, _CHUNK):
            chunk = row[begin : begin + _CHUNK].astype(_U)
            lanes = _lanes(chunk, count[: chunk.size] + _U(begin), high)
            sums += np.array([np.sum(lane, dtype=_U) for lane in lanes], _U)
    return sums


def _outer_axes(shape: tuple[int, ...]) -> int:
    """How many of the first axes the second word of a place counts: the fewest that leave 32 bits enough."""
    return next(k for k in range(len(shape) + 1) if math.prod(shape[k:]) < 2**32)


def _words(x):
    """Its bits as uint32: one word for an element, or two on a new last axis."""
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype == bool:
        return x.astype(_U)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, _U)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(_U)


def _host_words(x: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """(its words, flat; their shape)."""
    size = x.dtype.itemsize
    unsigned = {1: np.uint8, 2: np.uint16}.get(size, _U)
    return np.ascontiguousarray(x).reshape(-1).view(unsigned), x.shape + ((size // 4,) if size > 4 else ())


def _lanes(words, low, high):
    """Two lanes. At any place each is a bijection of the word, so a change of a single word always shows."""
    place = _mixed(low ^ _mixed(high, *_MURMUR3), *_MURMUR3)
    turned = place << _U(16) | place >> _U(16)
    return _mixed(words ^ place, *_MURMUR3), _mixed(words + turned, *_WELLONS)


def _mixed(h, a: int, shift: int, b: int):
    h = (h ^ h >> _U(16)) * _U(a)
    h = (h ^ h >> _U(shift)) * _U(b)
    return h ^ h >> _U(16)
