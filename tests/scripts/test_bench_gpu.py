"""What scripts/bench.py runs on a GPU, as far as a machine without one can tell: it is lowered for CUDA.

AIGC_JAX_GPU_SPEC=FILE also compiles each workload in its full size for the card that the file describes, without one,
and prints the memory that it takes: FILE as XLA has them in xla/backends/gpu/target_config/specs/. It wants
jax-cuda13-plugin, jax-cuda13-pjrt, nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cudnn-cu13 and nvidia-cublas (pip, --no-deps),
the folders of their libraries in LD_LIBRARY_PATH, and XLA_FLAGS=--xla_gpu_cuda_data_dir=DIR/nvidia/cu13.
"""

import os
import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'scripts'))

import bench_ours  # noqa: E402
from bench_worker import GPU_WORKLOADS, chosen, contenders  # noqa: E402
from bench_workloads import Generation, Images  # noqa: E402

from aigc_jax.core.step import fuse, make_step  # noqa: E402

SPEC = os.environ.get('AIGC_JAX_GPU_SPEC')
CASES = [
    (name, contender, options)
    for name, workload in GPU_WORKLOADS.items()
    if not isinstance(workload, Generation)
    for contender, (_, builder, options) in contenders(workload, True).items()
    if builder == 'bench_ours.train'
]
KINDS = ('gpu_gpt_384', 'gpu_dcgan_64', 'gpu_r3gan_64', 'gpu_lstm', 'gpu_lstm_bf16')  # one of each program


@pytest.fixture
def lowered(monkeypatch, tmp_path):
    """lowered(workload, options, sharding) -> its training call, for CUDA."""

    def lower(workload, options, sharding=None):
        few = () if isinstance(workload, Images) else (20_000,)  # images: as many as the workload has
        data_file = workload.write(str(tmp_path / f'data.{workload.suffix}'), *few)
        experiment = bench_ours.experiment_of(workload, data_file, **options)
        arguments = experiment.train_preprocess, 1, None, experiment.frozen
        step = make_step(experiment.task, experiment.optimizers, *arguments)
        call = fuse(step, experiment._split('train').gather, experiment.config.steps_per_call)
        if experiment.plan.replicas:
            call = jax.vmap(call, in_axes=(0, 0, None, 0))
        given = experiment.abstract_state, experiment.seed_array, experiment.resident_data(), next(experiment.feeds(0))
        given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), given)
        # The package asks this where a CPU and a GPU take different paths.
        monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
        return jax.jit(call, donate_argnums=0).trace(*given).lower(lowering_platforms=('cuda',))

    return lower


@pytest.mark.parametrize('name,contender,options', [case for case in CASES if case[0] in KINDS])
def test_a_training_call_is_lowered_for_cuda(name, contender, options, lowered):
    workload = chosen(name, tiny=True)
    steps = {'steps_per_call': min(options['steps_per_call'], 2)}
    if 'cudnn' in contender:
        if SPEC is None:
            pytest.skip('JAX asks the cuDNN of a CUDA plugin whether it has the kernel')
    text = lowered(workload, {**options, **steps}).as_text()
    assert ('__cudnn$fmhaSoftmax' in text) == ('cudnn' in contender)
    assert 'fmhaScaleBias' not in text  # a mask that is only causal is none that the kernel has to read
    if 'gan' in name:  # the platform's own, not the products that a CPU has in its place
        assert 'stablehlo.convolution' in text


@pytest.mark.skipif(SPEC is None, reason='see above')
@pytest.mark.parametrize('name,contender,options', CASES)
def test_a_training_call_compiles_for_the_card(name, contender, options, lowered):
    from jax.experimental import topologies

    spec = pathlib.Path(SPEC).read_text()
    card = topologies.get_topology_desc(platform='cuda', topology_name='1x1x1', target_config=spec, topology='1x1x1')
    sharding = jax.sharding.SingleDeviceSharding(card.devices[0])
    memory = lowered(chosen(name, tiny=False), options, sharding).compile().memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(f'\n{name}, {contender}: {held / 1e9:.2f} GB, {memory.temp_size_in_bytes / 1e9:.2f} of them temporary')
    assert held < 75e9
