"""Optimizers from their configs, against hand-computed steps."""

import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from aigc_jax.core import optim, tree
from aigc_jax.core.errors import UserError

TOTAL_STEPS = 200
PARAMS = {
    'encoder': {'dense': {'kernel': jnp.arange(6.0).reshape(2, 3) / 3 - 0.7, 'bias': jnp.array([0.3, -0.2, 0.1])}},
    'decoder': {'dense': {'kernel': jnp.linspace(-1, 1, 6).reshape(3, 2), 'bias': jnp.array([0.5, 0.25])}},
    'log_scale': jnp.array(0.4),
}


def make(**fields) -> ConfigDict:
    return ConfigDict(
        dict(
            name='sgd',
            options=dict(),
            schedule=dict(name='constant_schedule', value=0.1),
            clip_norm=0.0,
            clip_weights=0.0,
            weight_decay_regex='kernel',
            learning_rate_rules=(),
            layer_decay=1.0,
            freeze='',
            ema_decay=0.0,
        )
        | fields  # fmt: skip
    )


def gradient(step: int):
    """Something else at every step, and of another size for each leaf."""
    draw = np.random.default_rng(step).normal
    return jax.tree.map(lambda leaf: jnp.asarray(draw(size=leaf.shape) * (1 + leaf.size), jnp.float32), PARAMS)


def steps(config, number: int):
    """[(parameters, optimizer state) after 0, 1, …, number steps]."""
    optimizer = optim.optimizer(config, PARAMS, TOTAL_STEPS, 'optim.model')
    update = jax.jit(optimizer.update)
    trail = [(PARAMS, optimizer.init(PARAMS))]
    for step in range(number):
        params, state = trail[-1]
        updates, state = update(gradient(step), state, params)
        trail.append((optax.apply_updates(params, updates), state))
    return trail


def named(values) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf, np.float64) for name, leaf in tree.flatten(values).items()}


def assert_close(ours, theirs):
    ours, theirs = named(ours), named(theirs)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=1e-6, err_msg=name)


def message(**fields) -> str:
    with pytest.raises(UserError) as caught:
        optim.optimizer(make(**fields), PARAMS, TOTAL_STEPS, 'optim.model')
    assert 1 <= len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


def test_sgd():
    (before, _), (after, _) = steps(make(), 1)
    assert_close(after, jax.tree.map(lambda p, g: p - 0.1 * g, before, gradient(0)))


@pytest.mark.parametrize(
    'name',
    ['adam', 'adamw', 'lion', 'rmsprop', 'lamb', 'adafactor', 'muon', 'prodigy', 'schedule_free_adamw'],
)
def test_optimizers_by_name(name):
    """Of optax, and of optax.contrib where optax has none of that name: the very updates of a direct call."""
    factory = getattr(optax, name, None) or getattr(optax.contrib, name)
    direct = factory(learning_rate=optax.constant_schedule(0.1))
    expected, _ = direct.update(gradient(0), direct.init(PARAMS), PARAMS)
    (before, _), (after, _) = steps(make(name=name, weight_decay_regex='.*'), 1)
    assert_close(after, optax.apply_updates(before, expected))


def test_options():
    first, second = (steps(make(name='adam', options=dict(b1=b1, b2=0.99)), 2)[-1][0] for b1 in (0.0, 0.9))
    direct = optax.adam(0.1, b1=0.0, b2=0.99)
    params, state = PARAMS, direct.init(PARAMS)
    for step in range(2):
        updates, state = direct.update(gradient(step), state, params)
        params = optax.apply_updates(params, updates)
    assert_close(first, params)
    assert not np.allclose(named(second)['log_scale'], named(params)['log_scale'])


@pytest.mark.filterwarnings('ignore:optax.dpsgd')
def test_what_is_no_optimizer():
    assert "optim.model.name: optax has no 'adma'; did you mean" in (said := message(name='adma')) and 'adam' in said
    for name in ('apply_updates', '_src', 'Schedule', 'chain', 'constant_schedule', ''):
        assert f'optim.model.name: optax has no {name!r}' in message(name=name)
    assert 'optim.model.options.beta1: optax.adam has no such option' in message(name='adam', options=dict(beta1=0.9))
    for option in ('mask', 'learning_rate'):
        assert f'optim.model.options.{option}' in message(name='adamw', options={option: 1})
    assert 'optim.model.options' in message(name='adam', options=dict(mu_dtype='flaot32'))
    assert 'l2_norm_clip' in message(name='dpsgd', options=dict(seed=0))


@pytest.mark.parametrize(
    'schedule, values',
    [
        (dict(name='constant_schedule', value=0.5), {0: 0.5, 199: 0.5}),
        # Percent of 200 steps: from 1 to 0.1 over 100 steps.
        (
            dict(name='linear_schedule', init_value=1.0, end_value=0.1, transition_percent=50.0),
            {0: 1, 50: 0.55, 100: 0.1, 150: 0.1},
        ),
        (
            dict(name='linear_schedule', init_value=1.0, end_value=0.1, transition_steps=10),
            {5: 0.55, 10: 0.1},
        ),
        # ½ (1 + cos π t/T), down to α.
        (
            dict(name='cosine_decay_schedule', init_value=2.0, decay_percent=100.0, alpha=0.1),
            {0: 2.0, 50: 2 * (0.45 * (1 + math.cos(math.pi / 4)) + 0.1), 100: 2 * (0.45 + 0.1), 200: 0.2},
        ),
        (
            dict(
                name='warmup_cosine_decay_schedule',
                init_value=0.0,
                peak_value=1.0,
                warmup_percent=10.0,
                decay_percent=100.0,
            ),  # fmt: skip
            {0: 0, 10: 0.5, 20: 1.0, 110: 0.5, 200: 0.0},
        ),
        (
            dict(name='exponential_decay', init_value=1.0, transition_percent=0.5, decay_rate=0.5),
            {0: 1, 1: 0.5, 3: 0.125},
        ),
    ],
)
def test_schedules(schedule, values):
    function = optim.schedule(ConfigDict(schedule), TOTAL_STEPS, 'optim.model.schedule')
    for step, value in values.items():
        np.testing.assert_allclose(function(step), value, rtol=1e-6, atol=1e-7)


def test_the_schedule_is_followed():
    schedule = dict(name='linear_schedule', init_value=1.0, end_value=0.0, transition_percent=1.0)  # 2 of 200 steps
    trail = [named(params) for params, _ in steps(make(schedule=schedule), 3)]
    for step, rate in enumerate((1.0, 0.5, 0.0)):
        for name, g in named(gradient(step)).items():
            np.testing.assert_allclose(trail[step + 1][name], trail[step][name] - rate * g, rtol=1e-5, atol=1e-6)


def test_what_is_no_schedule():
    said = message(schedule=dict(name='cosine_decay', init_value=1.0))
    assert (
        "optim.model.schedule.name: optax has no 'cosine_decay'; did you mean" in said
        and 'cosine_decay_schedule' in said
    )
    assert 'decay_steps' in message(schedule=dict(name='cosine_decay_schedule', init_value=1.0))
    assert 'optim.model.schedule.name' in message(schedule=dict(value=1.0))
    assert 'optim.model.schedule.decay_percent' in message(
        schedule=dict(name='cosine_decay_schedule', init_value=1.0, decay_percent='all')
    )
    assert 'alfa' in message(schedule=dict(name='cosine_decay_schedule', init_value=1.0, decay_percent=50.0, alfa=0.1))
    assert 'optim.model.schedule' in message(
        schedule=dict(name='cosine_decay_schedule', init_value=1.0, decay_percent=-5.0)
    )
    for wrong in (
        dict(name='constant_schedule', value=None), dict(name='sgdr_schedule', cosine_kwargs=[]),
        dict(name='piecewise_constant_schedule', init_value=1.0, boundaries_and_scales=5),
    ):  # fmt: skip
        assert message(schedule=wrong).startswith('optim.model.schedule: ')


def test_clip_norm():
    """A gradient of norm N > c is scaled by c / N as a whole, a shorter one stays."""
    norm = math.sqrt(sum(float((g**2).sum()) for g in named(gradient(0)).values()))
    for clip in (norm / 4, norm * 4):
        (before, _), (after, _) = steps(make(clip_norm=clip), 1)
        scale = min(1.0, clip / norm)
        assert_close(after, jax.tree.map(lambda p, g: p - 0.1 * scale * g, before, gradient(0)))
    for clip in (-1.0, math.nan):
        assert 'optim.model.clip_norm' in message(clip_norm=clip)


def test_weight_decay_by_regex():
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) by hand; the decay on the matching parameters alone."""
    rate, b1, b2, eps, decay = 0.1, 0.8, 0.9, 1e-8, 0.25
    regex = 'encoder.*kernel|log_scale'
    config = make(name='adamw', options=dict(b1=b1, b2=b2, eps=eps, weight_decay=decay), weight_decay_regex=regex)
    params, m, v = named(PARAMS), {}, {}
    for t in range(1, 4):
        for name, g in named(gradient(t - 1)).items():
            m[name] = b1 * m.get(name, 0) + (1 - b1) * g
            v[name] = b2 * v.get(name, 0) + (1 - b2) * g**2
            m_hat, v_hat = m[name] / (1 - b1**t), v[name] / (1 - b2**t)
            shrink = decay * params[name] if name in ('encoder/dense/kernel', 'log_scale') else 0
            params[name] = params[name] - rate * (m_hat / (np.sqrt(v_hat) + eps) + shrink)
    ours = named(steps(config, 3)[-1][0])
    for name in params:
        np.testing.assert_allclose(ours[name], params[name], rtol=2e-5, atol=1e-6, err_msg=name)
    assert "optim.model.weight_decay_regex: 'kernle' matches no parameter" in message(
        name='adamw', options=dict(weight_decay=0.1), weight_decay_regex='kernle'
    )


@pytest.mark.parametrize('name', ['adamw', 'nadamw', 'adamaxw', 'lion'])
def test_a_default_weight_decay_is_by_regex_too(name):
    """Of a zero gradient nothing is left but the decay."""
    optimizer = optim.optimizer(make(name=name), PARAMS, TOTAL_STEPS, 'optim.model')
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, PARAMS), optimizer.init(PARAMS), PARAMS)
    for path, update in named(updates).items():
        assert update.any() == ('kernel' in path), path


def test_the_weight_decay_of_muon():
    """Its mask is of what it orthogonalizes; a regex that names what its Adam trains is refused, or Adam's is told."""
    assert 'weight_decay of optax.muon is not of what its Adam trains, such as' in message(
        name='muon', options=dict(weight_decay=0.1), weight_decay_regex='kernel|log_scale'
    )
    rule = dict(muon_weight_dimension_numbers='encoder.*kernel', weight_decay=0.1)
    said = message(name='muon', options=rule)
    assert 'optim.model.weight_decay_regex' in said and 'decoder/dense/kernel' in said
    both = dict(weight_decay=0.1, adam_weight_decay=0.1)
    regex = 'encoder.*kernel|bias|log_scale'  # all of Adam's, one of Muon's matrices
    optimizer = optim.optimizer(make(name='muon', options=both, weight_decay_regex=regex), PARAMS, 1, 'optim.model')
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, PARAMS), optimizer.init(PARAMS), PARAMS)
    for path, update in named(updates).items():
        expected = -0.1 * 0.1 * named(PARAMS)[path] * (path != 'decoder/dense/kernel')
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-8, err_msg=path)


@pytest.mark.parametrize('name, option', [('adafactor', 'weight_decay_rate'), ('muon', 'weight_decay')])
def test_weight_decay_by_other_names(name, option):
    """Parameters that the regex leaves out are those without decay, whatever optax calls it."""
    with_decay, without = (
        named(steps(make(name=name, options={option: decay}, weight_decay_regex='kernel'), 1)[-1][0])
        for decay in (0.3, 0.0)
    )
    for path in with_decay:
        assert np.array_equal(with_decay[path], without[path]) == ('kernel' not in path), path


@pytest.mark.parametrize('name, option', [('muon', 'adam_weight_decay'), ('schedule_free_adamw', 'weight_decay')])
def test_weight_decay_without_a_mask(name, option):
    assert f'optim.model.weight_decay_regex: {option} of optax.{name} decays all parameters' in message(
        name=name, options={option: 0.1}, weight_decay_regex='kernel'
    )
    steps(make(name=name, options={option: 0.1}, weight_decay_regex='.*'), 1)


@pytest.mark.parametrize('freeze', ['', 'log_scale'])
def test_schedule_free_is_evaluated_at_its_average(freeze):
    params, opt = steps(make(name='schedule_free_sgd', options={}, freeze=freeze), 3)[-1]
    found = named(optim.averaged({'model': params}, {'model': opt})['model'])
    nodes = jax.tree.leaves(opt, is_leaf=lambda node: isinstance(node, optax.contrib.ScheduleFreeState))
    (state,) = (node for node in nodes if isinstance(node, optax.contrib.ScheduleFreeState))
    for path, y in named(params).items():
        x = y if freeze and path == freeze else (y - (1 - state.b1) * named(state.z)[path]) / state.b1
        np.testing.assert_allclose(found[path], x, rtol=1e-6, err_msg=path)
    assert not np.allclose(*(found['encoder/dense/kernel'], named(params)['encoder/dense/kernel']))


def test_nothing_changes_what_schedule_free_has_made():
    """(θ − 20)² / 2 from 5 with clip_weights=6 was evaluated at x = −25, outside of the bound."""
    for fields in (dict(clip_weights=6.0), dict(learning_rate_rules=(('bias', 0.5),)), dict(ema_decay=0.9)):
        (field,) = fields
        for name in ('schedule_free_sgd', 'schedule_free_adamw'):
            assert f'optim.model.{field}: optax.{name} is evaluated at an average of its own' in message(
                name=name, **fields
            )


@pytest.mark.parametrize('name, options, words', [
    ('adam', dict(b1=2.0), 'b1: 2.0; it lies in (−1, 1)'),
    ('adam', dict(b1=1.0), 'b1: 1.0; it lies in (−1, 1)'),
    ('adam', dict(b2=1.0), 'b2: 1.0; it lies in [0, 1)'),
    ('adamw', dict(b2=-0.1), 'b2: -0.1; it lies in [0, 1)'),
    ('adamw', dict(b1=math.nan), 'b1: nan; it lies in'),
    ('adamw', dict(weight_decay=-0.1), 'weight_decay: -0.1; it is 0 or more'),
    ('adam', dict(eps=-1e-8), 'eps: -1e-08; it is 0 or more'),
    ('sgd', dict(momentum=1.0), 'momentum: 1.0; it lies in (−1, 1)'),
    ('rmsprop', dict(decay=1.5), 'decay: 1.5; it lies in [0, 1)'),
    ('rmsprop', dict(initial_scale=-1.0), 'initial_scale: -1.0; it is 0 or more'),
    ('adadelta', dict(rho=1.0), 'rho: 1.0; it lies in [0, 1)'),
    ('adafactor', dict(decay_rate=2.0), 'decay_rate: 2.0; it lies in [0, 1)'),
    ('muon', dict(beta=1.0), 'beta: 1.0; it lies in (−1, 1)'),
    ('muon', dict(adam_b2=1.0), 'adam_b2: 1.0; it lies in [0, 1)'),
    ('muon', dict(adam_learning_rate=-1e-3), 'adam_learning_rate: -0.001; it is 0 or more'),
    ('prodigy', dict(betas=(0.9, 1.5)), 'betas: (0.9, 1.5); it lies in [0, 1)'),
    ('optimistic_gradient_descent', dict(alpha=math.inf), 'alpha: inf; it is finite'),
    ('schedule_free_sgd', dict(b1=0.0), 'b1: 0.0; of schedule-free optimization it lies in (0, 1)'),
    ('schedule_free_sgd', dict(warmup_steps=10), 'warmup_steps: the warm-up is that of optim.model.schedule'),
])  # fmt: skip
def test_options_out_of_range(name, options, words):
    assert f'optim.model.options.{words}' in message(name=name, options=options)


def test_every_optimizer_takes_its_own_defaults():
    """The ranges let pass what optax has by itself, and one that wants more than gradients is refused in a line."""
    refused = set()
    for module in (optax, optax.contrib):
        for name in [name for name in vars(module) if not name.startswith('_')]:
            try:
                factory = optim._find(name, (module,), 'name', 'learning_rate')
            except UserError:
                continue
            defaults = {
                option: p.default for option, p in inspect.signature(factory).parameters.items()
                if option not in ('learning_rate', 'mask', 'weight_decay_mask', 'warmup_steps')
                and isinstance(p.default, (int, float))
            }  # fmt: skip
            try:
                optim.optimizer(
                    make(name=name, options=defaults, weight_decay_regex='.*'), PARAMS, TOTAL_STEPS, 'optim.model'
                )
            except UserError as error:
                assert len(str(error).splitlines()) == 1
                refused.add(name)
    wants_more = {'lbfgs', 'momo', 'momo_adam', 'sophia', 'schedule_free', 'dpsgd'}
    takes_no_schedule = {'rprop', 'sm3', 'optimistic_adam'}
    assert refused <= wants_more | takes_no_schedule and 'lbfgs' in refused


@pytest.mark.parametrize('schedule, words', [
    (dict(name='warmup_cosine_decay_schedule', init_value=0.0, peak_value=1.0, warmup_percent=-5.0,
          decay_percent=100.0), 'warmup_percent: -5.0; it lies in [0, 100], in percent of total_steps'),
    (dict(name='cosine_decay_schedule', init_value=1.0, decay_percent=150.0), 'decay_percent: 150.0; it lies in [0, 1'),
    (dict(name='cosine_decay_schedule', init_value=1.0, decay_percent=50.0, decay_steps=3), 'decay_percent: says what'),
    (dict(name='linear_schedule', init_value=1.0, end_value=0.0, transition_steps=0), 'transition_steps: 0 steps; it'),
    (dict(name='linear_schedule', init_value=1.0, end_value=0.0, transition_steps=-5), 'transition_steps: -5 steps'),
    (dict(name='linear_schedule', init_value=1.0, end_value=0.0, transition_steps=2.5), 'transition_steps: 2.5 is a'),
    (dict(name='linear_schedule', init_value=1.0, end_value=0.0, transition_steps=9, transition_begin=-1),
     'transition_begin: -1 steps; it is 0 or more'),
    (dict(name='constant_schedule', value=-0.1), ': is -0.1 at step 0; it is to be 0 or more'),
    (dict(name='constant_schedule', value=math.nan), ': is nan at step 0'),
    (dict(name='linear_schedule', init_value=1.0, end_value=-1.0, transition_percent=100.0), ': is -'),
    (dict(name='constant_schedule', value='fast'), ': '),
])  # fmt: skip
def test_schedules_out_of_range(schedule, words):
    assert f'optim.model.schedule{"" if words.startswith(":") else "."}{words}' in message(schedule=schedule)


def test_learning_rate_rules():
    """The first rule that matches scales the update; what none matches is left as it is."""
    rules = (('encoder.*bias', 0.5), ('bias', 3.0), ('log', 0.0))
    (before, _), (after, _) = steps(make(learning_rate_rules=rules), 1)
    factors = {'encoder/dense/bias': 0.5, 'decoder/dense/bias': 3.0, 'log_scale': 0.0}
    before, after = named(before), named(after)
    for name, g in named(gradient(0)).items():
        np.testing.assert_allclose(after[name], before[name] - 0.1 * factors.get(name, 1.0) * g, rtol=1e-5, atol=1e-6)


def test_a_rule_for_the_scale_of_a_likelihood_may_find_none():
    """A config has it for the likelihoods that learn one; of others the state is as without a rule."""
    rules = (('log_scale', 10.0),)
    params = {name: leaf for name, leaf in PARAMS.items() if name != 'log_scale'}
    states = [
        optim.optimizer(make(learning_rate_rules=given), params, TOTAL_STEPS, 'optim.model').init(params)
        for given in (rules, ())
    ]
    assert len(params) < len(PARAMS) and jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert 'matches no' in message(learning_rate_rules=(*rules, ('log_scales', 2.0)))


def test_rules_that_do_nothing_are_mistakes():
    for rules in (((('bais'), 2.0),), (('bias', 2.0), ('gamma', 1.0))):
        assert (
            'optim.model.learning_rate_rules' in (said := message(learning_rate_rules=rules)) and 'matches no' in said
        )
        assert 'encoder/dense/bias' in said
    for factor in (-1.0, math.nan):
        assert 'a factor is 0 or more' in message(learning_rate_rules=(('bias', factor),))
    for name in ('adam', 'adamw'):  # whether it is used or not
        assert "weight_decay_regex: 'kernle' matches no" in message(name=name, weight_decay_regex='kernle')
        assert 'is no regular expression' in message(name=name, weight_decay_regex='(')
    for rules in ((('bias', 'x'),), ('bias', 2.0), (('bias',),), (('bias', 1.0, 2.0),), ((2.0, 'bias'),)):
        assert 'optim.model.learning_rate_rules' in message(learning_rate_rules=rules)
    assert "optim.model.freeze: 'enkoder' matches no parameter" in message(freeze='enkoder')
    for field in ('freeze', 'weight_decay_regex'):
        said = message(**{field: '(', 'name': 'adamw', 'options': dict(weight_decay=0.1)})
        assert re.search(rf'optim\.model\.{field}: .* is no regular expression', said)


@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw', 'muon'])
def test_freeze(name):
    """Frozen parameters keep their very bits, weight decay and all; the others move as if alone."""
    options = dict(weight_decay=0.1) if name == 'adamw' else {}
    config = make(name=name, options=options, freeze='encoder', weight_decay_regex='kernel', clip_norm=1.0)
    before, after = tree.flatten(PARAMS), tree.flatten(steps(config, 5)[-1][0])
    for leaf in before:
        same = np.asarray(before[leaf]).tobytes() == np.asarray(after[leaf]).tobytes()
        assert same == leaf.startswith('encoder/'), leaf


def test_freeze_takes_no_part_in_clipping():
    """The norm is of what is trained: a frozen layer's gradient shrinks nobody else's step."""
    trained = {name: g for name, g in named(gradient(0)).items() if not name.startswith('encoder/')}
    norm = math.sqrt(sum(float((g**2).sum()) for g in trained.values()))
    before, after = (named(params) for params, _ in steps(make(freeze='encoder', clip_norm=1.0), 1))
    for name, g in trained.items():
        np.testing.assert_allclose(after[name], before[name] - 0.1 * g / norm, rtol=1e-5, atol=1e-6)


def test_ema():
    """a ← d a + (1 − d) p with d = min(decay, (1 + t) / (10 + t)), of the parameters after each step."""
    decay, trail = 0.3, steps(make(ema_decay=0.3), 8)
    average = named(PARAMS)
    seen = set()
    for t, (params, state) in enumerate(trail[1:]):
        d = min(decay, (1 + t) / (10 + t))
        seen.add(d == decay)
        average = {name: d * average[name] + (1 - d) * p for name, p in named(params).items()}
        found = optim.averaged({'model': params}, {'model': state})['model']
        for name, value in named(found).items():
            np.testing.assert_allclose(value, average[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert seen == {False, True}  # the ramp, and what follows it


def test_ema_of_frozen_and_scaled_parameters():
    """The average sees the final update. Frozen parameters have no copy, and are their own average to the bit."""
    config = make(ema_decay=0.9, freeze='encoder', learning_rate_rules=(('log', 0.0),))
    (params, state) = steps(config, 5)[-1]
    kept = {name for name in tree.flatten(state) if '/average/' in name}
    assert kept and not any('encoder' in name for name in kept)
    found = named(optim.averaged({'model': params}, {'model': state})['model'])
    np.testing.assert_array_equal(found['encoder/dense/kernel'], named(PARAMS)['encoder/dense/kernel'])
    assert len(jax.tree.leaves(optim.without_moments({'model': state}))) == 1 + len(kept)  # the count, and these
    for name, value in named(PARAMS).items():
        still = name.startswith('encoder/') or name == 'log_scale'
        assert np.allclose(found[name], value, rtol=1e-6, atol=0) == still, name


LAYERS = {
    'embed': {'embedding': jnp.ones((3, 2))}, 'position': {'embedding': jnp.ones((4, 2))},
    'block_0': {'query': {'kernel': jnp.ones((2, 2))}}, 'block_1': {'query': {'kernel': jnp.ones((2, 2))}},
    'norm': {'scale': jnp.ones(2)}, 'head': {'kernel': jnp.ones((2, 3))},
}  # fmt: skip
STACKED = {'blocks': {'query': {'kernel': jnp.ones((2, 2, 2))}}, **{k: v for k, v in LAYERS.items() if '_' not in k}}
STACKS = {
    f'{stack}_{i}': {'key': {'kernel': jnp.ones((2, 2))}}
    for stack, layers in (('encoder', 2), ('decoder', 3)) for i in range(layers)
} | {'decoder_bias': {'embedding': jnp.ones((2, 2))}, 'decoder_norm': {'scale': jnp.ones(2)}}  # fmt: skip
SCANNED_STACKS = {
    f'{stack}_blocks': {'key': {'kernel': jnp.ones((layers, 2, 2))}}
    for stack, layers in (('encoder', 2), ('decoder', 3))
}


def ratios(params, **fields) -> dict[str, np.ndarray]:
    """Of each parameter, its first update with layer_decay=0.5 over that without."""

    def update(decay):
        own = optim.optimizer(make(layer_decay=decay, **fields), params, TOTAL_STEPS, 'optim.model')
        draws = np.random.default_rng(0)
        grads = jax.tree.map(lambda leaf: jnp.asarray(draws.normal(size=leaf.shape), jnp.float32), params)
        return own.update(grads, own.init(params), params)[0]

    return named(jax.tree.map(lambda a, b: a / b, update(0.5), update(1.0)))


@pytest.mark.parametrize('fields', [
    dict(name='sgd'), dict(name='adamw', options=dict(weight_decay=0.1)),
    dict(name='muon', options=dict(muon_weight_dimension_numbers='block.*kernel')),
    dict(name='sgd', learning_rate_rules=(('head', 0.25),)),
], ids=lambda fields: '-'.join(fields))  # fmt: skip
def test_layer_decay(fields):
    """Of L layers, layer i learns at γ^(L − i) of the rate, the embeddings at γ^(L + 1), and what is above at 1."""
    expected = {'embed': 1 / 8, 'position': 1 / 8, 'block_0': 1 / 4, 'block_1': 1 / 2, 'norm': 1, 'head': 1}
    for name, ratio in ratios(LAYERS, **fields).items():
        np.testing.assert_array_equal(ratio, expected[name.split('/')[0]], err_msg=name)
    for name, ratio in ratios(STACKED, **fields).items():
        for i in range(2) if 'blocks' in name else ():
            np.testing.assert_array_equal(ratio[i], expected[f'block_{i}'])
        if 'blocks' not in name:
            np.testing.assert_array_equal(ratio, expected[name.split('/')[0]], err_msg=name)


def test_layer_decay_of_two_stacks_and_of_no_layers():
    found = {name.partition('/')[0]: ratio.min() for name, ratio in ratios(STACKS).items()}
    own = {f'{stack}_{i}': 0.5 ** (n - i) for stack, n in (('encoder', 2), ('decoder', 3)) for i in range(n)}
    assert found == own | {'decoder_bias': 1 / 16, 'decoder_norm': 1}
    for name, ratio in ratios(SCANNED_STACKS).items():
        one_by_one = [own[f'{name.split("_")[0]}_{i}'] for i in range(len(ratio))]
        np.testing.assert_array_equal(ratio, np.broadcast_to(np.reshape(one_by_one, (-1, 1, 1)), ratio.shape))
    assert 'optim.model.layer_decay: 0.9, but model has no layers block_0' in message(layer_decay=0.9)
    for decay in (0.0, 1.1, math.nan):
        assert 'optim.model.layer_decay' in message(layer_decay=decay)
    free = 'optim.model.layer_decay: optax.schedule_free_sgd is evaluated at an average of its own'
    with pytest.raises(UserError, match=free):
        optim.optimizer(make(name='schedule_free_sgd', layer_decay=0.9), LAYERS, TOTAL_STEPS, 'optim.model')


def test_ema_leaves_training_as_it_is():
    with_average, without = (steps(make(name='adam', ema_decay=decay), 4)[-1][0] for decay in (0.9, 0.0))
    assert_close(with_average, without)
    params, state = steps(make(), 1)[-1]
    assert optim.averaged({'model': params}, {'model': state})['model'] is params
    for decay in (-0.1, 1.0, 1.5, math.nan):
        assert 'optim.model.ema_decay' in message(ema_decay=decay)


@pytest.mark.parametrize('field', make())
def test_fields_that_are_missing_or_unknown(field):
    config = make()
    del config[field]
    with pytest.raises(UserError, match=rf'optim\.model\.{field}: this field is missing'):
        optim.optimizer(config, PARAMS, TOTAL_STEPS, 'optim.model')
    assert f'optim.model.{field}s: optim.model has no such field; did you mean {field}' in message(**{f'{field}s': 1})


def test_clipped_weights_stay_within_their_bound():
    """Algorithm 1 of Arjovsky et al. 2017: w ← clip(w − α g, −c, c), of which the average is told too."""
    free, clipped = steps(make(), 3), steps(make(clip_weights=0.25, ema_decay=0.5), 3)
    expected = jax.tree.map(lambda p, u: np.clip(p - 0.1 * u, -0.25, 0.25), PARAMS, gradient(0))
    assert any(np.abs(leaf).max() > 0.25 for leaf in jax.tree.leaves(free[1][0]))
    for ours, theirs in zip(jax.tree.leaves(clipped[1][0]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for params, _ in clipped[1:]:
        assert all(np.abs(leaf).max() <= 0.25 + 1e-6 for leaf in jax.tree.leaves(params))
    with pytest.raises(UserError, match='optim.model.clip_weights: -1'):
        steps(make(clip_weights=-1.0), 0)
    with pytest.raises(UserError, match='optim.model.clip_weights: would change'):
        steps(make(clip_weights=0.1, freeze='encoder'), 0)
