"""Pictures of a language model: its loss beside what others reach, and where its heads look."""

import math

import numpy as np

from aigc_jax.plots.curves import draw_series, series_of
from aigc_jax.plots.figure import BLUE, ORANGE, new_figure, save_figure


def loss_against_tokens(rows: list[dict], path, read: int, epoch: int, splits: dict[str, str]) -> None:
    """Nats a token of a language model, from the rows of metrics.jsonl, against the tokens that it has read.

    What the final evaluation found beside the model (n-grams, their mixture with it, compressors) are lines; their bits
    a byte become nats a token of the same text. read: tokens a step; epoch: of the training text; splits: the names of
    those that 'eval' and 'final' are of. Replicas as in `curves.curves`; of a baseline, their median.
    """
    from matplotlib.ticker import EngFormatter, FuncFormatter, NullLocator

    panels = series_of(rows)
    nats, bits = (panels.get(metric, {}) for metric in ('nats_per_token', 'bits_per_byte'))
    names = {'train': 'train'} | splits
    figure = new_figure(6.4, 4.2, layout='constrained')
    axes = figure.add_subplot()
    drawn = [
        draw_series(axes, _against(by_seed, read), split, colour, False, f'model, {names[split]}')
        for (split, colour) in (('train', '0.6'), ('eval', BLUE), ('final', BLUE))
        if (by_seed := nats.get(('model', split)))
    ]
    if not any(drawn):
        axes.text(0.5, 0.5, 'no finite value', ha='center', va='center', color='0.5')
        axes.set_axis_off()
        return save_figure(figure, path)
    axes.set_xscale('log')
    low, high = axes.get_xlim()
    axes.set_xticks(_ticks(low, high))
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel('tokens read')
    axes.set_ylabel('nats a token')
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    epochs = axes.secondary_xaxis('top', functions=(lambda x: x / epoch, lambda x: x * epoch))
    epochs.set_xticks(_ticks(low / epoch, high / epoch))
    epochs.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}'))
    epochs.xaxis.set_minor_locator(NullLocator())
    epochs.set_xlabel('epochs')
    baselines = _baselines(nats, bits)
    for value in baselines.values():
        axes.axhline(value, color=ORANGE, linewidth=0.9, linestyle=(0, (6, 2)), zorder=1.5)
    labels = baselines | {'model': _last(nats, 'model')} if _last(nats, 'model') else baselines
    _label_right(axes, labels, names['final'])
    # Below the axes: within them it hid the last values of a model that was worse than its baselines.
    figure.legend(loc='outside lower center', ncols=3, fontsize=9, frameon=False)
    save_figure(figure, path)


def attention(weights, labels: list[str], path) -> None:
    """Attention maps: weights (layers, heads, L, L), each query a row, over its keys; labels: the L tokens' texts.

    Of more than 6 layers or heads, 6 that lie evenly among them.
    """
    from matplotlib.colors import PowerNorm

    weights, length = np.asarray(weights, np.float64), len(labels)
    layers, heads = (np.unique(np.linspace(0, n - 1, 6).round().astype(int)) for n in weights.shape[:2])
    later = np.triu(np.ones((length, length), bool), 1)
    marks = [_mark(label) for label in labels]
    turned = 90 if max(map(len, marks)) > 1 else 0
    font = {'fontsize': 6, 'family': 'monospace', 'parse_math': False}
    side, gap, left, bottom, top, right = 0.085 * length, 0.1, 0.55, 0.25, 0.3, 0.95  # inches
    if turned:
        left, bottom = 0.85, 0.55
    wide, tall = (n * (side + gap) - gap for n in (len(heads), len(layers)))
    width, height = left + wide + right, bottom + tall + top
    figure = new_figure(width, height)
    # Placed by hand: a layout engine would take seconds, at each evaluation.
    place = {'left': left / width, 'right': (left + wide) / width, 'bottom': bottom / height, 'top': 1 - top / height}
    spaces = {'wspace': gap / side, 'hspace': gap / side}
    panels = figure.subplots(len(layers), len(heads), squeeze=False, gridspec_kw=place | spaces)
    for layer, line in zip(layers, panels, strict=True):
        for head, axes in zip(heads, line, strict=True):
            shown = np.ma.array(weights[layer, head], mask=later)
            # A square root: most weights are small, and still tell where a head looks.
            image = axes.imshow(shown, cmap='Blues', norm=PowerNorm(0.5, 0, 1), interpolation='nearest')
            axes.set_facecolor('0.93')
            axes.tick_params(length=0, pad=1.5)
            axes.set_yticks(*((range(length), marks) if head == heads[0] else ([], [])), **font)
            axes.set_xticks(*((range(length), marks) if layer == layers[-1] else ([], [])), rotation=turned, **font)
            axes.spines[:].set_visible(False)
            if layer == layers[0]:
                axes.set_title(f'head {head + 1}', fontsize=9)
        line[0].set_ylabel(f'layer {layer + 1}', fontsize=9)
    beside = figure.add_axes([(left + wide + 0.12) / width, bottom / height, 0.14 / width, tall / height])
    bar = figure.colorbar(image, cax=beside, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.set_label('weight of a key (column) for a query (row)', fontsize=9)
    bar.ax.tick_params(labelsize=8)
    save_figure(figure, path)


def _against(by_seed: dict, read: int) -> dict:
    """{seed: {step: value}} by the tokens that were read instead; none were before the first step."""
    return {seed: {step * read: value for step, value in values.items() if step} for seed, values in by_seed.items()}


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high], or 1 to 9 times where less than three of those lie there."""
    powers = 10.0 ** np.arange(math.floor(math.log10(low)), math.log10(high))
    for times in ((1, 2, 5), range(1, 10)):
        ticks = [tick for power in powers for tick in np.multiply(power, times) if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks


def _last(metric: dict, player: str) -> float | None:
    """The final evaluation's value of a player, or the median over its replicas; None where there is none."""
    by_seed = metric.get((player, 'final'), {})
    values = [value for values in by_seed.values() for value in values.values() if math.isfinite(value)]
    return float(np.median(values)) if values else None


def _baselines(nats: dict, bits: dict) -> dict[str, float]:
    """Nats a token of whoever is no model, worst first."""
    found = {player: _last(nats, player) for player, split in nats if split == 'final' and player != 'model'}
    ours, ours_bits = _last(nats, 'model'), _last(bits, 'model')
    for player, split in bits:
        if split == 'final' and (player, 'final') not in nats and ours and ours_bits:
            found[player] = _last(bits, player) * ours / ours_bits
    return dict(sorted(((k, v) for k, v in found.items() if v), key=lambda item: -item[1]))


def _label_right(axes, values: dict[str, float], split: str) -> None:
    """Names and values right of the axes, at their heights, moved apart where they would overlap."""
    if not values:
        return
    low, high = axes.get_ylim()
    gap, places = 0.052, []
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        place = (value - low) / (high - low)
        places.append([max(place, places[-1][0] + gap) if places else place, place, name, value])
    for place, exact, name, value in places:
        axes.annotate(
            f'{name} {value:.3f}', (1, exact), (1.03, place), xycoords='axes fraction', fontsize=8.5, va='center',
            color=BLUE if name == 'model' else ORANGE,
            arrowprops={'arrowstyle': '-', 'lw': 0.6, 'color': '0.6', 'shrinkA': 0, 'shrinkB': 0, 'relpos': (0, 0.5)},
        )  # fmt: skip
    axes.annotate(
        f'on {split}:', (1.03, places[-1][0] + 1.2 * gap), xycoords='axes fraction', fontsize=8.5, color='0.3'
    )


def _mark(label: str) -> str:
    """A token's text where there is little room: blanks to be seen, long ones cut, what the font lacks a box."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont('DejaVu Sans Mono'))
    text = label.replace(' ', '␣').replace('\n', '⏎').replace('\t', '⇥')
    text = ''.join(letter if font.get_char_index(ord(letter)) and letter.isprintable() else '□' for letter in text)
    return text if len(text) <= 8 else text[:7] + '…'
