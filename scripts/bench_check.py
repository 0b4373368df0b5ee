"""bench.py --check: whether the smoke configs train on a platform, resume bit for bit, and learn what a CPU learns."""

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The most important first. Those of images train on the digits that come with scikit-learn.
SHORT = ('log_every_steps=10', 'total_steps=40', 'eval_every_steps=20', 'checkpoint_every_steps=20', 'eval.extractor=')
CHECKS = {
    'gan': ('gan.py:smoke', ()),
    'gpt': ('gpt.py:smoke', ()),
    'vae': ('vae.py:smoke', ()),
    'rnn_lm': ('rnn_lm.py:smoke', ()),
    'vq': ('vq.py:smoke', ()),
    'dcgan': ('gan.py:dcgan', ('data.name=digits', 'steps_per_call=10', 'eval.num_samples=200', *SHORT)),
    'gpt, cudnn': ('gpt.py:smoke', ('model.attention=cudnn', 'precision=bfloat16')),
}
STEP = 20  # at which the losses are compared, and from which a run is resumed
# Of the loss after STEP steps: products in another order, and in another precision.
NEAR = {'float32': 1e-3, 'bfloat16': 2e-2}


class Broken(Exception):
    """A run that ended as it should not."""


def run(platform: str, deadline: float, found: Callable[[dict], None]) -> None:
    """Calls found(row) for each check as it ends; several at once, since nothing is timed to the second."""
    jobs = max(1, len(os.sched_getaffinity(0)) // 2)
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        checks = [pool.submit(_check, name, platform, pathlib.Path(folder), deadline) for name in CHECKS]
        for check in concurrent.futures.as_completed(checks):
            found(check.result())


def _check(name: str, platform: str, folder: pathlib.Path, deadline: float) -> dict:
    row, here, again, there = {'config': name}, *(folder / f'{name}_{kind}' for kind in ('here', 'again', 'cpu'))
    precision = 'bfloat16' if 'precision=bfloat16' in CHECKS[name][1] else 'float32'
    try:
        began = time.perf_counter()
        _train(name, platform, here, deadline)
        row['seconds'] = round(time.perf_counter() - began, 1)
        shutil.copytree(here, again)
        for left in again.iterdir():  # what a run that was killed before its next checkpoint leaves
            if left.name not in ('checkpoints', 'config.json', 'manifest.json', 'metrics.jsonl', 'tokenizer.json'):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        for step in (again / 'checkpoints').iterdir():
            if step.name.isdigit() and int(step.name) > STEP:
                shutil.rmtree(step)
        _train(name, platform, again, deadline)
        differing = [kind for kind, of in (('metrics', _metrics), ('leaves', _leaves)) if of(here) != of(again)]
        row['resumes'] = 'bit for bit' if not differing else f'{" and ".join(differing)} differ'
        _train(name, 'cpu', there, deadline)
        ours, theirs = _loss(here), _loss(there)
        row |= {'loss': ours, 'loss on the CPU': theirs}
        if differing:
            row['failed'] = f'resumed, its {row["resumes"]}'
        elif not abs(ours - theirs) <= NEAR[precision] * abs(theirs):
            row['failed'] = f'the loss differs from that of the CPU by more than {NEAR[precision]:g} of it'
    except Broken as error:
        row['failed'] = str(error)
    return row


def _train(name: str, platform: str, workdir: pathlib.Path, deadline: float) -> None:
    config, fields = CHECKS[name]
    left = deadline - time.monotonic()
    if left <= 0:
        raise Broken('not run, the time was up')
    environment = os.environ | {
        'JAX_PLATFORMS': 'cuda' if platform == 'gpu' else 'cpu', 'PYTHONPATH': str(ROOT),
        # Not TF32, which a CPU has not.
        'JAX_DEFAULT_MATMUL_PRECISION': 'highest', 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
    }  # fmt: skip
    if platform == 'gpu':
        environment['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_deterministic_ops=true'
    command = [sys.executable, '-m', 'aigc_jax.main', f'--config={ROOT}/configs/{config}', f'--workdir={workdir}']
    command += [f'--config.{field}' for field in fields]
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=None if left == float('inf') else left
        )
    except subprocess.TimeoutExpired:
        raise Broken('cut off, the time was up') from None
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ['']
        raise Broken(f'on the {platform} it ended with exit code {ended.returncode}: {lines[-1][:300]}')


def _metrics(workdir: pathlib.Path) -> bytes:
    return (workdir / 'metrics.jsonl').read_bytes()


def _leaves(workdir: pathlib.Path) -> dict[str, list]:
    """{name: [shape, dtype, digest]} of the newest checkpoint, by its own record."""
    steps = [step for step in (workdir / 'checkpoints').iterdir() if step.name.isdigit()]
    record = max(steps, key=lambda step: int(step.name)) / 'checkpoint.json'
    return json.loads(record.read_text())['record']['leaves']


def _loss(workdir: pathlib.Path) -> float:
    """Of the first player, at STEP."""
    for line in _metrics(workdir).splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if (row['step'], row['split']) == (STEP, 'train') and name.endswith('/loss'):
                return value
    raise Broken(f'metrics.jsonl has no loss at step {STEP}')


def table(rows: list[dict]) -> str:
    """Markdown."""
    columns = ['config', 'seconds', 'resumes', 'loss', 'loss on the CPU', 'failed']
    lines = [f'| {" | ".join(columns)} |', '|---' * len(columns) + '|']
    lines += [f'| {" | ".join(str(row.get(column, "")) for column in columns)} |' for row in rows]
    return '\n'.join(lines).replace('|  |', '| |')
