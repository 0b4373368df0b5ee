"""Parameters of layers one by one, and of layers in a loop (model.scan_layers)."""

import jax
import jax.numpy as jnp


def stacked(params: dict) -> dict:
    """'block_0' and on as 'blocks', 'encoder_0' and on as 'encoder_blocks', and the same of the decoder."""
    found, layers = {}, {}
    for name, part in params.items():
        stack, _, i = name.rpartition('_')
        if i.isdigit():
            layers.setdefault('blocks' if stack == 'block' else f'{stack}_blocks', {})[int(i)] = part
        else:
            found[name] = part
    for name, parts in layers.items():
        found[name] = jax.tree.map(lambda *x: jnp.stack(x), *(parts[i] for i in sorted(parts)))
    return found
