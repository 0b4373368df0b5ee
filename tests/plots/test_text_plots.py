"""text_plots.py: what the figures hold, and that the maps are the attention's own weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from aigc_jax.core import rng
from aigc_jax.core.capabilities import CausalText
from aigc_jax.core.types import Extra
from aigc_jax.data import Tokenizer, Tokens
from aigc_jax.plots import text as plots_text
from aigc_jax.plots.figure import ORANGE
from aigc_jax.reports import pictures
from aigc_jax.runs import config
from aigc_jax.runs.experiment import Experiment

SPLITS = {'eval': 'valid', 'final': 'test'}


pytestmark = pytest.mark.usefixtures('warnings_fail')


def rows(seed=None, add=0.0):
    own = {} if seed is None else {'seed': seed}
    found = [
        {'step': s, 'split': split, 'model/nats_per_token': v + add, 'model/grad_norm': 1.0} | own
        for s, split, v in ((0, 'eval', 5.0), (10, 'train', 3.0), (20, 'train', 2.0), (20, 'eval', 2.5))
    ]
    # 0.5 nats a token are 1 bit a byte
    final = {'model/nats_per_token': 2.0 + add, 'model/bits_per_byte': 2 * (2.0 + add), '5-gram/nats_per_token': 1.75}
    final |= {'5-gram/bits_per_byte': 3.5, 'mixture/nats_per_token': 1.74, 'xz/bits_per_byte': 3.0}
    return [*found, {'step': 20, 'split': 'final'} | final | own]


def test_loss_against_tokens_with_the_baselines_as_lines(tmp_path, figure):
    plots_text.loss_against_tokens(rows(), tmp_path / 'loss.png', 512, 1000, SPLITS)
    axes = figure[0].axes[0]
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert drawn['model, train'] == ([5120, 10240], [3.0, 2.0])
    assert drawn['model, valid'] == ([10240], [2.5]) and drawn['model, test'] == ([10240], [2.0])
    lines = [line.get_ydata()[0] for line in axes.lines if line.get_color() == ORANGE]
    assert lines == [1.75, 1.74, 1.5]  # compressors in nats a token
    labels = [text for text in axes.texts if text.get_text()[-1].isdigit()]
    assert [text.get_text() for text in labels] == ['xz 1.500', 'mixture 1.740', '5-gram 1.750', 'model 2.000']
    assert min(np.diff([text.xyann[1] for text in labels])) > 0.05  # of the axes' height: none lies on another
    (legend,) = figure[0].legends  # outside of the axes it hides no value
    assert not legend.get_window_extent().overlaps(axes.get_window_extent()) and axes.get_legend() is None
    assert imread(tmp_path / 'loss.png').size


def test_loss_before_the_end_has_no_baselines_and_replicas_a_median(tmp_path, figure):
    every = [row for k, add in enumerate((0.0, 0.1, 0.5)) for row in rows(k, add)]
    plots_text.loss_against_tokens(
        [row for row in every if row['split'] != 'final'], tmp_path / 'a.png', 8, 1000, SPLITS
    )
    assert not any(line.get_color() == ORANGE for line in figure[0].axes[0].lines)
    plots_text.loss_against_tokens(every, tmp_path / 'a.png', 8, 1000, SPLITS)
    drawn = {line.get_label(): list(line.get_ydata()) for line in figure[1].axes[0].lines}
    np.testing.assert_allclose(drawn['model, train'], [3.1, 2.1])
    assert 'model 2.100' in [text.get_text() for text in figure[1].axes[0].texts]


@pytest.mark.parametrize('values', [[], [None, math.nan], [0.0], [1.0, None, 2.0], [2.0, 2.0]])
def test_loss_of_few_or_bad_values_draws_without_a_warning(tmp_path, figure, values):
    some = [{'step': i + 1, 'split': 'train', 'model/nats_per_token': v} for i, v in enumerate(values)]
    plots_text.loss_against_tokens(some, tmp_path / 'loss.png', 512, 10**9, SPLITS)
    finite = [v for v in values if v is not None and math.isfinite(v)]
    assert ['no finite value'] * (not finite) == [text.get_text() for text in figure[0].axes[0].texts]


@pytest.mark.parametrize('layers, heads, shown', [(1, 1, (1, 1)), (2, 3, (2, 3)), (12, 8, (6, 6))])
def test_attention_is_a_grid_of_layers_and_heads(tmp_path, figure, layers, heads, shown):
    weights = np.random.default_rng(0).random((layers, heads, 4, 4))
    plots_text.attention(weights, ['$a$', '\n', ' the', '\x00\U0001f600'], tmp_path / 'attention.png')
    panels = [axes for axes in figure[0].axes if axes.images]
    assert len(panels) == shown[0] * shown[1]
    titles = [axes.get_title() for axes in panels if axes.get_title()]
    assert len(titles) == shown[1] and titles[-1] == f'head {heads}'
    assert [axes.get_ylabel() for axes in panels if axes.get_ylabel()][-1] == f'layer {layers}'
    last = panels[-1]
    image = last.images[0].get_array()
    np.testing.assert_array_equal(image.mask, np.triu(np.ones((4, 4)), 1))  # a query sees no later key
    np.testing.assert_array_equal(image.compressed(), weights[-1, -1][np.tril_indices(4)])
    assert [label.get_text() for label in last.get_xticklabels()] == ['$a$', '⏎', '␣the', '□□']


def test_a_letter_of_several_tokens_stands_at_its_last():
    tokenizer = Tokenizer('byte', (), has_end=False)
    tokens = tokenizer.encode('für\n€')
    assert pictures.texts_of_each(tokenizer, tokens) == ['f', '◌', 'ü', 'r', '\n', '◌', '◌', '€']
    cut = tokenizer.encode('ürää')[1:-1]  # a window begins and ends within a letter
    assert pictures.texts_of_each(tokenizer, cut) == ['◌', 'r', '◌', 'ä', '◌']


def test_the_maps_are_the_weights_by_which_values_are_mixed():
    """One layer, no position, q = k = 0 but for the mask: each query looks at all keys before it alike."""
    overrides = [('model.layers', '1'), ('model.window', '3'), ('model.attention', 'xla'), ('model.remat', 'True')]
    experiment = Experiment(config.load('configs/gpt.py:smoke', overrides))
    params, _ = jax.jit(experiment.task.init)(rng.stream(0, 'init'))
    tokens = jnp.arange(12).reshape(2, 6)
    attention = experiment.task.get(CausalText).attention
    weights = np.asarray(attention(params, Extra({}, {}), tokens))
    assert weights.shape == (1, 2, 2, 6, 6)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    band = np.tril(np.ones((6, 6))) - np.tril(np.ones((6, 6)), -3)
    assert ((weights > 0) == band).all()
    params['model']['block_0']['query'] = jax.tree.map(jnp.zeros_like, params['model']['block_0']['query'])
    alike = np.asarray(attention(params, Extra({}, {}), tokens))
    np.testing.assert_allclose(alike, np.broadcast_to(band / band.sum(axis=1, keepdims=True), alike.shape), rtol=1e-5)


def test_a_sample_ends_with_its_text(tmp_path):
    class Run:
        class dataset:  # noqa: N801
            spec = Tokens(4, Tokenizer('byte', (), has_end=True))

    samples = np.array([[104, 105, 256, 0, 0], [104, 105, 33, 33, 33]])
    pictures.save_samples(tmp_path / 'x', Run, samples, None)
    assert (tmp_path / 'x.txt').read_text() == 'hi\n' + 40 * '─' + '\nhi!!!\n'
