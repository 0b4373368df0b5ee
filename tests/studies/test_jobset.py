"""Sweeps as JobSets of Kubernetes: each is one by the published schema, and its script does in a shell what it says."""

import copy
import io
import json
import os
import pathlib
import signal
import subprocess
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest
import yaml

from aigc_jax import sweep as door
from aigc_jax.studies import jobset

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPLATE = """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: Ring
  labels: {kueue.x-k8s.io/queue-name: gpus}
spec:
  replicatedJobs:
    - name: run
      template:
        spec:
          parallelism: 2
          template:
            spec:
              containers:
                - name: train
                  image: registry.example.org/aigc_jax:1
                  workingDir: /code
                  resources: {limits: {nvidia.com/gpu: 1}}
                  volumeMounts: [{name: runs, mountPath: /runs}]
              volumes:
                - {name: runs, persistentVolumeClaim: {claimName: runs}}
"""
GRID = ('--config=configs/gan.py:ring8,smoke', '--sweep.task.loss=hinge,relativistic', '--seeds=2')


def sweep(folder, *flags, template=TEMPLATE) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    path = folder / 'template.yaml'
    path.write_text(template)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(ROOT)
        patch.setattr(door, 'FLAGS', copy.deepcopy(door.FLAGS))
        try:
            door.main(['sweep', *GRID, f'--workdir={folder / "runs"}', '--launcher=jobset', f'--jobset={path}', *flags])
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue(), err.getvalue()


def test_each_run_is_a_jobset_by_the_published_schema(tmp_path):
    code, out, err = sweep(tmp_path)
    assert code == 0 and '4 JobSets for kubectl apply' in err
    assert [path.name for path in (tmp_path / 'runs').iterdir()] == ['sweep.json']
    found = list(yaml.safe_load_all(out))
    names = [one['metadata']['name'] for one in found]
    assert len(set(names)) == 4 and all(name.startswith('ring-') and len(name) < 40 for name in names)
    models = pytest.importorskip('kubeflow_trainer_api.models')
    for one in found:
        read = models.JobsetV1alpha2JobSet.from_dict(one)
        # What the schema does not know would be left out.
        assert json.loads(read.to_json()) == one
    one = found[0]
    (job,) = one['spec']['replicatedJobs']
    (container,) = job['template']['spec']['template']['spec']['containers']
    assert container['image'] == 'registry.example.org/aigc_jax:1' and container['volumeMounts']
    assert one['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'gpus'}
    assert job['template']['spec']['completions'] == job['template']['spec']['parallelism'] == 2
    env = {variable['name']: variable.get('value') for variable in container['env']}
    assert env['JAX_COORDINATOR_ADDRESS'] == f'{names[0]}-run-0-0.{names[0]}:8476' and env['JAX_NUM_PROCESSES'] == '2'
    log, python, *words = container['args']
    assert log == f'{tmp_path}/runs/{one["metadata"]["annotations"]["aigc-jax/run"]}.log' and python == 'python'
    assert words[:2] == ['-m', 'aigc_jax.main'] and '--config.task.loss=hinge' in words
    code, again, _ = sweep(tmp_path, '--dry_run')
    assert (code, again) == (0, out)


def test_a_run_of_one_process_needs_no_address_and_fails_for_good(tmp_path):
    code, out, _ = sweep(tmp_path, '--dry_run', template=TEMPLATE.replace('parallelism: 2', 'backoffLimit: 6'))
    job = next(yaml.safe_load_all(out))['spec']['replicatedJobs'][0]['template']['spec']
    assert code == 0 and 'env' not in job['template']['spec']['containers'][0]
    assert (job['backoffLimit'], job['parallelism'], job['template']['spec']['restartPolicy']) == (0, 1, 'Never')
    assert job['podFailurePolicy']['rules'][0]['onExitCodes']['values'] == [1, 2]
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
    'template, words',
    [
        ('a: [', 'is no YAML'),
        ('kind: Job', 'is no JobSet; it begins with apiVersion: jobset.x-k8s.io/v1alpha2'),
        (TEMPLATE.replace('image:', 'imago:'), 'a name and a container with an image'),
        (TEMPLATE.replace('replicatedJobs', 'jobs'), 'spec.replicatedJobs has one job'),
    ],
)
def test_a_template_that_is_none_is_told(tmp_path, template, words):
    code, out, err = sweep(tmp_path, template=template)
    assert (code, out) == (2, '') and err.startswith('error: --jobset: ') and words in err and err.count('\n') == 1
    assert not (tmp_path / 'runs').exists()


def test_flags(tmp_path):
    for flag, words in (
        ('--jobset=', '--jobset: missing'), ('--jobs=2', '--jobs: Kubernetes runs what fits'),
        ('--launcher=local', '--jobset: is for --launcher=jobset'), ('--jobset=none.yaml', 'none.yaml: cannot be read'),
    ):  # fmt: skip
        code, out, err = sweep(tmp_path, flag)
        assert (code, out) == (2, '') and words in err, err


def test_the_script_writes_the_log_and_passes_sigterm_on(tmp_path):
    log = tmp_path / 'row' / 'seed-0.log'

    def start(*command, **env):
        words = ['bash', '-c', jobset._SCRIPT, 'run', str(log), *command]
        return subprocess.Popen(words, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True)

    assert start('bash', '-c', 'echo "it is"; exit 2').wait(60) == 2
    assert log.read_text() == '\n$ bash -c echo\\ \\"it\\ is\\"\\;\\ exit\\ 2\nit is\n[exit code 2]\n'
    log.unlink()
    waits = start('bash', '-c', 'trap "echo saved; exit 143" TERM; echo begun; while :; do sleep 0.05; done')
    while not log.exists() or '\nbegun\n' not in log.read_text():
        time.sleep(0.05)
    waits.send_signal(signal.SIGTERM)
    assert waits.wait(60) == 143 and log.read_text().endswith('begun\nsaved\n[exit code 143]\n')
    log.unlink()
    assert start('true').wait(60) == 0 and log.read_text() == '\n$ true\n'
    other = start('echo', 'of the second process', JAX_PROCESS_ID='1')
    assert other.communicate(timeout=60)[0] == 'of the second process\n' and log.read_text() == '\n$ true\n'
