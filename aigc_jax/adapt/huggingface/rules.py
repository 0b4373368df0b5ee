"""Which tensor of a checkpoint is which parameter: a family's rules, applied in both directions."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax.adapt.huggingface.files import Folder
from aigc_jax.core import tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Tree


class Rule(NamedTuple):
    """ours: the path of a parameter, 'block_0/query/kernel'; theirs: the name of a tensor, without the family's prefix.

    transpose: theirs has the axes in the other order, as the weight of a torch.nn.Linear has.
    part: (k, n), ours is the k-th of n equal parts of theirs along the last axis of ours.
    cut: ours may have fewer rows than theirs, the first ones: positions that are not used.
    """

    ours: str
    theirs: str
    transpose: bool = False
    part: tuple[int, int] = (0, 1)
    cut: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """Checkpoints that one set of rules reads and writes.

    Attributes:
      task: the task.name of the model that they become.
      prefix: of the names of the tensors in a model with a head. The bare model has none, which is read as well.
      fields: config.json -> {field of our config: value}, such as {'model.width': 768}. Raises UserError for what our
        model does not have.
      config: {field: value} of our config, and the size of the vocabulary -> config.json.
      rules: {field: value} -> all rules. Those whose `theirs` begins with '/' have no prefix.
      unused: a regex of tensors that are no parameters, such as masks that old versions saved.
      copies: {tensor: the one that it is a copy of}, with their prefix. One that differs is refused where the model has
        others of its group, what the name begins with: transformers would not tie the two.
      also: other tasks that such a model can be trained for.
      amended: a folder -> its config.json, with what its tensors tell and it does not.
    """

    task: str
    prefix: str
    fields: Callable[[Mapping[str, Any], str], dict[str, Any]]
    config: Callable[[Mapping[str, Any], int], dict[str, Any]]
    rules: Callable[[Mapping[str, Any]], list[Rule]]
    unused: str = '(?!)'
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    also: tuple[str, ...] = ()
    amended: Callable[[Folder], Mapping[str, Any]] = lambda folder: folder.config

    def named(self, rule: Rule, prefix: str | None = None) -> str:
        """The whole name of the tensor."""
        bare = rule.theirs.startswith('/')
        return rule.theirs[1:] if bare else (self.prefix if prefix is None else prefix) + rule.theirs


def unstacked(params: Mapping[str, Any]) -> dict[str, Any]:
    """{path of one layer: (path, layer)} of a model whose layers are stacked in 'blocks', or 'encoder_blocks' and
    'decoder_blocks' (scan_layers), {path: (path, None)} of any other parameter."""
    found = {}
    for path, leaf in params.items():
        if tree.is_stacked(path):
            found |= {one: (path, i) for i, one in enumerate(tree.layer_names(path, leaf.shape[0]))}
        else:
            found[path] = path, None
    return found


def parameters(folder: Folder, family: Family, fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{our path: shape} of what a checkpoint has. A tensor that one of two heads reads is there for both."""
    prefix, found = _prefix(folder, family), {}
    for rule in family.rules(fields):
        if (shape := folder.shapes.get(family.named(rule, prefix))) is not None:
            own = shape[::-1] if rule.transpose else shape
            found[rule.ours] = (*own[:-1], own[-1] // rule.part[1])
    return found


def read(
    folder: Folder, family: Family, fields: Mapping[str, Any], params: Tree, left: Collection[str] = ()
) -> Tree:  # fmt: skip
    """The parameters of a checkpoint in the place of `params`, a tree of ShapeDtypeStruct with shardings (None: on the
    default device). Each device reads its own part of each file, leaf by leaf. Raises UserError for a tensor
    that is missing, left over, or of another shape. left: our paths of what the checkpoint has besides."""
    wanted = tree.flatten(params)
    places = unstacked(wanted)
    prefix = _prefix(folder, family)
    rules = {rule.ours: rule for rule in family.rules(fields)}
    if lacking := sorted(places.keys() - rules.keys()):
        raise ValueError(f'no rule for {", ".join(lacking)}')
    _check_all(folder, family, [rules[path] for path in places], [rules[path] for path in left], prefix)
    _check_copies(folder, family, [family.named(rules[path], prefix) for path in places], prefix)
    of_leaf: dict[str, list[tuple[str, Rule]]] = {path: [] for path in wanted}
    for one, (path, i) in places.items():
        rule, shape = rules[one], wanted[path].shape
        _check_shape(folder, family.named(rule, prefix), rule, shape if i is None else shape[1:])
        of_leaf[path].append((family.named(rule, prefix), rule))
    found = [_placed(folder, leaf, of_leaf[path], tree.is_stacked(path)) for path, leaf in wanted.items()]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(params), found)


def _prefix(folder: Folder, family: Family) -> str:
    names = *folder.shapes, *folder.others
    return family.prefix if any(name.startswith(family.prefix) for name in names) else ''


def _placed(folder: Folder, leaf, tensors: Sequence[tuple[str, Rule]], stacked: bool) -> jax.Array:
    def part(index: tuple[slice, ...]) -> np.ndarray:
        if stacked:
            value = np.stack([_slice(folder, *one, leaf.shape[1:], index[1:]) for one in tensors[index[0]]])
        else:
            value = _slice(folder, *tensors[0], leaf.shape, index)
        value = value.astype(leaf.dtype, copy=False)
        # An array may share the memory of what it is made of, if that lies in order; a file may change later.
        return value if value.flags.owndata or not value.flags.c_contiguous else value.copy()

    if getattr(leaf, 'sharding', None) is None:
        found = jax.numpy.asarray(part((slice(None),) * len(leaf.shape)))
    else:
        found = jax.make_array_from_callback(leaf.shape, leaf.sharding, part)
    jax.block_until_ready(found)  # before the pages are given back
    for name, _ in tensors:
        folder.forget(name)
    return found


def _slice(folder: Folder, name: str, rule: Rule, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` of a parameter of this shape."""
    ranges = [range(*one.indices(size)) for one, size in zip(index, shape, strict=True)]
    if (k := rule.part[0]) and ranges:
        ranges[-1] = range(ranges[-1].start + k * shape[-1], ranges[-1].stop + k * shape[-1])
    where = tuple(slice(one.start, one.stop) for one in ranges)
    value = folder.read(name, where[::-1] if rule.transpose else where)
    return value.T if rule.transpose else value


def _check_all(folder: Folder, family: Family, rules: Sequence[Rule], unread: Sequence[Rule], prefix: str) -> None:
    names, others = ({family.named(rule, prefix) for rule in some} for some in (rules, unread))
    if missing := sorted(names - folder.shapes.keys()):
        if dtype := folder.others.get(missing[0]):
            raise UserError(f'{folder.path}: {missing[0]} is of the dtype {dtype}; F64, F32, F16 and BF16 are read')
        raise UserError(f'{folder.path} lacks {_some(missing)}; it is no whole {folder.config["model_type"]}')
    left = [name for name in folder.shapes.keys() - names - others if not re.search(family.unused, name)]
    if left:
        raise UserError(f'{folder.path} holds what this model does not have: {_some(sorted(left))}')


def _check_copies(folder: Folder, family: Family, names: Sequence[str], prefix: str) -> None:
    groups = {name.partition('.')[0] for name in names}
    for name, of in family.copies.items():
        own, of = (one if prefix else one.removeprefix(family.prefix) for one in (name, of))
        if {own, of} <= folder.shapes.keys() and own.partition('.')[0] in groups and not folder.alike(own, of):
            raise UserError(f'{folder.path}: {own} is another matrix than {of}; such models have one here')


def with_head(folder: Folder, embeddings: Sequence[str], tied: bool) -> dict[str, Any]:
    """config.json, in which tie_word_embeddings is also false where the folder has a head of other numbers than the
    embedding: so transformers 5 reads it, and so it writes a T5. embeddings: names that the embedding may have; tied:
    what goes without saying."""
    head, said = 'lm_head.weight', folder.config.get('tie_word_embeddings')
    has_own = head in folder.shapes and not any(
        name in folder.shapes and folder.alike(head, name) for name in embeddings
    )
    return {**folder.config, 'tie_word_embeddings': (tied if said is None else bool(said)) and not has_own}


def _check_shape(folder: Folder, name: str, rule: Rule, ours: tuple[int, ...]) -> None:
    theirs, wanted = folder.shapes[name], (*ours[:-1], ours[-1] * rule.part[1])
    wanted = wanted[::-1] if rule.transpose else wanted
    if theirs != wanted and not (rule.cut and theirs[1:] == wanted[1:] and theirs[0] >= wanted[0]):
        of_classes = rule.ours.startswith('classifier/')
        asks = 'the classes of the data ask' if of_classes else 'its config.json asks'
        mend = '; init.drawn=classifier draws a new head' * of_classes
        raise UserError(f'{folder.path}: {name} is {theirs}, and {asks} for {wanted}{mend}')


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def unwritten(family: Family, fields: Mapping[str, Any], params: Tree) -> list[str]:
    """The paths of parameters that such a checkpoint has no tensor for, such as a head that is for pre-training."""
    places = unstacked(tree.flatten(params))
    return sorted(places.keys() - {rule.ours for rule in family.rules(fields)})


def tensors(family: Family, fields: Mapping[str, Any], params: Tree) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) of a checkpoint, one after the other, of parameters on any devices, without those `unwritten`."""
    own = tree.flatten(params)
    places = unstacked(own)
    groups: dict[str, list[Rule]] = {}
    for rule in family.rules(fields):
        if rule.ours in places:
            groups.setdefault(family.named(rule), []).append(rule)
    for name, rules in groups.items():
        parts = []
        for rule in sorted(rules, key=lambda rule: rule.part):
            path, i = places[rule.ours]
            value = np.asarray(jax.device_get(own[path] if i is None else own[path][i]))
            parts.append(value.T if rule.transpose else value)
        axis = 0 if rules[0].transpose else -1
        yield name, parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)
