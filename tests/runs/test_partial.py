"""Which parameters a run takes from another model: what is told of them."""

import numpy as np
from ml_collections import ConfigDict

from aigc_jax.runs import partial

KERNEL, SCALE = np.zeros((4, 3)), np.zeros((1, 3))
INIT = ConfigDict({'rename': (), 'drawn': '', 'unused': ''})


def test_scales_that_gptq_computes_are_not_told_to_be_drawn(capsys):
    params = {'model': {'head': {'kernel': KERNEL}, 'quantize': {'head.kernel': SCALE}}}
    found = partial.of(INIT, params, {'model/head/kernel': (4, 3)}, 'runs/gpt')
    assert found.drawn == {'model/quantize/head.kernel'}
    assert '12 parameters (1 arrays) loaded, 0 parameters (0 arrays) drawn' in capsys.readouterr().err


def test_what_is_taken_is_told_where_all_of_it_is(capsys):
    partial.of(INIT, {'model': {'head': {'kernel': KERNEL}}}, {'model/head/kernel': (4, 3)}, 'runs/gpt')
    assert capsys.readouterr().err == (
        'note: runs/gpt: 12 parameters (1 arrays) loaded, 0 parameters (0 arrays) drawn, '
        '0 parameters (0 arrays) left\n'
    )


def test_adapters_are_told_to_be_drawn(capsys):
    params = {'model': {'head': {'kernel': KERNEL}, 'lora': {'head': {'a': np.zeros((4, 2)), 'b': np.zeros((2, 3))}}}}
    partial.of(INIT, params, {'model/head/kernel': (4, 3)}, 'runs/gpt')
    assert '12 parameters (1 arrays) loaded, 14 parameters (2 arrays) drawn' in capsys.readouterr().err
