"""An optimizer from its config: optax's optimizers and schedules by their names, rules by regex."""

import inspect
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax.core import schema, tree
from aigc_jax.core.errors import UserError, check_type, first_line, near
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array, Tree

# Of each player, a group of `optim`.
FIELDS = {
    'name': Field(str, doc='optax.NAME or optax.contrib.NAME'),
    'options': Field(
        dict, {},
        doc='its keyword arguments; of muon, muon_weight_dimension_numbers is a regex: the matrices that it '
        'orthogonalizes, (…, in, out) each; the rest is left to its Adam',
    ),
    'schedule': Field(
        dict,
        doc='{name, arguments of optax.NAME}, over training steps; an argument X_percent means X_steps, in percent of '
        'total_steps',
    ),
    'clip_norm': Field(float, 0.0, least=0, doc='the global norm that a gradient is cut to; 0: it is not cut'),
    'clip_weights': Field(
        float, 0.0, least=0, doc='the bound that every parameter is kept within, from the first update on; 0: none'
    ),
    'weight_decay_regex': Field(
        str, 'kernel', doc='which parameters an optimizer with weight decay decays, its default decay too'
    ),
    'learning_rate_rules': Field(
        tuple, (),
        doc='((regex of parameters, factor of the learning rate), …), the first that matches; a rule for `log_scale`, '
        'which only some models have, may match nothing',
    ),
    'layer_decay': Field(
        float, 1.0, above=0, most=1,
        doc='factor of the learning rate from each layer to the one below it, for fine-tuning; the embeddings, which '
        'lie lowest, learn slowest, and a head learns at the whole rate; 1: all do',
    ),
    'freeze': Field(str, '', doc='regex of the parameters that are not trained; empty: all are trained'),
    'ema_decay': Field(
        float, 0.0, least=0, below=1,
        doc='of the moving average of the parameters, which is evaluated and sampled; 0: those trained are',
    ),
}  # fmt: skip
_MASKS = ('mask', 'weight_decay_mask')  # optax's names for what weight_decay_regex says
_MATRICES = 'muon_weight_dimension_numbers'
# The layers of networks, by the names of their parameters.
_LAYER = re.compile(r'(?:^|[/.])(?:block|layer|encoder|decoder)_(\d+)(?=[/.])')
_LOWEST = re.compile(r'embed|position|token_type')
_SOMETIMES = ('log_scale',)  # parameters that only some models of a family have: a rate for them may find none
# What an option of a name holds, the first that fits its default. A first moment may be negative (Gidel et al. 2019).
_RANGES = (
    (r'(adam_)?b1|beta|momentum', lambda x: -1 < x < 1, 'lies in (−1, 1)'),
    (r'(adam_)?b[23]|betas|beta3|decay|decay_rate|rho', lambda x: 0 <= x < 1, 'lies in [0, 1)'),
    (r'(eta|rank|rms).*|.*(eps|decay|clip|norm|scale|step|estim|initial|interval|threshold|learning_rate|momentum).*',
     lambda x: 0 <= x < math.inf, 'is 0 or more'),
    (r'.*', math.isfinite, 'is finite'),
)  # fmt: skip


class AverageState(NamedTuple):
    """Exponential moving average of the parameters; `average` has their shape, and optax.MaskedNode() in the place of
    those that are frozen."""

    count: Array
    average: Tree


def average_params(decay: float, still: Tree = None) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters; last in a chain, as it must see the final update.

    d_t = min(decay, (1 + t) / (10 + t)), t the player's updates: the first weigh little, so that the average does not
    start out as the initialization. The ramp is that of TensorFlow's ExponentialMovingAverage; StyleGAN 2 has another,
    by the number of images.

    still: of each parameter whether it is frozen, and so is its own average; None: none is.
    """

    def init(params):
        # A copy: the average and the parameters are donated to the same compiled call, which no buffer may be twice.
        copies = jax.tree.map(jnp.copy, params)
        if still is not None:
            copies = jax.tree.map(lambda copy, held: optax.MaskedNode() if held else copy, copies, still)
        return AverageState(jnp.zeros((), jnp.int32), copies)

    def update(updates, state, params):
        d = jnp.minimum(decay, (1.0 + state.count) / (10.0 + state.count))
        new = lambda a, p, u: a if _is_masked(a) else (a * d + (p + u) * (1 - d)).astype(a.dtype)
        average = jax.tree.map(new, state.average, params, updates, is_leaf=_is_masked)
        return updates, AverageState(state.count + 1, average)

    return optax.GradientTransformation(init, update)


def clip_params(bound: float) -> optax.GradientTransformation:
    """Keeps every parameter within ±bound after its update. Arjovsky et al. 2017, algorithm 1."""

    def update(updates, params):
        return jax.tree.map(lambda u, p: jnp.clip(p + u, -bound, bound) - p, updates, params)

    return optax.stateless(update)


def averaged(params: dict[str, Tree], opt: dict[str, Tree]) -> dict[str, Tree]:
    """{player: parameters to evaluate and sample with}: their moving average where one is kept, or the average that
    schedule-free optimization is about (Defazio et al. 2024, whose x these are, where `params` are y)."""

    def one(player):
        found = _averages(opt[player])
        if not found:
            return params[player]
        state = found[-1]  # ema_decay comes last in the chain
        if isinstance(state, AverageState):
            of_each = lambda average, own: own if _is_masked(average) else average
            return jax.tree.map(of_each, state.average, params[player], is_leaf=_is_masked)
        x = lambda y, z: y if _is_masked(z) else optax.contrib.schedule_free_eval_params(state._replace(z=z), y)
        return jax.tree.map(x, params[player], state.z)

    return {player: one(player) for player in params}


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _averages(opt: Tree) -> list[AverageState | optax.contrib.ScheduleFreeState]:
    is_one = lambda node: isinstance(node, AverageState | optax.contrib.ScheduleFreeState)
    return [node for node in jax.tree.leaves(opt, is_leaf=is_one) if is_one(node)]


def without_moments(opt: dict[str, Tree]) -> dict[str, Tree]:
    """Only the part of the optimizers' states that `averaged` reads."""

    def one(state):
        return state if isinstance(state, AverageState) else state._replace(base_optimizer_state=())

    return {player: tuple(map(one, _averages(state)[-1:])) for player, state in opt.items()}


def optimizer(config: Any, params: Tree, total_steps: int, what: str, turns: int = 1) -> optax.GradientTransformation:
    """The transformation that config.optim.PLAYER describes; `what` is that field's name, for messages.

    turns: the player's updates in one training step. The schedule runs over training steps, so that all turns of a step
    have the rate of that step; all else counts updates (the moments of Adam, ema_decay).

    config: holds FIELDS.

    Raises UserError for a field that does not fit, and for an optimizer that wants more than gradients.
    """
    schema.check(config, FIELDS, what)
    clip_weights = config.clip_weights
    if clip_weights and config.freeze:
        raise UserError(f'{what}.clip_weights: would change the parameters that {what}.freeze holds still; choose one')
    options = dict(config.options)
    factory = _find(config.name, (optax, optax.contrib), f'{what}.name', 'learning_rate')
    known = inspect.signature(factory).parameters
    _check_options(config, known, what)
    # The default is meant for an optimizer that decays; of any other, a model may have no such parameter.
    unused = () if _decays(options, known) else (FIELDS['weight_decay_regex'].default,)
    rule = ((config.weight_decay_regex, True),)
    decayed = tree.by_rule(rule, params, False, f'{what}.weight_decay_regex', unused)
    if _MATRICES in options:
        if not isinstance(options[_MATRICES], str):
            raise UserError(f'{what}.options.{_MATRICES}: {options[_MATRICES]!r} is no regular expression')
        rule = ((options[_MATRICES], optax.contrib.MuonDimensionNumbers(-2, -1)),)
        options[_MATRICES] = tree.by_rule(rule, params, None, f'{what}.options.{_MATRICES}')
    options |= _decay_mask(config.name, config.options, known, params, decayed, what)
    chain = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    of_step = schedule(config.schedule, total_steps, f'{what}.schedule')
    learning_rate = of_step if turns == 1 else lambda updates: of_step(updates // turns)
    try:
        chain.append(factory(learning_rate, **options))
    except (TypeError, ValueError) as error:
        raise UserError(f'{what}.options: {error}; optax.{config.name} has {", ".join(known)}') from None
    parts = [optax.chain(*chain)]
    if config.freeze:
        labels = tree.by_rule(((config.freeze, 'frozen'),), params, 'trained', f'{what}.freeze')
        parts = [optax.partition({'trained': parts[0], 'frozen': optax.set_to_zero()}, labels)]
    # After the partition, inside which frozen parameters have no update to scale.
    for factors in (_by_rules(config, params, what), _by_layer(config, params, what)):
        parts += [_scaled(factors)] if factors else []
    if clip_weights:
        parts.append(clip_params(clip_weights))
    if config.ema_decay:
        still = jax.tree.map(lambda label: label == 'frozen', labels) if config.freeze else None
        parts.append(average_params(config.ema_decay, still))
    whole = optax.chain(*parts) if len(parts) > 1 else parts[0]
    try:
        jax.eval_shape(lambda p: whole.update(p, whole.init(p), p), params)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        said = first_line(error)
        raise UserError(
            f'{what}: optax.{config.name} cannot train with this schedule and these options: {said}'
        ) from None
    return whole


def _scaled(factors: Tree) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda x, factor: x * factor, updates, factors))


def _by_rules(config: Any, params: Tree, what: str) -> Tree | None:
    """The factors of learning_rate_rules; None where all are 1."""
    field = f'{what}.learning_rate_rules'
    for rule in config.learning_rate_rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2 or not isinstance(rule[-1], (int, float)):
            raise UserError(f'{field}: {rule!r} is no pair (regex, factor)')
        if not 0 <= rule[-1] < math.inf:
            raise UserError(f'{field}: {rule!r}; a factor is 0 or more')
    factors = tree.by_rule(config.learning_rate_rules, params, 1.0, field, _SOMETIMES)
    if all(factor == 1 for factor in jax.tree.leaves(factors)):
        return None
    _want_no_average(config.name, field)
    return factors


def _by_layer(config: Any, params: Tree, what: str) -> Tree | None:
    """The factors of layer_decay γ (Clark et al. 2020, ELECTRA, fine-tuning); None where it is 1.

    Of a stack of L layers, layer i, from 0, has γ^(L − i). The embeddings have γ^(L + 1), with the L of the deepest
    stack. What lies above, a head and the last norm, has 1.
    """
    decay = config.layer_decay
    if decay == 1:
        return None
    field = f'{what}.layer_decay'
    _want_no_average(config.name, field)
    names = tree.flatten(params)
    stack_of = lambda name, found: name[: found.start(1)]  # such as encoder_
    layers: dict[str, int] = {}  # of each stack
    for name in names:
        if found := _LAYER.search(name):
            stack = stack_of(name, found)
            layers[stack] = max(layers.get(stack, 0), int(found[1]) + 1)
    in_loop = [leaf.shape[0] for name, leaf in names.items() if tree.is_stacked(name)]
    if not layers and not in_loop:
        raise UserError(f'{field}: {decay}, but {what.rpartition(".")[2]} has no layers block_0, …; set it to 1')
    most = max(*layers.values(), *in_loop, 0)

    def factor(name: str, leaf: Any) -> Any:
        if found := _LAYER.search(name):
            return decay ** (layers[stack_of(name, found)] - int(found[1]))
        if tree.is_stacked(name):
            each = decay ** (leaf.shape[0] - np.arange(leaf.shape[0], dtype=np.float64))
            return each.reshape(-1, *(1,) * (leaf.ndim - 1)).astype(leaf.dtype)
        return decay ** (most + 1) if _LOWEST.search(name) else 1.0

    return tree.map_named(factor, params)


def frozen(config: Any, params: dict[str, Tree]) -> dict[str, Tree]:
    """{player: of each parameter whether it is frozen}, of the players whose config.optim freezes some."""
    return {
        player: tree.by_rule(((config[player].freeze, True),), params[player], False, f'optim.{player}.freeze')
        for player in params
        if config[player].freeze
    }


def _check_options(config: Any, known: Any, what: str) -> None:
    """Raises UserError for options that optax.NAME, of the parameters `known`, lacks or that are out of range."""
    free = config.name.startswith('schedule_free')
    for name, value in config.options.items():
        if name not in known or name in ('learning_rate', *_MASKS):
            raise UserError(f'{what}.options.{name}: optax.{config.name} has no such option{near(name, known)}')
        if name == 'warmup_steps':
            raise UserError(f'{what}.options.{name}: the warm-up is that of {what}.schedule, such as linear_schedule')
        number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
        default = known[name].default
        ranges = (r for r in _RANGES if re.fullmatch(r[0], name) and (not number(default) or r[1](default)))
        _, fits, words = next(ranges, _RANGES[-1])
        if any(number(x) and not fits(x) for x in (value if isinstance(value, (tuple, list)) else (value,))):
            raise UserError(f'{what}.options.{name}: {value}; it {words}')
        if free and name == 'b1' and not value > 0:
            raise UserError(f'{what}.options.{name}: {value}; of schedule-free optimization it lies in (0, 1)')
    for field in ('clip_weights', 'ema_decay'):
        if config.get(field):
            _want_no_average(config.name, f'{what}.{field}')


def _want_no_average(name: str, field: str) -> None:
    """Raises UserError where `field` would change the parameters y of schedule-free optimization after its update: x =
    (y − (1 − b1) z) / b1, which is evaluated, would be no average of the z."""
    if name.startswith('schedule_free'):
        raise UserError(
            f'{field}: optax.{name} is evaluated at an average of its own, which this would break; leave it out, or '
            'choose another optimizer'
        )


def _decays(options: dict, known: Any) -> list[str]:
    """The options by which an optimizer with the parameters `known` decays weights."""
    values = {option: options.get(option, p.default) for option, p in known.items() if 'weight_decay' in option}
    return [option for option, value in values.items() if value and option not in _MASKS]


def _decay_mask(name: str, options: dict, known: Any, params: Tree, decayed: Tree, what: str) -> dict[str, Tree]:
    """{mask: decayed} for the weight decay of optax.NAME; {} where it has none. Raises UserError for a decay that does
    not reach just what is to be decayed."""
    decays = _decays(options, known)
    masks = [mask for mask in _MASKS if mask in known] if decays else []
    reached = tree.flatten(decayed)
    if 'adam_weight_decay' in known:  # the mask of muon is of what it orthogonalizes; its Adam has none
        matrices = options.get(_MATRICES)
        leaves = tree.flatten(params)
        if isinstance(matrices, str):
            orthogonalized = tree.matching(matrices, leaves, f'{what}.options.{_MATRICES}')
        else:
            orthogonalized = [path for path, leaf in leaves.items() if leaf.ndim == 2]
        by_adam = [path for path in leaves if path not in orthogonalized]
        if 'adam_weight_decay' not in decays:
            if decays and (missed := [path for path in by_adam if reached[path]]):
                raise UserError(
                    f'{what}.weight_decay_regex: {decays[0]} of optax.{name} is not of what its Adam trains, such as '
                    f'{missed[0]}; narrow the regex, or set adam_weight_decay, which is of all that Adam trains'
                )
            return dict.fromkeys(masks, decayed)
        reached = {path: reached[path] for path in by_adam}
    if decays and not all(reached.values()) and (not masks or 'adam_weight_decay' in decays):
        raise UserError(
            f'{what}.weight_decay_regex: {decays[-1]} of optax.{name} decays all parameters; '
            "set it to '.*', or leave the decay out"
        )
    return dict.fromkeys(masks, decayed)


def schedule(config: Any, total_steps: int, what: str) -> optax.Schedule:
    """optax.NAME(**arguments), with the durations in percent resolved. Raises UserError where it is not 0 or more
    throughout."""
    arguments = dict(config)
    total_steps = total_steps or 1000  # a run without steps reads no schedule, and of 0 steps optax makes none
    check_type(f'{what}.name', arguments.get('name'), str)
    factory = _find(arguments.pop('name'), (optax,), f'{what}.name', 'schedule')
    for name in [name for name in arguments if name.endswith('_percent')]:
        check_type(f'{what}.{name}', percent := arguments.pop(name), float)
        if not 0 <= percent <= 100:
            raise UserError(f'{what}.{name}: {percent}; it lies in [0, 100], in percent of total_steps')
        if (steps := name.removesuffix('_percent') + '_steps') in arguments:
            raise UserError(f'{what}.{name}: says what {what}.{steps} says; choose one')
        arguments[steps] = round(percent / 100 * total_steps)
    for name in [name for name in arguments if name.endswith(('_steps', '_begin'))]:
        check_type(f'{what}.{name}', arguments[name], int)
        if arguments[name] < (least := int(name == 'transition_steps')):  # of 0 steps optax makes none at all
            raise UserError(f'{what}.{name}: {arguments[name]} steps; it is {least} or more')
    steps = np.unique(np.linspace(0, total_steps, 1000).astype(np.int32))
    try:
        function = factory(**arguments)
        with jax.ensure_compile_time_eval():  # a task may be made inside a trace
            values = np.asarray(jax.vmap(lambda step: jnp.asarray(function(step)))(steps))
    except (TypeError, ValueError, OverflowError, LookupError, AttributeError) as error:
        known = ', '.join(inspect.signature(factory).parameters)
        raise UserError(f'{what}: {error}; optax.{factory.__name__} has {known}') from None
    if (wrong := ~((values >= 0) & (values < np.inf))).any():
        raise UserError(f'{what}: is {values[wrong][0]:g} at step {steps[wrong][0]}; it is to be 0 or more')
    return function


def _find(name: str, modules: tuple, what: str, mark: str):
    """The function `name` of the first module that has it; `mark` tells optimizers and schedules from the rest."""

    def fits(candidate_name, candidate):
        parts = ('_', 'scale_by_')  # a part of an optimizer does not know which way is down
        if not callable(candidate) or inspect.isclass(candidate) or candidate_name.startswith(parts):
            return False
        if mark == 'schedule':
            return candidate_name.endswith(('schedule', 'decay'))
        try:
            return mark in inspect.signature(candidate).parameters
        except (TypeError, ValueError):  # a type alias has no signature, and is no optimizer
            return False

    for module in modules:
        if fits(name, getattr(module, name, None)):
            return getattr(module, name)
    known = [n for module in modules for n, candidate in vars(module).items() if fits(n, candidate)]
    raise UserError(f'{what}: optax has no {name!r}{near(name, known)}')
