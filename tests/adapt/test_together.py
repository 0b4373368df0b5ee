"""What is told of changes of a model that do nothing, or that are mostly meant otherwise."""

import pytest

from aigc_jax import adapt
from aigc_jax.runs import config as config_lib

INIT = ('init.run', 'runs/gpt')


@pytest.mark.parametrize('fields, said', [
    ([], []),
    ([('adapt.rank', '4')], ["adapt.rank: 4 does nothing where adapt.name is ''"]),
    ([('quantize.targets', 'up')], ["quantize.targets: 'up' does nothing where quantize.weights is ''"]),
    ([('prune.scope', 'global')], ["prune.scope: 'global' does nothing where prune.keep is 1.0"]),
    ([('distill.weight', '0.9')], ["distill.weight: 0.9 does nothing where distill.run is ''"]),
    ([('adapt.name', 'dora')],
     ['adapt.name: dora trains adapters alone, and init.run names no run: all other parameters stay as they are '
      'drawn']),
    ([('prune.keep', '0.5')],
     ['prune.keep: the weights are ranked as they are drawn; init.run or prune.run names a run to rank trained ones '
      'by, and prune.end ranks them while they are trained']),
    ([INIT, ('adapt.name', 'lora'), ('adapt.rank', '4')], []),
    ([INIT, ('prune.keep', '0.5'), ('prune.scope', 'global')], []),
    ([('prune.rules', "(('head', 0.5),)"), ('prune.end', '40')], []),
    ([('prune.run', 'runs/gpt'), ('prune.keep', '0.5')], []),
    ([INIT, ('quantize.weights', 'int8'), ('prune.keep', '0.5')], []),
    ([INIT, ('adapt.name', 'lora'), ('prune.keep', '0.5')],
     ['prune.keep: the adapters of lora are not pruned, and the merged kernels are not sparse']),
])  # fmt: skip
def test_what_is_told(fields, said, capsys):
    adapt.tell(config_lib.load('configs/gpt.py:smoke', fields))
    assert capsys.readouterr().err.splitlines() == [f'note: {line}' for line in said]
