"""scripts/bench.py: each contender builds, trains and says what it is, in the process that the benchmark starts."""

import importlib.util
import math
import pathlib
import sys

import pytest

PATH = pathlib.Path(__file__).parent.parent / 'scripts' / 'bench.py'
spec = importlib.util.spec_from_file_location('bench', PATH)
bench = importlib.util.module_from_spec(spec)
sys.modules['bench'] = bench  # where dataclasses looks its annotations up
spec.loader.exec_module(bench)


def dense(*sizes):
    return sum(a * b + b for a, b in zip(sizes, sizes[1:], strict=False))


PARAMETERS = {
    'vae': dense(784, 128, 64, 2 * 2) + dense(2, 64, 128, 784),
    'gan': dense(2, 128, 64, 2) + dense(2, 128, 64, 1),
}


@pytest.mark.parametrize('name', bench.CONTENDERS)
@pytest.mark.parametrize('workload', bench.WORKLOADS)
def test_a_contender_trains_what_the_others_train(workload, name, tmp_path):
    imports = bench.CONTENDERS[name][0]
    for module in imports:
        if importlib.util.find_spec(module.partition('.')[0]) is None:
            pytest.skip(f'{module} is not installed')
    if name == 'PyTorch, compiled':
        pytest.skip('compiles for a minute; its code is that of PyTorch')
    data_file = bench.WORKLOADS[workload].write(str(tmp_path / 'data.npz'), 1000)
    worker = bench.Worker(workload, name, data_file, str(tmp_path))
    try:
        assert worker.facts['parameters'] == PARAMETERS[workload] == bench.WORKLOADS[workload].parameters
        assert worker.facts['first_s'] > 0 and worker.facts['import_s'] > 0
        losses = [worker.train(bench.UNIT)['loss'] for _ in range(3)]
    finally:
        worker.close()
    assert all(map(math.isfinite, losses)) and len(set(losses)) == 3
    if workload == 'vae':  # 784 log 2 = 543 nats before training
        assert losses[-1] < 450


def test_what_does_not_train_is_no_result():
    worker = bench.Worker.__new__(bench.Worker)
    worker.name, worker.facts = 'ours', {'parameters': PARAMETERS['vae']}
    worker.train = lambda steps: {'seconds': 1.0, 'loss': 784 * math.log(2)}
    with pytest.raises(RuntimeError, match='ours: the loss comes to 543.4, not 403'):
        worker.check(bench.WORKLOADS['vae'])
    worker.train = lambda steps: {'seconds': 1.0, 'loss': math.nan}
    with pytest.raises(RuntimeError, match='loss comes to nan'):
        worker.check(bench.WORKLOADS['vae'])
    worker.facts['parameters'] += 1
    with pytest.raises(RuntimeError, match='218645 parameters, not 218644'):
        worker.check(bench.WORKLOADS['vae'])


def test_ratios_are_taken_within_a_round_to_the_best_peer():
    facts = {'first_s': 1.0, 'import_s': 0.5, 'loss': 403.0}
    rates = {'ours': [40, 10, 30], 'PyTorch': [20, 5, 10], 'Keras': [2, 1, 2]}
    lines = bench.table({name: {**facts, 'rates': values} for name, values in rates.items()}).splitlines()
    assert '× PyTorch' in lines[0]
    assert lines[2] == '| ours | 30 | 2.00 (2.00–3.00) | 1.00 | 0.50 | 403 |'
    assert lines[4] == '| Keras | 2 | 0.20 (0.10–0.20) | 1.00 | 0.50 | 403 |'
