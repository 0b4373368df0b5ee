"""Random events over two processes (tests/chaos.py), where the environment asks for them."""

import os

import chaos
import pytest

COUNT = int(os.environ.get('AIGC_JAX_CHAOS', 0))


@pytest.mark.skipif(not COUNT, reason='AIGC_JAX_CHAOS=N: N random events strike, 20 seconds or so each')
def test_random_events_over_two_processes_end_as_promised_and_resume_to_the_bit(tmp_path):
    assert chaos.main([f'--events={COUNT}', f'--out={tmp_path}/chaos.jsonl', '--factor=3']) == 0


def test_the_judge_finds_fault_with_what_is_not_as_promised():
    pass
