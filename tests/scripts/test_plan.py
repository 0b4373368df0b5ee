"""What scripts/plan.py says of a step, beside what the compiled program reports."""

import functools
import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location('plan', ROOT / 'scripts' / 'plan.py')
plan = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plan)

FIELDS = (
    '--config=configs/gpt.py:smoke', '--config.model.width=64', '--config.model.mlp_width=128', '--config.batch_size=8',
    '--config.parallel.mesh.fsdp=4', "--config.parallel.rules=(('.*', 'fsdp'),)",
)  # fmt: skip
HLO = '''HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(f32[] %a, f32[] %b)
}

%body (t: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %g = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} %x), dimensions={0}
  ROOT %t = (s32[], f32[8,4]) tuple(s32[] %i, f32[8,4] %g)
}

ENTRY %main (p: f32[2,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]{1,0}) while((s32[], f32[8,4]) %t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  %r = (bf16[10]{0}, f32[3,2]{1,0}) all-reduce(bf16[10] %a, f32[3,2] %b), to_apply=%sum
  ROOT %o = f32[8,4]{1,0} get-tuple-element((s32[], f32[8,4]) %w), index=1
}
'''  # noqa: E501


def test_collectives_count_as_often_as_their_loop_runs():
    assert plan.collectives(HLO) == {'all-gather': 24 * 4 * 32, 'all-reduce': 2 * 10 + 4 * 6}


def test_flops_are_those_of_a_program_without_loops():
    """Loops in loops, forward and backward. Of four micro-batches XLA alone counted one."""
    step = lambda x, w: jnp.tanh(x @ w)

    def loss(w, x, loops):
        def part(total, one):
            if loops:
                return total + jnp.sum(jax.lax.scan(lambda x, own: (step(x, own), None), one, w)[0]), None
            for i in range(len(w)):
                one = step(one, w[i])
            return total + jnp.sum(one), None

        if loops:
            return jax.lax.scan(part, 0.0, x)[0]
        return sum(part(0.0, x[i])[0] for i in range(len(x)))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 32, 32), (4, 64, 32))]
    found = []
    for loops in (False, True):
        traced = jax.jit(jax.grad(functools.partial(loss, loops=loops), (0, 1))).trace(*shapes)
        found.append(traced.lower().cost_analysis()['flops'] + plan._uncounted(traced.jaxpr))
    assert found[1] == pytest.approx(found[0], rel=0.05) and found[0] > 4 * 3 * 6 * 64 * 32 * 32


# As the script runs, with the bytes of the sum and of the program itself printed besides.
CODE = """
import runpy, sys
sys.argv = sys.argv[1:]
module = runpy.run_path(sys.argv[0])
planned = module['planned']
def told(*arguments):
    found = planned(*arguments)
    print('program', found['program'], sum(found['bytes'].values()), file=sys.stderr)
    return found
module['main'].__globals__['planned'] = told
sys.exit(module['main'](sys.argv[1:]))
"""


@pytest.fixture(scope='module')
def planned(command_line):
    done = command_line.python('-c', CODE, ROOT / 'scripts' / 'plan.py', '--devices=4', *FIELDS)
    assert done.returncode == 0, done.stderr
    return done


def number(text: str, name: str) -> float:
    found = re.search(rf'{name} +([\d.]+(?:e\+\d+)?) ?([kMGTP]?)B', text)
    return float(found[1]) * {'': 1, 'k': 1e3, 'M': 1e6, 'G': 1e9, 'T': 1e12, 'P': 1e15}[found[2]]


def test_each_device_holds_its_share(planned):
    """Of the parameters, 4 bytes each, a quarter."""
    said = planned.stdout
    count = re.match(r'([\d.]+) k parameters on 4 devices', said)[1]
    assert number(said, 'parameters') == pytest.approx(float(count) * 1e3, rel=0.02)
    assert 'it fits' in said and re.search(r'all-gather +[\d.]+ [kM]B a device', said)


def test_the_sum_is_that_of_the_compiled_program(planned):
    program, together = map(int, re.search(r'program (\d+) (\d+)', planned.stderr).groups())
    assert together == pytest.approx(program, rel=0.15)


def test_what_does_not_fit_and_mistakes(command_line):
    run = lambda *flags: command_line.python(ROOT / 'scripts' / 'plan.py', *flags)
    small = run('--config=configs/vae.py:points,smoke', '--hbm_gb=1e-6')
    assert small.returncode == 1 and 'it does not fit: ' in small.stdout
    for flags, words in (
        ((), '--config: missing'),
        (('--config=configs/gpt.py', '--config.model.widht=3'), 'did you mean width'),
        (('--config=configs/gpt.py', '--device=3'), 'is no flag'),
        (('--config=configs/vae.py:points,smoke', '--config.parallel.mode=pmap'), 'parallel.mode: pmap; '),
    ):
        wrong = run(*flags)
        assert wrong.returncode == 2 and words in wrong.stderr and not wrong.stdout, wrong.stderr
