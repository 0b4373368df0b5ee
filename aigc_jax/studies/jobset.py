"""Trials as JobSets of Kubernetes (jobset.sigs.k8s.io): a JobSet each, so that a run fails and restarts by itself.

The user's own JobSet is the template: it has the image, the volumes, the resources, and as `parallelism` the number of
processes of a run. What is emitted goes to `kubectl apply -f -`; nothing here asks a cluster.
"""

import copy
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from aigc_jax.core.errors import UserError, one_line
from aigc_jax.core.files import read_text
from aigc_jax.studies import local, states
from aigc_jax.studies.sweeps import Trial

VERSION = 'jobset.x-k8s.io/v1alpha2'
_PORT = 8476  # of JAX's coordinator
_RESTARTS = 100  # of a run: each is an eviction or a failed node, after which it goes on from its checkpoint
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
# Of the processes of a run the first writes the log, holds its lock, and ends it with the exit code. Kubernetes sends
# SIGTERM to the shell alone.
_SCRIPT = f"""\
log=$1; shift
[ "${{JAX_PROCESS_ID:-0}}" = 0 ] || exec "$@"
mkdir -p "${{log%/*}}" && exec 9>>"$log" || exit 3
flock --timeout 60 --conflict-exit-code 75 9
[ $? -ne 75 ] || {{ echo "another process has the lock of $log"; exit 3; }}
printf -v line ' %q' "$@"
printf '\\n$%s\\n' "$line" >&9
"$@" >&9 2>&9 & pid=$!
trap 'kill -TERM $pid' TERM
while wait $pid; code=$?; [ $code -gt 128 ] && kill -0 $pid 2>/dev/null; do :; done
[ $code -eq 0 ] || echo "{states.END}$code]" >&9
exit $code
"""


def read(path: str) -> dict[str, Any]:
    """The template. Raises UserError where it is no JobSet with one replicated job whose pods have a container."""
    try:
        found = yaml.safe_load(read_text(path, '--jobset: '))
    except yaml.YAMLError as error:
        raise UserError(f'--jobset: {path}: is no YAML: {one_line(error)}') from None
    if not isinstance(found, dict) or (found.get('apiVersion'), found.get('kind')) != (VERSION, 'JobSet'):
        raise UserError(f'--jobset: {path}: is no JobSet; it begins with apiVersion: {VERSION} and kind: JobSet')
    try:
        (job,) = found['spec']['replicatedJobs']
        job['name'], job['template']['spec']['template']['spec']['containers'][0]['image']
    except (KeyError, ValueError, TypeError, IndexError):
        raise UserError(
            f'--jobset: {path}: spec.replicatedJobs has one job, with a name and a container with an image'
        ) from None
    return found


def manifests(trials: Sequence[Trial], template: dict[str, Any]) -> Iterator[str]:
    """A YAML document for each trial."""
    for trial in trials:
        yield '---\n' + yaml.safe_dump(_of(trial, copy.deepcopy(template)), sort_keys=False, allow_unicode=True)


def _of(trial: Trial, jobset: dict[str, Any]) -> dict[str, Any]:
    metadata, spec = jobset.setdefault('metadata', {}), jobset['spec']
    name = metadata['name'] = _name(metadata.get('name') or trial.workdir.name, trial)
    metadata.setdefault('annotations', {})['aigc-jax/run'] = trial.name
    (replicated,) = spec['replicatedJobs']
    replicated['replicas'] = 1
    job = replicated['template']['spec']
    count = job.setdefault('parallelism', 1)
    # An exit code of 1 may mean that another process of the run was evicted.
    final = [1, 2] if count == 1 else [2]
    job |= {
        'completions': count,
        'completionMode': 'Indexed',
        'backoffLimit': 0,
        'podFailurePolicy': {'rules': [{'action': 'FailJob', 'onExitCodes': {'operator': 'In', 'values': final}}]},
    }
    restarts = {'name': 'mistake', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}
    spec.setdefault('failurePolicy', {'maxRestarts': _RESTARTS, 'rules': [restarts]})
    network = spec.setdefault('network', {})
    network['enableDNSHostnames'] = True
    pod = job['template']['spec']
    pod['restartPolicy'] = 'Never'
    container = pod['containers'][0]
    python, *words = local.command(trial)
    container['command'] = ['bash', '-c', _SCRIPT, 'run']
    container['args'] = [str(trial.log), 'python', *words]
    if count > 1:
        first = f'{name}-{replicated["name"]}-0-0.{network.get("subdomain", name)}'
        container.setdefault('env', []).extend(
            (
                {'name': 'JAX_NUM_PROCESSES', 'value': str(count)},
                {'name': 'JAX_PROCESS_ID', 'valueFrom': {'fieldRef': {'fieldPath': _INDEX}}},
                {'name': 'JAX_COORDINATOR_ADDRESS', 'value': f'{first}:{_PORT}'},
            )
        )
    return jobset


def _name(prefix: str, trial: Trial) -> str:
    """A name of Kubernetes, short enough for what JobSet makes names of pods from."""
    plain = re.sub('[^a-z0-9]+', '-', prefix.lower()).strip('-')[:20].strip('-')
    place = os.path.join(pathlib.Path(trial.workdir).absolute(), trial.name)
    return f'{plain or "run"}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:10]}'
