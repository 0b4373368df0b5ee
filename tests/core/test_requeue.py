"""SIGTERM under a Slurm job, with a scontrol that takes its time. A real Slurm: tests/studies/test_slurm.py."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCONTROL = """#!/bin/sh
case $1 in
  requeue) sleep 0.5; echo requeued >> $LOG ;;
  *) echo asked >> $LOG; sleep 0.5
     echo "JobId=7 JobState=RUNNING BatchFlag=1 Requeue=1 Command=x" ;;
esac
"""
OF_A_COMMAND = 'from aigc_jax.core import command; import time; command.run(lambda: time.sleep(60))'
OF_THE_SCRIPT = 'from aigc_jax.core import slurm; slurm.stay(143)'


@pytest.mark.parametrize('program', [OF_A_COMMAND, OF_THE_SCRIPT])
def test_a_second_sigterm_does_not_keep_a_job_from_being_requeued(tmp_path, program):
    (tmp_path / 'scontrol').write_text(SCONTROL)
    (tmp_path / 'scontrol').chmod(0o755)
    log = tmp_path / 'log'
    env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7', 'LOG': str(log)}
    ready = f'print("ready", flush=True); {program}'
    process = subprocess.Popen(
        [sys.executable, '-c', ready], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        assert process.stdout.readline() == 'ready\n'
        if program == OF_A_COMMAND:
            time.sleep(1.0)  # it imports
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 30
        while not log.exists() and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        while 'requeued' not in log.read_text() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.02)
        assert log.read_text() == 'asked\nrequeued\n' and process.poll() is None
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)  # Slurm ends the job that it has requeued
        assert process.wait(timeout=30) in (143, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
