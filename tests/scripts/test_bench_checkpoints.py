"""The workloads of scripts/bench.py that begin with a checkpoint: both sides read the same."""

import math
import pathlib
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from aigc_jax.adapt import huggingface

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'scripts'))

import bench_worker  # noqa: E402
from bench_checkpoints import CHECKPOINTS, CLS, END, SEP, FineTuning, Loading, Peak  # noqa: E402

TINY = {name: workload.tiny() for name, workload in CHECKPOINTS.items()}


@pytest.mark.parametrize('name', TINY)
def test_what_is_written_is_a_checkpoint_and_its_texts(name, tmp_path):
    workload = TINY[name]
    folder = huggingface.Folder(workload.write(str(tmp_path / 'folder')))
    assert huggingface.fields_of(folder)['model.layers'] == 1
    sources, told = workload.rows()
    assert sources.shape == (64, 12) and len(folder.files[0].with_name('train.jsonl').read_text().splitlines()) == 64
    if workload.kind == 'bert':
        assert (sources[:, 0] == CLS).all() and (sources[:, -1] == SEP).all() and set(told) == {False, True}
    else:
        assert (sources[:, -1] == END).all() and told.shape == (64, 8)
        np.testing.assert_array_equal(told[:, :-1], sources[:, :7])


@pytest.mark.parametrize('name,contender', [
    (name, contender) for name, workload in TINY.items() for contender in bench_worker.contenders(workload)
    if 'compiled' not in contender
])  # fmt: skip
def test_a_contender_trains_or_writes(name, contender, tmp_path):
    workload = TINY[name]
    for module in bench_worker.missing(bench_worker.contenders(workload)[contender][0]):
        pytest.skip(f'{module} is not installed')
    built = bench_worker.build(workload, contender, workload.write(str(tmp_path / 'folder')))
    first, second = (built.score(built.run(workload.unit)) for _ in range(2))
    if isinstance(workload, Loading):
        weights = load_file(tmp_path / 'folder' / 'model.safetensors').values()
        assert built.parameters == sum(x.size for x in weights)
        assert first == second == pytest.approx(sum((x**2).sum() for x in weights) / built.parameters, rel=1e-5)
    if not isinstance(workload, FineTuning):
        assert first == second
    else:
        assert first != second
        assert first == pytest.approx(math.log(2 if workload.kind == 'bert' else workload.vocab_size), rel=0.2)


def test_the_peak_is_what_a_block_adds_at_most():
    """Of two blocks the larger, and of memory that is freed again."""
    peak = Peak()
    for megabytes in (8, 64, 1):
        with peak:
            np.ones(megabytes << 20, np.uint8).sum()
    assert 60e6 < peak.most < 100e6
