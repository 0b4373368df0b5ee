"""Names of metrics, as a person may shorten them."""

from collections.abc import Collection


def named(metric: str, names: Collection[str]) -> str | None:
    """Which of `names` is meant: `metric` itself, or the only one that goes on with _, as samples/frechet is
    samples/frechet_2000_classifier-0123abcd. None: there is no such name, or there are several."""
    if metric in names:
        return metric
    longer = [name for name in names if name.startswith(f'{metric}_')]
    return longer[0] if len(longer) == 1 else None
