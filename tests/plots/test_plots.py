"""plots/: the pixels where they are exact, the figure's contents where they are not."""

import gc
import math
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.image import imread

from aigc_jax.core.errors import RunError
from aigc_jax.plots import curves as plots_curves
from aigc_jax.plots import images as plots_images
from aigc_jax.plots import points as plots_points
from aigc_jax.plots.figure import BLUE, ORANGE

RING = SimpleNamespace(means=np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0]]), std=0.02)
SPLITS = {'eval': 'valid', 'final': 'test'}


pytestmark = pytest.mark.usefixtures('warnings_fail')


def read(path):
    return np.rint(255 * imread(path)[..., :3]).astype(int)


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_image_grid_is_exact(tmp_path, channels):
    x = np.random.default_rng(0).uniform(-0.2, 1.2, (5, 8, 8, channels))
    plots_images.image_grid(x, tmp_path / 'new' / 'grid.png', columns=3)
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['grid.png']
    picture = read(tmp_path / 'new' / 'grid.png')
    assert picture.shape == (2 * 50 + 2, 3 * 50 + 2, 3)  # 8 pixels enlarged by 6, and gaps of 2
    want = np.rint(255 * np.clip(x[..., : 3 if channels > 2 else 1].astype(np.float32), 0, 1))
    for i in range(5):
        top, left = 2 + i // 3 * 50, 2 + i % 3 * 50
        tile = picture[top : top + 48, left : left + 48]
        for dy, dx in ((0, 0), (5, 5), (2, 3)):  # every pixel became a square of one colour
            np.testing.assert_array_equal(tile[dy::6, dx::6], np.broadcast_to(want[i], (8, 8, 3)))
    assert (picture[:, :2] == 255).all() and (picture[52:, 102:] == 255).all()


def test_image_grid_is_square_by_default_and_leaves_large_images_alone(tmp_path):
    plots_images.image_grid(np.zeros((9, 64, 64, 1)), tmp_path / 'grid.png')
    assert read(tmp_path / 'grid.png').shape == (3 * 66 + 2, 3 * 66 + 2, 3)


@pytest.mark.parametrize('shape', [(0, 8, 8, 1), (4, 8, 8)])
def test_image_grid_refuses(tmp_path, shape):
    with pytest.raises(ValueError, match='images must have shape'):
        plots_images.image_grid(np.zeros(shape), tmp_path / 'grid.png')
    assert not list(tmp_path.iterdir())


def test_reconstructions_lie_below_their_originals(tmp_path, figure):
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 20, 8, 8, 1))
    plots_images.reconstructions(x, y, tmp_path / 'r.png')
    assert [text.get_text() for text in figure[0].texts] == ['original', 'reconstruction'] * 2
    picture = read(tmp_path / 'r.png')

    def tile(row, column):
        top = 12 + 2 + row * 52 + row // 2 * 12
        return picture[top : top + 48 : 6, 130 + 2 + 50 * column : 130 + 50 * column + 50 : 6, 0]

    for index in (0, 15, 16, 19):  # 16 to a row
        row, column = 2 * (index // 16), index % 16
        np.testing.assert_array_equal(tile(row, column), np.rint(255 * x[index, ..., 0]))
        np.testing.assert_array_equal(tile(row + 1, column), np.rint(255 * y[index, ..., 0]))
    with pytest.raises(ValueError, match='differ'):
        plots_images.reconstructions(x, y[:5], tmp_path / 'r.png')


def tile_of(picture, left, top):
    """One of 8 x 8 pixels, each enlarged by 6."""
    return picture[top + 2 : top + 50 : 6, left + 2 : left + 50 : 6, 0]


def test_classes_are_rows_with_their_names(tmp_path, figure):
    x = np.random.default_rng(0).random((14, 8, 8, 1))
    plots_images.image_classes(x, ['cat'] * 6 + ['$5 or $6'] * 8, tmp_path / 'c.png')
    assert [text.get_text() for text in figure[0].texts] == ['cat', '$5 or $6']
    picture = read(tmp_path / 'c.png')
    places = [(0, i) for i in range(4)] + [(1, i) for i in range(2)] + [(2 + i // 4, i % 4) for i in range(8)]
    for image, (row, column) in zip(x, places, strict=True):
        shown = tile_of(picture, 130 + 50 * column, 52 * row)
        np.testing.assert_array_equal(shown, np.rint(255 * image[..., 0]))
    heights = [text.get_position()[1] * picture.shape[0] for text in figure[0].texts]
    np.testing.assert_allclose(heights, [4 * 52 - 26, 2 * 52 - 26])  # beside the first line of each


def test_many_classes_stand_above_their_images(tmp_path, figure):
    x, names = np.random.default_rng(0).random((9, 8, 8, 1)), [f'{i:03}' for i in range(7)] + ['a' * 10, 'b' * 30]
    plots_images.image_classes(x, names, tmp_path / 'c.png')
    assert [text.get_text() for text in figure[0].texts[:8]] == names[:8]
    assert re.fullmatch('b{7,10}…', figure[0].texts[8].get_text())
    picture = read(tmp_path / 'c.png')
    for index, (image, text) in enumerate(zip(x, figure[0].texts, strict=True)):
        left, top = 12 + 50 * (index % 3), 18 + 70 * (index // 3)
        np.testing.assert_array_equal(tile_of(picture, left, top), np.rint(255 * image[..., 0]))
        box = text.get_window_extent()  # from below
        assert left <= box.x0 and box.x1 <= left + 52, text
        assert 0 <= picture.shape[0] - box.y0 - (top - 18) <= 19


def test_classes_stand_above_pairs_and_columns(tmp_path, figure):
    x = np.random.default_rng(0).random((20, 8, 8, 1))
    names = [str(i) for i in range(20)]
    plots_images.reconstructions(x, x, tmp_path / 'r.png', names)
    shown = [text.get_text() for text in figure[0].texts]
    assert shown == ['original', *names[:16], 'reconstruction', 'original', *names[16:], 'reconstruction']
    np.testing.assert_array_equal(
        tile_of(read(tmp_path / 'r.png'), 130 + 50 * 3, 2 * 18 + 2 * 52), np.rint(255 * x[19, ..., 0])
    )
    plots_images.image_rows([('a', x[:3]), ('b', x[3:6])], tmp_path / 'p.png', 2, [names[:3]])
    assert [text.get_text() for text in figure[1].texts] == ['a', '0', '1', '2', 'b']


def test_curves_one_panel_a_metric_one_colour_a_player(tmp_path, figure):
    rows = [
        {'step': s, 'split': split, 'disc/loss': s, 'gen/loss': 2 * s, 'gen/grad_norm': s, 'gen/acc': 1}
        for s in (1, 2, 3)
        for split in ('train', 'eval')
    ]
    plots_curves.curves(rows, tmp_path / 'c.png', SPLITS)
    panels = {axes.get_title(loc='left'): axes for axes in figure[0].axes}
    assert list(panels) == ['loss', 'acc', 'grad_norm']
    assert [panels[name].get_yscale() for name in panels] == ['linear', 'linear', 'log']
    drawn = {(line.get_color(), line.get_marker()): list(line.get_ydata()) for line in panels['loss'].lines}
    assert drawn == {
        (BLUE, 'None'): [1, 2, 3],
        (BLUE, 'o'): [1, 2, 3],
        (ORANGE, 'None'): [2, 4, 6],
        (ORANGE, 'o'): [2, 4, 6],
    }
    labels = [text.get_text() for text in figure[0].legends[0].get_texts()]
    assert labels == ['disc', 'gen', 'train', 'valid']


def test_curves_of_a_single_player_have_its_colour_with_and_without_its_name(tmp_path, figure):
    rows = [{'step': s, 'split': 'train', 'model/accuracy': 0.1 * s} for s in (1, 2)]
    plots_curves.curves([*rows, {'step': 2, 'split': 'eval', 'accuracy': 0.1}], tmp_path / 'c.png', SPLITS)
    train, evaluated = figure[0].axes[0].lines
    (legend,) = figure[0].legends
    assert legend.get_texts()[0].get_text() == 'model'
    assert train.get_color() == evaluated.get_color() == legend.get_lines()[0].get_color()


def test_curves_of_replicas_show_each_and_the_median(tmp_path, figure):
    rows = [
        {'step': s, 'split': 'train', 'seed': seed, 'm/loss': value}
        for s in (1, 2)
        for seed, value in ((0, 1.0), (1, 5.0), (2, 6.0 if s == 1 else None))
    ]
    plots_curves.curves(rows, tmp_path / 'c.png', SPLITS)
    lines = figure[0].axes[0].lines
    assert len(lines) == 4
    assert list(lines[-1].get_ydata()) == [5.0, 3.0]
    assert lines[-1].get_linewidth() > 3 * max(line.get_linewidth() for line in lines[:-1])


@pytest.mark.parametrize(
    'values',
    [
        [math.nan, None, math.inf],
        [None],
        [2.0],
        [math.nan, 3.0, math.nan],
        [0.0, -1.0],
        [1.0, math.nan, 2.0],
    ],
)
def test_curves_of_few_or_bad_values_draw_without_a_warning(tmp_path, figure, values):
    rows = [{'step': 10 * i, 'split': 'train', 'm/loss': v, 'm/grad_norm': v} for i, v in enumerate(values)]
    plots_curves.curves(rows, tmp_path / 'c.png', SPLITS)
    finite = [v for v in values if v is not None and math.isfinite(v)]
    axes = figure[0].axes[0]
    assert ['no finite value'] * (not finite) == [text.get_text() for text in axes.texts]
    assert len(finite) != 1 or axes.lines[0].get_marker() == '.'


@pytest.mark.parametrize('count', [0, 1, 14])
def test_curves_any_number_of_panels(tmp_path, figure, count):
    row = {'step': 1, 'split': 'final'} | {f'm/{i}': 1.0 for i in range(count)}
    plots_curves.curves([row], tmp_path / 'c.png', SPLITS)
    assert len(figure[0].axes) == count and read(tmp_path / 'c.png').size


def test_points_shows_and_counts(tmp_path, figure):
    rng = np.random.default_rng(0)
    real = RING.means[rng.integers(3, size=300)] + 0.02 * rng.normal(size=(300, 2))
    generated = np.concatenate([np.full((7, 2), 99.0), [[np.nan, 0.0]], RING.means + [0.02, 0]])
    xs, ys = np.linspace(-3, 3, 13), np.linspace(-2.5, 2.5, 11)
    values = np.add.outer(ys, xs)
    values[0, 0] = -np.inf
    plots_points.points(tmp_path / 'p.png', real, generated, real, RING, (xs, ys, values, 'D(x)'))
    data, samples, recentred = figure[0].axes[:3]
    assert samples.get_xlim() == (-3, 3) and samples.get_ylim() == (-2.5, 2.5)
    for axes, count, std in ((samples, 3, RING.std), (recentred, 1, 1.0)):
        rings = [part for part in axes.collections if isinstance(part, EllipseCollection)]
        assert [len(part.get_offsets()) for part in rings] == [count] * 3
        np.testing.assert_allclose([part.get_widths()[0] for part in rings], 2 * std * np.arange(1, 4))
    labels = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure[0].axes[:3]]
    assert labels[0] == ['real', 'reconstructed']
    assert labels[1] == ['generated (8 of 11 outside)']
    assert labels[2][1] == 'generated (8 of 11 outside)'
    near = next(c for c in recentred.collections if len(c.get_offsets()) == 3)
    np.testing.assert_allclose(near.get_offsets(), [[1, 0]] * 3, atol=1e-9)  # one std right of each mode


@pytest.mark.parametrize(
    'surface',
    [
        None,
        (np.arange(3.0), np.arange(4.0), np.ones((4, 3)), 'D(x)'),
        (np.arange(3.0), np.arange(4.0), np.full((4, 3), np.nan), 'D(x)'),
    ],
)
def test_points_without_modes_and_on_a_flat_surface(tmp_path, figure, surface):
    x = np.random.default_rng(0).normal(size=(50, 2))
    for density in (None, SimpleNamespace(means=np.zeros((1, 2)), std=1.0)):
        plots_points.points(tmp_path / 'p.png', x, x, density=density, surface=surface)
        assert len(figure[-1].axes) == 2 + (surface is not None)
        if surface is not None:
            assert figure[-1].axes[0].get_xlim() == (0, 2) and figure[-1].axes[1].get_ylim() == (0, 3)


def test_a_picture_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / 'grid.png'
    path.write_bytes(b'old')

    def full(_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(RunError, match='grid.png: No space left'):
        plots_images.image_grid(np.zeros((1, 8, 8, 1)), path)
    assert path.read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1


def test_what_other_tests_left_behind_does_not_fail_one_whose_warnings_do():
    """The garbage collector may find, in the middle of a test, an open file or an object whose deletion fails."""

    class Stubborn:
        def __del__(self):
            raise OSError('closed already')

    left = [open(__file__), Stubborn()]
    left.append(left)
    del left
    gc.collect()
    with pytest.raises(UserWarning, match='of the test itself'):
        warnings.warn('of the test itself', stacklevel=1)


def test_import_brings_neither_matplotlib_nor_tensorboard():
    code = (
        'import sys, aigc_jax.plots, aigc_jax.runs.logs\n'
        'print([m for m in ("matplotlib", "tensorboardX") if m in sys.modules])'
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == '[]\n'
