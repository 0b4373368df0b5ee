"""A run proves itself: what is as it was is found identical, and what was changed is found where it is."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from refusals import snapshot

from aigc_jax.core import tree
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import numerics, pretrained, record
from aigc_jax.runs.folder import Run
from aigc_jax.studies import comparable, differences
from aigc_jax.studies.verification import DIFFERENT, IDENTICAL, NOT_COMPARABLE, verify
from aigc_jax.training import loop
from aigc_jax.training.trainer import train

SHORT = dict(
    total_steps=30, steps_per_call=5, log_every_steps=5, eval_every_steps=15, checkpoint_every_steps=10,
    keep_checkpoints=3,
)  # fmt: skip
FEW = {'eval.num_samples': 64, 'eval.num_shown': 4}
MODELS = {
    'gan': ('gan.py:ring8,smoke', {**SHORT, **FEW}),
    'vae': ('vae.py:smoke', {**SHORT, **FEW, 'eval.k': 2}),
    'flow': ('flow.py:smoke', {**SHORT, **FEW}),
    'gpt': ('gpt.py:smoke', {**SHORT, 'steps_per_call': 1, 'model.layers': 1}),
}
OWN_TASK = """
from aigc_jax.tasks.gan.fields import FIELDS
from aigc_jax.tasks.gan.task import make
"""


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch, command_line):
    monkeypatch.chdir(command_line.root)


def trained(folder, model: str = 'gan', signals: bool = False, **fields) -> Run:
    """fields: 'a__b' is a.b."""
    path, short = MODELS[model]
    fields = {**short, **{name.replace('__', '.'): value for name, value in fields.items()}}
    run = Run(folder)
    run.draws = False
    train(config_lib.load(f'configs/{path}', [(name, str(value)) for name, value in fields.items()]), run,
          signals=signals)  # fmt: skip
    return run


@pytest.fixture(scope='module')
def whole(tmp_path_factory, command_line):
    """A GAN on a ring, with checkpoints of steps 10, 20 and 30."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(command_line.root)
        return trained(tmp_path_factory.mktemp('whole') / 'run')


@pytest.fixture
def copied(whole, tmp_path):
    return Run(shutil.copytree(whole.folder, tmp_path / 'run'))


def edited(path, change) -> None:
    """change(the object of a JSON file), written back."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found, indent=2) + '\n')


def the_difference(run: Run, from_step: int = 0):
    """The only difference of a verdict that it is different."""
    verdict = verify(run.folder, from_step)
    assert verdict.kind == DIFFERENT and verdict.exit_code == 1, str(verdict)
    (found,) = verdict.found
    return found


def the_reason(run: Run, from_step: int = 0) -> str:
    verdict = verify(run.folder, from_step)
    assert verdict.kind == NOT_COMPARABLE and verdict.exit_code == 2, str(verdict)
    (reason,) = verdict.reasons
    return reason


def lines(run: Run) -> list[str]:
    return run.paths.metrics.read_text().splitlines(keepends=True)


@pytest.mark.parametrize('model', MODELS)
def test_a_run_is_identical_from_its_beginning_and_from_a_checkpoint(model, tmp_path):
    run = trained(tmp_path / 'run', model)
    before = snapshot(run.folder)
    verdict = verify(run.folder)
    assert verdict.kind == IDENTICAL and verdict.exit_code == 0, str(verdict)
    kept = [int(path.name) for path in run.paths.checkpoints.iterdir()]
    assert (verdict.checkpoints, verdict.rows, verdict.evaluation) == (tuple(sorted(kept)), len(lines(run)), True)
    later = verify(run.folder, 20)
    assert later.kind == IDENTICAL and (later.start, later.end, later.checkpoints) == (20, 30, (30,)), str(later)
    assert 0 < later.rows < verdict.rows and later.evaluation
    assert snapshot(run.folder) == before


@pytest.mark.parametrize('replicas', ['vmap', 'map'])
def test_replicas_are_identical_and_a_changed_one_is_named(replicas, tmp_path):
    run = trained(tmp_path / 'run', num_seeds=3, replicas=replicas, seed=5)
    assert verify(run.folder).kind == IDENTICAL  # several replicas, by their seeds

    def change(state):
        state['params/generator/mlp/Dense_0/bias'][1, 0] += 1

    resaved(run, 20, change)
    found = the_difference(run)
    assert found.step == 20 and 'of seed 6, by at most 1 ' in found.text


def resaved(run: Run, step: int, change, metrics=None) -> None:
    """The checkpoint of `step` as its run would have written it, had change({name: array}) happened to the state."""
    _, state = run.open(step)
    found = {name: np.array(leaf) for name, leaf in tree.flatten(state).items()}
    name = next((name for name in found if name.startswith('params/generator') and name.endswith('bias')), None)
    change({**found, 'params/generator/mlp/Dense_0/bias': found[name]})
    folder = run.paths.checkpoints / str(step)
    metrics = record.read(folder)['metrics'] if metrics is None else metrics
    shutil.rmtree(folder)
    with_changes = jax.tree.map(jax.numpy.asarray, tree.map_named(lambda name, _: found[name], state))
    checkpoints = run.checkpoints(read_only=False)
    checkpoints.save(step, with_changes, metrics)
    checkpoints.close()


def test_a_run_that_was_stopped_is_identical_at_the_step_where_it_was(tmp_path, monkeypatch):
    """Neither its steps of evaluation nor those of checkpoints have that step."""
    called = loop.Loop.called

    def stopped(self, *arguments):
        called(self, *arguments)
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Loop, 'called', stopped)
    run = trained(tmp_path / 'run', signals=True)
    monkeypatch.setattr(loop.Loop, 'called', called)
    verdict = verify(run.folder)
    assert verdict.kind == IDENTICAL and verdict.checkpoints == (5,) and 'not finished' in verdict.notes[0]
    assert 'not finished' in the_reason(run, 5)
    trained(run.folder)
    assert verify(run.folder).kind == IDENTICAL


def test_a_flipped_bit(copied):
    path = max((copied.paths.checkpoints / '20' / 'arrays').rglob('d/*'), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = the_difference(copied)
    assert found.step == 20 and 'is not as it was saved' in found.text and path.name in found.text


def test_a_checkpoint_whose_digest_was_computed_again(copied):
    def change(state):
        bias = state['params/generator/mlp/Dense_0/bias']
        bias[3] = np.nextafter(bias[3], np.float32(9))

    resaved(copied, 20, change)
    found = the_difference(copied)
    assert found.step == 20 and found.text.startswith('1 of ') and ' 1 ulp' in found.text
    assert 'leaves differ; params/generator/' in found.text and ': 1 of 16 elements of float32[16] ' in found.text
    assert verify(copied.folder, 20).found[0].step in (25, 30)  # it goes on from what was changed


def test_changed_metrics_of_a_checkpoint(copied):
    resaved(copied, 30, lambda state: None, metrics={'samples/modes': 8.0})
    assert 'its metrics differ' in the_difference(copied).text


def test_a_changed_learning_rate(copied):
    edited(copied.paths.config, lambda config: config['optim']['generator']['schedule'].update(init_value=0.0011))
    row, checkpoint = verify(copied.folder).found  # a row is written behind the next call, which ends at a checkpoint
    assert (row.step, row.place) == (5, 'metrics.jsonl, line 1') and 'relative' in row.text
    assert (checkpoint.step, checkpoint.place) == (10, 'checkpoint of step 10') and 'ulp' in checkpoint.text
    assert [difference.step for difference in verify(copied.folder, 20).found] == [25, 30]


def test_a_changed_width(copied):
    edited(copied.paths.config, lambda config: config['model']['generator'].update(features=[4]))
    found = the_difference(copied, 10)
    assert found.step == 10 and 'of another model' in found.text


def test_a_config_that_lacks_a_group_is_refused_in_one_line(copied):
    edited(copied.paths.config, lambda config: config.update(parallel=3))
    with pytest.raises(UserError, match='parallel'):
        verify(copied.folder)


def test_changed_lines_of_metrics(copied):
    kept = lines(copied)
    k = next(k for k, line in enumerate(kept) if '"step": 15, "split": "eval"' in line)
    row = json.loads(kept[k])
    row['samples/high_quality'] += 0.25
    changed, lost = json.dumps(row) + '\n', [*kept[:k], *kept[k + 1 :]]
    for words, there in (('samples/high_quality is', [*kept[:k], changed, *kept[k + 1 :]]), ('it is the row of', lost)):
        copied.paths.metrics.write_text(''.join(there))
        found = the_difference(copied)
        assert found.step == 15 and found.place == f'metrics.jsonl, line {k + 1}' and words in found.text
    copied.paths.metrics.write_text(''.join(kept[:-1]))
    assert the_difference(copied, 30).text == 'there is none; the rerun writes the row of step 30, final'
    copied.paths.metrics.write_text(''.join([*kept, kept[-1]]))
    found = the_difference(copied, 30)
    assert (found.place, found.text) == (f'metrics.jsonl, line {len(kept) + 1}', 'the rerun writes no such row')


def test_a_changed_evaluation(copied):
    edited(copied.paths.evaluation, lambda found: found['samples/high_quality'].update(value=1.0))
    found = the_difference(copied, 30)
    assert found.place == 'evaluation.json' and 'samples/high_quality.value is 1.0 there' in found.text
    copied.paths.evaluation.unlink()
    assert not verify(copied.folder, 30).evaluation


def test_another_numerics_key(copied):
    now = copied.manifest
    assert now['numerics'] == numerics.key(now)
    for change, words in (
        (lambda found: found['packages'].update(jax='0.1'), 'packages.jax: 0.1 there'),
        (lambda found: found['device'].update(threads=99), 'device.threads: 99 there'),
        (lambda found: found.update(xla_flags='--xla_cpu_enable_fast_math=true'), 'xla_flags: --xla_cpu_enable'),
        (lambda found: found['jax'].update(jax_enable_x64='True'), 'jax.jax_enable_x64: True there, False here'),
        (lambda found: found['execution'].update(mode='pmap'), 'execution.mode: pmap there, jit here'),
        (lambda found: found['environment'].update(LIBTPU_INIT_ARGS='x'), 'environment.LIBTPU_INIT_ARGS: x there'),
    ):
        copied.paths.manifest.write_text(json.dumps(now))
        edited(copied.paths.manifest, change)
        assert numerics.key(copied.manifest) != now['numerics']
        assert words in the_reason(copied)


def test_a_start_with_other_numerics_is_left_out_by_from_step(copied):
    def change(found):
        (first,) = found['starts']
        first['made_with'] = {'device': {**found['device'], 'threads': 99}}
        found['starts'] = [first, {**first, 'step': 20}]
        del found['starts'][1]['made_with']

    edited(copied.paths.manifest, change)
    reason = the_reason(copied, 10)
    assert 'device.threads: 99 there' in reason and '(up to step 20; --from_step=20 begins behind it)' in reason
    assert verify(copied.folder, 20).kind == IDENTICAL


def test_an_older_manifest_is_compared_by_what_it_has(copied):
    def change(found):
        for name in ('jax', 'environment', 'numerics'):
            del found[name]
        for name in ('threads', 'processor', 'vector_features', 'runtime'):
            del found['device'][name]

    edited(copied.paths.manifest, change)
    verdict = verify(copied.folder, 20)
    assert verdict.kind == IDENTICAL and 'device.threads' in verdict.notes[0]
    copied.paths.manifest.unlink()
    assert 'no manifest.json' in the_reason(copied)


def test_other_code_is_no_fault_of_the_run(copied):
    """It is identical all the same; where it is not, that is why it cannot be compared."""
    edited(copied.paths.manifest, lambda found: found.update(source='0' * 64))
    assert verify(copied.folder, 20).kind == IDENTICAL
    copied.paths.metrics.write_text(copied.paths.metrics.read_text().replace('"step": 30, ', '"step": 31, '))
    verdict = verify(copied.folder, 20)
    assert verdict.kind == NOT_COMPARABLE and verdict.found and 'the code of aigc_jax is another' in verdict.reasons[0]


def test_a_run_that_grew_is_comparable_from_where_it_did(tmp_path):
    """The learning rate decays over total_steps, so that the first steps of the run were others."""
    run = trained(tmp_path / 'run', total_steps=20, eval_every_steps=20)
    trained(run.folder, total_steps=30, eval_every_steps=20)
    verdict = verify(run.folder)
    assert verdict.kind == NOT_COMPARABLE and verdict.found
    assert 'total_steps was 20, 30 afterwards' in verdict.reasons[0] and '--from_step=20' in verdict.reasons[0]
    assert verify(run.folder, 20).kind == IDENTICAL


def test_a_run_from_another_run(whole, tmp_path):
    first = Run(shutil.copytree(whole.folder, tmp_path / 'first'))
    run = trained(tmp_path / 'run', init__run=first.folder)
    trained(first.folder, total_steps=40)  # init.step names no step, and the newest is another now
    assert verify(run.folder).kind == IDENTICAL
    text = first.paths.config.read_text()
    edited(first.paths.config, lambda config: config['optim']['generator'].update(ema_decay=0.5))
    assert 'optim.generator.ema_decay in config.json of' in (reason := the_reason(run)), reason
    assert 'is 0.5, and was 0.999 when this run began; bring that one back' in reason
    first.paths.config.write_text(text)
    resaved(first, 30, lambda state: state['params/generator/mlp/Dense_0/bias'].__setitem__(0, 9))
    assert 'is not the one that the run began with' in the_reason(run)
    assert verify(run.folder, 20).kind == IDENTICAL
    shutil.rmtree(first.paths.checkpoints / '30')
    assert f'init.run: {first.paths.checkpoints}: no checkpoint of step 30; there are [' in the_reason(run)
    shutil.rmtree(first.folder)
    assert the_reason(run) == f'init.run: {first.folder}, which the run began with, is no longer there; bring it back'


def test_a_run_from_a_checkpoint_of_hugging_face(copied, tmp_path):
    folder, header = tmp_path / 'theirs', b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    folder.mkdir()
    (folder / 'config.json').write_text('{"model_type": "gpt2"}')
    weights = len(header).to_bytes(8, 'little') + header
    (folder / 'model.safetensors').write_bytes(weights + bytes(4))
    config = copied.config
    config.init.run = str(folder)
    begun = {'init_step': 0, 'init_sha256': pretrained.digest(config)}
    edited(copied.paths.manifest, lambda found: found['starts'][0].update(begun))
    ground = lambda: comparable.Ground(copied, config, 0, [10, 20, 30])
    assert not ground().reasons and ground().config.init.step == ''  # which such a checkpoint refuses
    (folder / 'model.safetensors').write_bytes(weights + bytes(3) + b'1')
    assert 'is not the one that the run began with; bring that one back' in ground().reasons[0]
    shutil.rmtree(folder)
    assert ground().reasons == (f'init.run: {folder}, which the run began with, is no longer there; bring it back',)


def test_changed_data(tmp_path):
    path, points = tmp_path / 'points.npz', np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    np.savez(path, train=points)
    run = trained(tmp_path / 'run', data__name=f'npz:{path}', keep_checkpoints=1)
    points[17, 1] += 1e-6
    np.savez(path, train=points)
    assert 'is no longer what this run was trained on' in the_reason(run)
    path.unlink()
    assert str(path) in the_reason(run)


def test_a_changed_file_of_an_own_task(tmp_path):
    task = tmp_path / 'task.py'
    task.write_text(OWN_TASK)
    run = trained(tmp_path / 'run', task__name=task)
    assert verify(run.folder).kind == IDENTICAL
    task.write_text(OWN_TASK + '\n# changed\n')
    assert 'is no longer the file that the run was made with' in the_reason(run)


def test_what_is_no_run_or_trains_now_is_refused(copied, tmp_path):
    with pytest.raises(UserError, match='no run is there'):
        verify(tmp_path / 'nothing')
    assert not (tmp_path / 'nothing').exists()
    with pytest.raises(UserError, match=r'--from_step=15: no checkpoint .* there are \[10, 20, 30\]'):
        verify(copied.folder, 15)
    with copied.lock(), pytest.raises(UserError, match='trains in'):
        verify(copied.folder)
    with copied.unchanged(), pytest.raises(UserError, match='or verifies it'), copied.lock():
        pass
    shutil.rmtree(copied.paths.checkpoints)
    assert 'no checkpoint is kept' in the_reason(copied)


def test_a_full_disk_here_is_no_difference(copied, tmp_path, command_line):
    """Exit code 1 says that the run is different."""
    program = "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))\n"
    program += 'from aigc_jax import verify\nverify.main(sys.argv)\n'
    done = command_line.python('-c', program, f'--workdir={copied.folder}', '--from_step=20')
    assert done.returncode == 2 and not done.stdout, done
    assert 'cannot be run again here: cannot write ' in done.stderr and 'Traceback' not in done.stderr


def test_a_crash_is_no_verdict(copied, command_line):
    program = 'import sys\nfrom aigc_jax import verify\nfrom aigc_jax.studies import verification\n'
    program += 'verification.verify = lambda *a, **b: {}["a fault of the program"]\nverify.main(sys.argv)\n'
    done = command_line.python('-c', program, f'--workdir={copied.folder}')
    assert done.returncode == 3 and not done.stdout, done
    assert "KeyError: 'a fault of the program'" in done.stderr


def test_the_door(copied, command_line):
    door = lambda *arguments: command_line.python('-m', 'aigc_jax.verify', *arguments)
    done = door(f'--workdir={copied.folder}', '--from_step=20')
    assert done.returncode == 0 and done.stdout.startswith('identical: steps 20 to 30; checkpoint 30, '), done
    edited(copied.paths.evaluation, lambda found: found['samples/modes'].update(value=8))
    done = door(f'--workdir={copied.folder}', '--from_step=30')
    assert done.returncode == 1 and done.stdout.startswith('different\n  evaluation.json: samples/modes.value'), done
    done = door(f'--workdir={copied.folder}', '--form_step=30')
    assert done.returncode == 2 and not done.stdout and 'form_step' in done.stderr, done


def test_differences_of_arrays():
    x = np.array([1.0, -0.0, np.nan, 2.0], np.float32)
    assert differences.of_arrays(x, x.copy()) is None
    assert '1 of 4 elements of float32[4] differ' in differences.of_arrays(x, np.array([1, 0, np.nan, 2], np.float32))
    assert ' 2 ulp' in differences.of_arrays(np.array([-1e-45], np.float32), np.array([1e-45], np.float32))
    assert 'nan here' in differences.of_arrays(x, np.array([1, -0.0, np.nan, np.nan], np.float32))
    half = jax.numpy.asarray([1.0, 2.0], jax.numpy.bfloat16)
    assert ' 1 ulp' in differences.of_arrays(np.asarray(half), np.asarray(half * jax.numpy.bfloat16(1.0078125)))
    assert 'the first: 3 there, 4 here' in differences.of_arrays(np.array(3), np.array(4))
    assert '1 of 2 elements' in differences.of_arrays(np.array([1j, 2]), np.array([1j, 2 + 1j]))
    assert '1 of 2 elements' in differences.of_arrays(np.array([True, False]), np.array([True, True]))


def test_differences_of_lines():
    here = b'{"step": 10, "split": "train", "seed": 3, "loss": 0.5}\n'
    assert differences.of_lines(here, here) is None
    for there, text in (
        (here.replace(b'0.5', b'1.0'), 'step 10, train, seed 3: loss is 1.0 there, 0.5 here: 0.5 apart, relative 1'),
        (here.replace(b'10', b'15'), 'it is the row of step 15, train, seed 3 there, of step 10, train, seed 3 here'),
        (here.replace(b' ', b''), 'step 10, train, seed 3: the same values, written in other letters'),
        (b'[1]\n', 'it is no row there; here it is that of step 10, train, seed 3'),
    ):
        assert differences.of_lines(there, here) == text


def test_differences_of_values():
    assert differences.of_values({'a': 1.0, 'b': {'c': None}}, {'a': 1.0, 'b': {'c': None}}) is None
    assert differences.of_values({'a': {'b': 1.0}}, {'a': {'b': 2.0}}) == (
        'a.b is 1.0 there, 2.0 here: 1 apart, relative 0.5'
    )
    assert differences.of_values({'a': None}, {'a': 2.0}) == 'a is no finite number there, 2.0 here'
    assert differences.of_values({'a': 1, 'b': 1}, {'a': 1}) == 'b is there alone'


def test_a_damaged_tokenizer_and_a_teacher_that_is_gone(copied):
    """Both are told before anything is trained."""
    copied.paths.tokenizer.write_text('{"kind": "by')
    found = the_difference(copied, 20)
    assert found.place == 'tokenizer.json' and str(copied.paths.tokenizer) in found.text
    copied.paths.tokenizer.unlink()
    edited(copied.paths.config, lambda config: config['distill'].update(run='gone'))
    assert the_reason(copied, 20) == 'distill.run: gone, which the run began with, is no longer there; bring it back'
