"""scripts/bench.py: each contender builds, trains or writes, and says what it is, as the benchmark starts it."""

import argparse
import dataclasses
import importlib.util
import math
import pathlib
import time

import numpy as np
import pytest

from aigc_jax.metrics import images

PATH = pathlib.Path(__file__).parents[2] / 'scripts' / 'bench.py'
spec = importlib.util.spec_from_file_location('bench', PATH)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

import bench_check  # noqa: E402
import bench_worker  # noqa: E402
import bench_workloads  # noqa: E402

WORKLOADS = bench.WORKLOADS
Text, Sets, Generation, Images = (getattr(bench_workloads, kind) for kind in ('Text', 'Sets', 'Generation', 'Images'))
LANGUAGE = [name for name, workload in WORKLOADS.items() if isinstance(workload, Text)]
SETS = [name for name, workload in WORKLOADS.items() if isinstance(workload, Sets)]
CASES = [(name, contender) for name, workload in WORKLOADS.items() for contender in bench.contenders(workload)]


def dense(*sizes):
    return sum(a * b + b for a, b in zip(sizes, sizes[1:], strict=False))


def gpt(vocab_size, block, layers, width, bias, **_):
    norm, biases = width * (1 + bias), bias * (3 + 1 + 4 + 1) * width
    return (vocab_size + block) * width + layers * (12 * width**2 + biases + 2 * norm) + norm


def lstm(vocab_size, width, **_):
    return vocab_size * width * 2 + (2 * width + 1) * 4 * width


def parameters(workload):
    if not isinstance(workload, Text):
        norms = 2 * (128 + 64 + 128)  # scale and shift
        G = 64 * 6272 + 16 * 128 * 64 + 16 * 64 + 1  # no bias where a normalization follows
        D = 16 * 64 + 64 + 16 * 64 * 128 + 6272 + 1
        return {
            'vae': dense(784, 128, 64, 2 * 2) + dense(2, 64, 128, 784),
            'gan': dense(2, 128, 64, 2) + dense(2, 128, 64, 1),
            'dcgan': G + D + norms,
        }[next(name for name, known in WORKLOADS.items() if known is workload)]
    fields = dataclasses.asdict(workload)
    return gpt(**fields, bias='gpt2' in workload.config) if workload.heads else lstm(**fields)


def skip_unless_it_runs(workload, name):
    for module in bench.missing(bench.contenders(workload)[name][0]):
        pytest.skip(f'{module} is not installed')
    if name.startswith('PyTorch, compiled'):
        pytest.skip('compiles for a minute; its code is that of PyTorch')
    if workload is WORKLOADS['dcgan'] and name == 'ours, 1 step a call':
        pytest.skip('compiles as long as ours, whose code it is')


@pytest.mark.parametrize('name', [name for name in WORKLOADS if name not in SETS])
def test_the_number_of_parameters_is_that_of_the_networks(name):
    workload = WORKLOADS[name]
    assert workload.parameters == parameters(workload)


@pytest.mark.parametrize('name,contender', [case for case in CASES if case[0] not in LANGUAGE + SETS])
def test_a_contender_trains_what_the_others_train(name, contender, tmp_path, monkeypatch):
    workload = WORKLOADS[name]
    skip_unless_it_runs(workload, contender)
    if name == 'dcgan':  # of full size: unoptimized, its steps take longer than it takes to optimize them
        monkeypatch.setenv('XLA_FLAGS', '')
    worker = bench.Worker(name, contender, workload.write(str(tmp_path / 'data.npz'), 1000), str(tmp_path))
    try:
        assert worker.facts['parameters'] == workload.parameters
        assert worker.facts['first_s'] > 0 and worker.facts['import_s'] > 0 and 1e8 < worker.memory() < 1e11
        losses = [worker.train(workload.unit)['loss'] for _ in range(3)]
    finally:
        worker.close()
    assert all(map(math.isfinite, losses)) and len(set(losses)) == 3
    if name == 'vae':  # 784 log 2 = 543 nats before training
        assert losses[-1] < 450


@pytest.mark.parametrize('name,contender', [case for case in CASES if case[0] in SETS])
def test_sets_are_compared_by_the_metric(name, contender, tmp_path):
    workload = dataclasses.replace(WORKLOADS[name], num_features=8)
    skip_unless_it_runs(workload, contender)
    file = workload.write(str(tmp_path / 'sets.npz'), 200)
    built, sets = bench_worker.build(workload, contender, file), np.load(file)
    found = getattr(images, workload.metric)(sets['real'], sets['fake'])
    assert built.score(built.run(1)) == pytest.approx(found['density'] if name == 'prdc' else found, rel=1e-9)
    assert workload.items_per_step == 1e8 and sets['fake'].std() < sets['real'].std()


@pytest.mark.parametrize('name,contender', [case for case in CASES if case[0] in LANGUAGE])
def test_a_language_model_of_a_contender_is_that_of_the_others(name, contender, tmp_path):
    workload = WORKLOADS[name].tiny()
    skip_unless_it_runs(workload, contender)
    built = bench_worker.build(workload, contender, workload.write(str(tmp_path / 'data.txt'), 3000))
    assert built.parameters == parameters(workload)
    if not isinstance(workload, Generation):
        assert workload.known({'parameters': built.parameters, 'loss': 1.0}).flops > 0 == workload.flops
    losses = [built.score(built.run(workload.unit)) for _ in range(2)]
    if isinstance(workload, Generation):  # from a network that is far from uniform, which has log 11 nats
        assert all(0.5 < loss < 2.35 for loss in losses)
    else:
        assert losses[0] == pytest.approx(math.log(11), rel=0.1) and losses[1] != losses[0]
        assert 1e8 < built.peak() < 1e14


def test_a_rounded_model_writes_otherwise_and_a_student_is_smaller(tmp_path):
    workload = bench.COMPRESSED['compressed'].tiny()
    data = workload.write(str(tmp_path / 'data.txt'), 3000)
    names = 'ours', 'ours, int4', 'ours, half the width and layers'
    built = [bench_worker.build(workload, name, data) for name in names]
    dense, rounded, student = (one.score(one.run(1)) for one in built)
    assert 0 < min(dense, rounded, student) and len({dense, rounded, student}) == 3
    assert built[0].parameters == built[1].parameters > 1.5 * built[2].parameters


def test_the_work_of_a_step_is_counted_by_the_formula():
    # By hand, of one layer of width 2 and one head, for 3 tokens of 5: products with 12 · 2² weights and the head's
    # 5 · 2, and norms of 3 · 2, 6 each; 2 · 2 products of 3 keys with 2 features forward, and twice that backward.
    fields = dict(vocab_size=5, block=3, layers=1, width=2, heads=1, batch_size=1)
    small = dataclasses.replace(WORKLOADS['gpt'], **fields, parameters=(5 + 3) * 2 + 48 + 6)
    assert small.flops == 3 * (6 * (48 + 10 + 6) + 3 * 4 * 3 * 2)
    # The LSTM's table is looked up, its head is a product.
    assert WORKLOADS['lstm'].flops == 32 * 64 * 6 * (64 * 512 + 1025 * 2048)


def test_what_does_not_train_is_no_result():
    workload = WORKLOADS['vae']
    worker = bench.Worker.__new__(bench.Worker)
    worker.name, worker.facts = 'ours', {'parameters': workload.parameters, 'steps': workload.unit}
    worker.train = lambda steps: {'seconds': 1.0, 'loss': 784 * math.log(2)}
    with pytest.raises(RuntimeError, match='ours: the loss comes to 543.4, not 403'):
        worker.check(workload)
    worker.check(dataclasses.replace(workload, loss=None))  # nothing to compare it with: it is what others are
    worker.train = lambda steps: {'seconds': 1.0, 'loss': math.nan}
    with pytest.raises(RuntimeError, match='loss comes to nan'):
        worker.check(workload)
    worker.facts['parameters'] += 1
    with pytest.raises(RuntimeError, match='218645 parameters, not 218644'):
        worker.check(workload)


def test_ratios_are_taken_within_a_round_to_the_best_peer():
    facts = {'first_s': 1.0, 'import_s': 0.5, 'memory': 1.25e9, 'loss': 403.0}
    rates = {'ours': [40, 10, 30], 'PyTorch': [20, 5, 10], 'Keras': [2, 1, 2]}
    results = {name: {**facts, 'rates': values} for name, values in rates.items()}
    lines = bench.table(results).splitlines()
    assert '× PyTorch' in lines[0]
    assert lines[2] == '| ours | 30 | 2.00 (2.00–3.00) | 1.00 | 0.50 | 1.25 | 403 |'
    assert lines[4] == '| Keras | 2 | 0.20 (0.10–0.20) | 1.00 | 0.50 | 1.25 | 403 |'
    for facts in results.values():
        facts |= {'share': 0.456, 'peak': 2e11}
    lines = bench.table(results, 'tokens').splitlines()
    assert 'tokens/s' in lines[0] and lines[2].startswith('| ours | 30 | 2.00 (2.00–3.00) | 46% of 200 |')
    results['ours'] = {'failed': 'out of memory'}
    lines = bench.table(results).splitlines()
    assert lines[2].startswith('| PyTorch |') and lines[-1] == '| ours | out of memory |'
    assert 'out of memory' in bench.table({'ours': {'failed': 'out of memory'}})


# --- the workloads for a GPU, on a CPU ---


@pytest.mark.parametrize('name', ['gpu_gpt_384_f32', 'gpu_gan_seeds'])
def test_a_workload_for_a_gpu_is_measured_one_contender_after_the_other(name, tmp_path, monkeypatch):
    few = {'gpu_gpt_384_f32': ['ours, xla', 'PyTorch'], 'gpu_gan_seeds': ['ours, 1 seed', 'ours, 16 seeds']}[name]
    known = bench.contenders
    monkeypatch.setattr(bench, 'contenders', lambda *a: {k: v for k, v in known(*a).items() if k in few})
    args, seen = argparse.Namespace(platform='cpu', tiny=True, rounds=2, seconds=0.01), []
    bench.measure(name, args, str(tmp_path), time.monotonic() + 300, lambda found: seen.append(dict(found)))
    few = [label for label in few if not bench.missing(known(bench.chosen(name, True), True)[label][0])]
    assert [list(found) for found in seen] == [few[: i + 1] for i in range(len(few))]  # written as they come
    for label, facts in seen[-1].items():
        assert len(facts['rates']) == 2 and facts['seeds'] == (16 if label == 'ours, 16 seeds' else 1)
        assert facts['parameters'] == seen[-1][few[0]]['parameters']


def test_what_is_not_done_in_time_is_said_and_nothing_is_lost(tmp_path):
    args, seen = argparse.Namespace(platform='cpu', tiny=True, rounds=2, seconds=0.01), []
    began = time.monotonic()
    bench.measure('gpu_gan_seeds', args, str(tmp_path), began + 0.5, seen.append)
    assert time.monotonic() - began < 10
    failed = [facts['failed'] for facts in seen[-1].values()]
    assert failed[0] == 'cut off, the time was up' and set(failed[1:]) == {'not run, the time was up'}


def test_a_batch_is_doubled_until_memory_does_not_suffice():
    workload = dataclasses.replace(bench.GPU_WORKLOADS['gpu_gpt_768_largest'], batch_size=8)
    labels = [label for ((label, _, _),) in bench.groups(workload, ['ours', 'PyTorch'], True)]
    assert labels[:3] == ['ours, batch 8', 'ours, batch 16', 'ours, batch 32'] and labels[5] == 'PyTorch, batch 8'
    import jax.numpy as jnp

    for too_much in (lambda: np.ones(1 << 55, np.uint8), lambda: jnp.ones((1 << 20, 1 << 26)) + 1):
        with pytest.raises(Exception) as raised:  # numpy's and XLA's own words
            too_much()
        assert bench_worker.OUT_OF_MEMORY.search(str(raised.value))  # which is what a traceback ends with


def test_networks_of_images_have_as_many_parameters_as_those_of_pytorch(tmp_path):
    pytest.importorskip('torch')
    import bench_conv
    import bench_ours
    import jax

    for name, workload in bench.GPU_WORKLOADS.items():
        if isinstance(workload, Images) and workload.precision == 'float32':
            own = workload.tiny()
            ours = bench_ours.experiment_of(own, own.write(str(tmp_path / f'{name}.npz')), 1).abstract_state.params
            theirs = getattr(bench_conv, own.config.partition(':')[2])(own)
            count = sum(p.numel() for network in theirs for p in network.parameters())
            assert sum(x.size for x in jax.tree.leaves(ours)) == count, name


def test_a_check_trains_resumes_and_compares(tmp_path):
    row = bench_check._check('gan', 'cpu', tmp_path, math.inf)
    assert row['resumes'] == 'bit for bit' and row['loss'] == row['loss on the CPU'] and 'failed' not in row
    assert '| gan |' in bench_check.table([row])
