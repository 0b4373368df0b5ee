"""Results of methods that are kept with their object, and go when it goes."""

import functools
from collections.abc import Callable


def cached_method(method: Callable) -> Callable:
    """method(self, *args) computed once for each args, hashable. functools.lru_cache would keep every object for ever,
    since its cache belongs to the class."""
    name = f'_{method.__name__}_results'

    @functools.wraps(method)
    def cached(self, *args):
        results = vars(self).setdefault(name, {})
        if args not in results:
            results[args] = method(self, *args)
        return results[args]

    return cached
