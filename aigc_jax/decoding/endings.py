"""How a text that a grammar constrains can end: a short sequence of tokens after which it is whole.

The library llguidance says what may come next, and not how far the end is. So a way to end is kept all the time: after
each token a breadth-first search makes the way that was known before into the next one.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

_LOOKED_AT = 400  # beginnings that a search looks at, before it gives up
_ALIKE = 2  # of those after which the same may come, so many are gone on with


def tail(matcher: Any, way: Sequence[int], end: int, most: int) -> list[int] | None:
    """The shortest tail of `way`, of at most so many tokens, after which the text may end; None: there is none.

    matcher: an llguidance.LLMatcher, which stands as before when this returns; end: the token of the end.
    """
    if most >= 0 and matcher.is_accepting():
        return []
    tails = (list(way[i:]) for i in range(len(way) - 1, max(0, len(way) - most) - 1, -1))
    return next((found for found in tails if matcher.validate_tokens([*found, end]) == len(found) + 1), None)


def way_to_end(
    matcher: Any, before: Sequence[int], letters: Sequence[int], end: int, most: int | None = None
) -> list[int] | None:
    """Tokens, at most so many, after which the text may end; None: none were found.

    A sequence of few `letters` that are not forced, and a tail of `before`, which ended the text one token ago: so what
    has been opened long ago need not be found again. Other tokens are tried where no letter is allowed.
    """
    most = len(before) + _LOOKED_AT if most is None else most
    if most < 0 or (found := tail(matcher, before, end, most)) is not None:
        return None if most < 0 else found
    paths, met, trial = deque([()]), Counter(), matcher.deep_copy()
    for _ in range(_LOOKED_AT):
        if not paths:
            return None
        path = paths.popleft()
        if len(path) >= most:
            continue
        trial.try_consume_tokens(list(path))
        allowed = np.unpackbits(np.frombuffer(trial.compute_bitmask(), np.uint8), bitorder='little')
        allowed[end] = 0
        choices = [token for token in letters if allowed[token]] or np.flatnonzero(allowed).tolist()
        for token in choices:
            trial.consume_token(token)
            if (found := tail(trial, before, end, most - len(path) - 1)) is not None:
                return [*path, token, *found]
            kind = trial.compute_bitmask()
            if trial.is_error():  # no token can follow, and what stands there is no whole text
                trial = matcher.deep_copy()
                trial.try_consume_tokens(list(path))
                continue
            met[kind] += 1
            if len(choices) == 1:  # what is forced, as an indent, is no step of the search
                paths.appendleft((*path, token))
            elif met[kind] <= _ALIKE:
                paths.append((*path, token))
            trial.rollback(1)
        trial.rollback(len(path))
    return None
