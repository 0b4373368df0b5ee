"""A contender of bench.py in its own process: who contends, the process itself, and its parent's end of it."""

import dataclasses
import importlib
import importlib.util
import json
import math
import os
import pathlib
import re
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]  # what stands beside this file is measured, installed or not

from bench_checkpoints import CHECKPOINTS, Beams, FineTuning, Loading  # noqa: E402
from bench_gpu_workloads import GPU_WORKLOADS  # noqa: E402
from bench_workloads import (  # noqa: E402
    COMPRESSED,
    WORKLOADS,
    Compressed,
    Contender,
    Generation,
    Images,
    Seeds,
    Sets,
    Text,
    Workload,
)  # fmt: skip

OURS, TORCH, KERAS = ('jax', 'aigc_jax.runs.experiment'), ('torch',), ('tensorflow', 'keras')
HUGGING_FACE = *TORCH, 'transformers'
ALL = {**WORKLOADS, **CHECKPOINTS, **COMPRESSED, **GPU_WORKLOADS}
# What the libraries say when memory does not suffice: XLA; PyTorch on a GPU, and on a CPU; numpy.
OUT_OF_MEMORY = re.compile(r'RESOURCE_EXHAUSTED|out of memory|can.t allocate memory|Unable to allocate', re.IGNORECASE)


class Failure(RuntimeError):
    """A contender has no result, and why."""


class TimeIsUp(Failure):
    """It was cut off, or not begun."""


class TooLarge(Failure):
    """Memory did not suffice."""


def contenders(workload: Workload, for_gpu: bool = False) -> dict[str, tuple]:
    """{name: (what it imports, its builder 'module.function', its options)}; 'ours…' are no peers."""
    ours = lambda steps=workload.unit, **more: (OURS, 'bench_ours.train', {'steps_per_call': steps, **more})
    torch = lambda function, **options: (TORCH, function, options)
    if isinstance(workload, Sets):
        peers = {'prdc': (('prdc',), 'bench_peers.prdc', {})} if workload.metric == 'prdc' else {}
        return {'ours': (('aigc_jax.metrics.images',), 'bench_ours.compare', {}), **peers}
    if isinstance(workload, FineTuning):
        build = lambda compiled: (HUGGING_FACE, 'bench_checkpoint_peers.train', {'compiled': compiled})
        return {
            'ours': (OURS, 'bench_ours.finetune', {'steps_per_call': workload.unit}),
            'transformers, compiled': build(True), 'transformers': build(False),
        }  # fmt: skip
    if isinstance(workload, Beams):
        return {
            'ours': (OURS, 'bench_ours.beams', {}),
            'transformers': (HUGGING_FACE, 'bench_checkpoint_peers.beams', {}),
        }
    if isinstance(workload, Compressed):
        small = {'model.width': workload.width // 2, 'model.mlp_width': 2 * workload.width, 'model.layers': 2}
        ways = {
            'ours': {}, 'ours, int8': {'quantize.weights': 'int8'},
            'ours, int8 activations too': {'quantize.weights': 'int8', 'quantize.activations': 'int8'},
            'ours, int4': {'quantize.weights': 'int4', 'quantize.group': min(32, workload.width)},
            'ours, half of the weights pruned': {'prune.keep': 0.5}, 'ours, half the width and layers': small,
        }  # fmt: skip
        return {name: (OURS, 'bench_ours.generate', more) for name, more in ways.items()}
    if isinstance(workload, Loading):
        return {
            'ours': (OURS, 'bench_ours.load', {}),
            'transformers': (HUGGING_FACE, 'bench_checkpoint_peers.loading', {}),
        }
    if isinstance(workload, Generation):
        return {
            'ours': (OURS, 'bench_ours.generate', {}),
            'PyTorch, own loop': torch('bench_language.loop'),
            'transformers': (HUGGING_FACE, 'bench_language.transformers', {}),
        }
    if isinstance(workload, Seeds):
        return {f'ours, {n} seeds'.replace(' 1 seeds', ' 1 seed'): ours(num_seeds=n) for n in (1, 16, 64)}
    if isinstance(workload, Text):
        kinds = {'ours': ours()}
        if for_gpu and workload.heads:  # a step a call: a call is long, and a loop of steps would compile twice as long
            attention = ['cudnn', 'xla', 'einsum'] if workload.precision == 'bfloat16' else ['xla', 'einsum']
            kinds = {f'ours, {how}': ours(1, **{'model.attention': how}) for how in attention}
        return kinds | {
            'PyTorch, compiled': torch('bench_language.train', compiled=True),
            'PyTorch': torch('bench_language.train', compiled=False),
        }
    if isinstance(workload, Images):
        build = 'bench_conv.pytorch'
        found = {'ours': ours(), 'PyTorch, channels last': torch(build, layout='channels_last')}
        if not for_gpu:
            found |= {'ours, 1 step a call': ours(1), 'Keras': (KERAS, 'bench_conv.keras', {'steps_per_execution': 10})}
        found['PyTorch'] = torch(build, layout='contiguous')
        if workload.config == 'gan.py:dcgan':  # PyTorch compiles no gradient of a gradient
            compiled = lambda mode: torch(build, layout='channels_last', compiled=mode)
            found['PyTorch, compiled'] = compiled('default')
            if for_gpu:
                found['PyTorch, compiled, CUDA graphs'] = compiled('reduce-overhead')
        return found
    return {
        'ours': ours(),
        'ours, 1 step a call': ours(1),
        'PyTorch': torch('bench_peers.pytorch', compiled=False),
        'PyTorch, compiled': torch('bench_peers.pytorch', compiled=True),
        'Keras': (KERAS, 'bench_peers.keras', {'steps_per_execution': 1}),
        'Keras, 50 steps a call': (KERAS, 'bench_peers.keras', {'steps_per_execution': 50}),
    }


def missing(imports: tuple[str, ...]) -> list[str]:
    return [m for m in imports if importlib.util.find_spec(m.partition('.')[0]) is None]


def build(workload: Workload, name: str, data_file: str, for_gpu: bool = False) -> Contender:
    _, builder, options = contenders(workload, for_gpu)[name]
    module, _, function = builder.rpartition('.')
    return getattr(importlib.import_module(module), function)(workload, data_file, **options)


def most_memory(on_gpu: bool) -> int:
    """Bytes that this process has held at most, of the card where it computes there."""
    if on_gpu and 'torch' in sys.modules:
        return sys.modules['torch'].cuda.max_memory_allocated()
    if on_gpu:
        return importlib.import_module('bench_ours').memory()
    if sys.platform == 'linux':  # getrusage would count what the parent held when it started this process
        status = pathlib.Path('/proc/self/status').read_text()
        return int(status.split('VmHWM:')[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def chosen(name: str, tiny: bool, batch_size: int = 0) -> Workload:
    workload = ALL[name].tiny() if tiny else ALL[name]
    return dataclasses.replace(workload, batch_size=batch_size) if batch_size else workload


def serve(name: str, contender: str, data_file: str, tiny: str, batch_size: str) -> None:
    """A contender's process: a JSON line of facts, and one for each request, a number of steps, 'peak' or 'memory'."""
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever the libraries print is no reply
    workload, for_gpu = chosen(name, tiny == 'True', int(batch_size)), name in GPU_WORKLOADS
    on_gpu = os.environ['BENCH_PLATFORM'] == 'gpu'
    began = time.perf_counter()
    for module in contenders(workload, for_gpu)[contender][0]:
        importlib.import_module(module)
    if on_gpu and 'torch' in sys.modules:
        sys.modules['torch'].set_float32_matmul_precision('high')  # TF32, as its convolutions have it anyway
    imported = time.perf_counter()
    built = build(workload, contender, data_file, for_gpu)
    built.run(built.steps_per_call)
    facts = {'import_s': imported - began, 'first_s': time.perf_counter() - imported}
    facts |= {'parameters': built.parameters, 'steps': built.steps_per_call, 'seeds': built.seeds}
    print(json.dumps(facts), file=replies, flush=True)
    for line in sys.stdin:
        if line.strip() == 'peak':
            reply = {'peak': built.peak()}
        elif line.strip() == 'memory':
            reply = {'memory': built.memory() if built.memory else most_memory(on_gpu)}
        else:
            began, found = time.perf_counter(), built.run(int(line))
            reply = {'seconds': time.perf_counter() - began, 'loss': built.score(found)}
        print(json.dumps(reply), file=replies, flush=True)


class Worker:
    """A contender in its process. facts: {parameters, import_s, steps: of its first call, seeds,
    first_s: of building, compiling and that call}. deadline: time.monotonic() after which TimeIsUp is raised."""

    def __init__(
        self, workload: str, name: str, data_file: str, folder: str, on: str = 'cpu', tiny: bool = False,
        batch_size: int = 0, deadline: float = math.inf,
    ):  # fmt: skip
        environment = os.environ | {
            'JAX_PLATFORMS': 'cuda' if on == 'gpu' else 'cpu', 'BENCH_PLATFORM': on, 'KERAS_BACKEND': 'tensorflow',
            'TORCHINDUCTOR_CACHE_DIR': tempfile.mkdtemp(dir=folder), 'JAX_ENABLE_COMPILATION_CACHE': 'false',
            'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.95',  # of the card, as much as PyTorch may take
        }  # fmt: skip
        if on == 'cpu':
            environment['CUDA_VISIBLE_DEVICES'] = ''
        environment.pop('LD_PRELOAD', None)
        self.name, self.deadline, self.log = name, deadline, tempfile.TemporaryFile('w+', dir=folder)
        self.process = subprocess.Popen(
            [sys.executable, __file__, workload, name, data_file, str(tiny), str(batch_size)], text=True,
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        try:
            self.facts = self._reply()
        except Failure:
            self.close()
            raise

    def _reply(self) -> dict:
        left = self.deadline - time.monotonic()
        if left < math.inf and not select.select([self.process.stdout], [], [], max(left, 0))[0]:
            self.process.kill()
            raise TimeIsUp(f'{self.name}: cut off, the time was up')
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            log = self.log.read()
            if OUT_OF_MEMORY.search(log):
                raise TooLarge(f'{self.name}: out of memory')
            raise Failure(f'{self.name}: its process ended\n{log[-3000:]}')
        return json.loads(line)

    def _ask(self, request) -> dict:
        try:
            print(request, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # what it died of is in its log
        return self._reply()

    def train(self, steps: int) -> dict:
        """{seconds, loss} of that many steps."""
        return self._ask(steps)

    def peak(self) -> float:
        """FLOP/s of its library's matrix product, now."""
        return self._ask('peak')['peak']

    def memory(self) -> float:
        """Bytes that its process has held at most."""
        return self._ask('memory')['memory']

    def check(self, workload: Workload) -> None:
        """Trains check_steps; Failure where that was not the workload's work. What is None of it is not compared."""
        if rest := -self.facts['steps'] % workload.unit:  # so that all come from the same number of steps
            self.train(rest)
        losses = [self.train(workload.unit)['loss'] for _ in range(workload.check_steps // workload.unit)]
        last = losses[-(len(losses) // 2 or 1) :][-10:]
        loss = self.facts['loss'] = statistics.median(last)  # a game's loss may jump
        if workload.parameters not in (None, self.facts['parameters']):
            raise Failure(f'{self.name}: {self.facts["parameters"]} parameters, not {workload.parameters}')
        if workload.loss is not None and not abs(loss - workload.loss) <= workload.tolerance * workload.loss:
            raise Failure(f'{self.name}: the loss comes to {loss:.4g}, not {workload.loss:.4g}: {losses}')

    def close(self) -> None:
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


if __name__ == '__main__':
    serve(*sys.argv[1:])
