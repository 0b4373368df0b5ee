"""Random events over two processes (tests/chaos.py), where the environment asks for them."""

import os
import sys

import chaos
import pytest
import strikes

COUNT = int(os.environ.get('AIGC_JAX_CHAOS', 0))
MARKS = ['begin', 'connected', 'compile', 'loop', 'step 10', 'step 20', 'saving 20', 'saved 80', 'drawing', 'end']


@pytest.mark.skipif(not COUNT, reason='AIGC_JAX_CHAOS=N: N random events strike, 20 seconds or so each')
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the events look at /proc')
def test_random_events_over_two_processes_end_as_promised_and_resume_to_the_bit(tmp_path):
    assert chaos.main([f'--events={COUNT}', f'--out={tmp_path}/chaos.jsonl', '--factor=3']) == 0


def test_a_seed_draws_the_same_events_again_of_every_kind_in_every_phase():
    events = [strikes.draw(f'0/vae/{n}', MARKS) for n in range(400)]
    assert events == [strikes.draw(f'0/vae/{n}', MARKS) for n in range(400)]
    kinds = {(event.kind, event.detail) for event in events}
    assert kinds == {(kind, detail) for kind in strikes.KINDS for detail in strikes.DETAILS.get(kind, ('',))}
    assert {event.mark for event in events if event.kind == 'sigkill'} == set(MARKS)
