"""Distillation: its loss, a teacher that stays as it is and is the same one after a resume, and mistakes."""

import copy
import dataclasses
import itertools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aigc_jax
from aigc_jax.adapt import distill, huggingface
from aigc_jax.core import rng, tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.step import abstract_params
from aigc_jax.core.types import Aux, Extra, Task, Turn
from aigc_jax.runs import classes, initial, manifest
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import teacher as teachers
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
TEXT = 'a cab and a bag had a head in a bed of beech\n' * 100
SMALL = {
    'total_steps': 4, 'log_every_steps': 2, 'eval_every_steps': 2, 'checkpoint_every_steps': 2, 'batch_size': 16,
    'data.tokenizer': 'char', 'data.block': 12, 'data.eval_stride': 12, 'eval.ngram_order': 1, 'eval.num_samples': 0,
    'eval.num_shown': 1, 'eval.best_metric': '', 'model.layers': 1, 'optim.model.name': 'adam',
    'optim.model.options': {}, 'optim.model.schedule': {'name': 'constant_schedule', 'value': 1e-2},
    'optim.model.learning_rate_rules': (),
}  # fmt: skip
STUDENT = {'distill.weight': 0.75, 'distill.temperature': 3.0, 'model.dropout': 0.1}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """With a text, and `teacher`, a run that is twice as wide as the students, of another block, with an average."""
    folder = tmp_path_factory.mktemp('distill')
    (folder / 'text.txt').write_text(TEXT)
    wider = {'model.width': 32, 'model.norm': 'layernorm', 'model.dropout': 0.2, 'optim.model.ema_decay': 0.5}
    train(config(folder, **wider), Run(folder / 'teacher'))
    return folder


@pytest.fixture(scope='module')
def student(folder):
    train(config(folder, **taught(folder)), Run(folder / 'student'))
    return folder / 'student'


def config(folder, **fields):
    fields = {**SMALL, 'data.name': f'text:{folder}/text.txt', **fields}
    return config_lib.load('configs/gpt.py:smoke', [(name, str(value)) for name, value in fields.items()])


def taught(folder, **fields):
    return {**STUDENT, 'distill.run': str(folder / 'teacher'), **fields}


def state_of(path, step=None):
    return tree.flatten(jax.device_get(aigc_jax.open(path, step).state))


def rows(path):
    found = [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
    return [row for row in found if row['split'] == 'train']


OF_TASKS = {  # a config, with fields of the student and of the teacher
    'lm': ('gpt', {}, {'model.width': '32'}),
    'mlm': ('bert', {'model.positions': '48'}, {'model.width': '32', 'model.heads': '4', 'model.positions': '64'}),
    'seq2seq': ('t5', {}, {'model.layers': '2', 'model.width': '32'}),
    'classify': ('finetune_classify', {'model.positions': '48'}, {'model.width': '32', 'model.positions': '48'}),
}


@pytest.mark.parametrize('kind', OF_TASKS)
def test_the_loss_is_that_of_the_paper(folder, kind):
    """(1 − w) L + w T² KL, over the places that L is over, in float64, of what each model says by itself."""
    name, own, other = OF_TASKS[kind]
    common = {'model.dropout': '0.0', 'data.name': f'text:{folder}/text.txt'}
    if kind == 'classify':
        words = [[f'x{i}', *['a', 'cab', 'and'][: i % 4]] for i in range(40)]
        rows = [{'tokens': row, 'tags': ['short' if word == 'a' else 'long' for word in row]} for row in words]
        (folder / 'tagged.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
        common |= {'data.name': f'tagged:{folder}/tagged.jsonl', 'data.valid_percent': '25', 'data.test_percent': '0'}
        common |= {'eval.final_split': 'valid'}
    load = lambda fields: config_lib.load(f'configs/{name}.py:smoke', list((common | fields).items()))
    ours = Experiment(load(own))
    theirs = Experiment(load(other), dataset=ours.dataset)
    draws = np.random.default_rng(0)
    filled = lambda shapes: jax.tree.map(lambda x: draws.normal(size=x.shape, scale=0.3).astype(np.float32), shapes)
    params, teacher = (filled(abstract_params(task)) for task in (ours.task, theirs.task))
    config = ours.config.distill
    config.weight, config.temperature = 0.75, 3.0
    task = distill.adapted(ours.task, theirs.task, teacher, config)

    @jax.jit
    def call(index):
        ctx = rng.context(0, 'train', 0, index)
        batch = ours.train_preprocess(ours.examples('train', np.arange(5)), ctx)
        of = ((task, params), (ours.task, params), (theirs.task, teacher))
        return [one.rounds[0][0].loss(own, Extra({}, {}), batch, ctx) for one, own in of]

    (value, aux), (loss, alone), (_, of_teacher) = jax.device_get(call(jnp.arange(5)))
    wanted, counted = of_teacher.logits
    np.testing.assert_array_equal(counted, alone.logits[1])  # the same tokens are hidden from both
    assert kind in ('lm', 'seq2seq') or not counted.all()
    p, q = (np.exp(np.float64(x) / 3) for x in (wanted, alone.logits[0]))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    kl = (p * np.log(p / q)).sum(-1)[counted].mean()
    assert kl > 1e-4
    np.testing.assert_allclose(aux.metrics['teacher_kl'], kl, rtol=1e-4)
    np.testing.assert_allclose(value, 0.25 * loss + 0.75 * 9 * kl, rtol=1e-5)
    # What each says is what its own loss is the mean of.
    nats = aux.metrics.get('nats_per_token', aux.metrics.get('nats_per_masked_token', aux.metrics.get('nats')))
    assert nats == pytest.approx(float(loss), rel=1e-6) and aux.weight == alone.weight
    assert task.capabilities == ours.task.capabilities and task.init == ours.task.init


def test_the_gradient_is_that_of_the_paper():
    """∂(T² KL)/∂z = T (q − p) of each place, divided by the number of places (Hinton et al. 2015, section 2.1)."""
    z, v = (jax.random.normal(jax.random.key(k), (4, 7)) for k in range(2))
    counted = jnp.array([True, True, False, True])

    def linear(key):
        return {'model': {'z': z}}, Extra({}, {})

    def loss(params, extra, batch, ctx):
        return jnp.float32(0), Aux({}, extra, logits=(params['model']['z'], counted))

    task = Task(linear, ((Turn('model', loss),),))
    config = config_lib.ConfigDict({'weight': 1.0, 'temperature': 2.5})
    turn = distill.adapted(task, task, {'model': {'z': v}}, config).rounds[0][0]
    found = jax.grad(lambda params: turn.loss(params, Extra({}, {}), {}, None)[0])({'model': {'z': z}})['model']['z']
    expected = 2.5 * (jax.nn.softmax(z / 2.5) - jax.nn.softmax(v / 2.5)) / 3 * counted[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_teacher_is_read_as_it_was_evaluated_and_is_in_no_checkpoint(folder, student):
    run = aigc_jax.open(folder / 'teacher')
    average = tree.flatten(aigc_jax.core.optim.averaged(run.state.params, run.state.opt))
    experiment = Experiment(config(folder, **taught(folder)))
    teacher = teachers.load(experiment, Run(folder / 'new'), None)
    for name, leaf in tree.flatten(teacher.params).items():
        np.testing.assert_array_equal(leaf, average[name], err_msg=name)
    of_last = teachers.load(Experiment(config(folder, **taught(folder, **{'distill.average': False}))), Run('x'), None)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (teacher.params, of_last.params)), strict=True))
    # Nothing of it is in the state, and a call leaves it as it is.
    bare = Experiment(config(folder, **{'model.dropout': 0.1}))
    assert state_of(student).keys() == tree.flatten(bare.abstract_state).keys()
    before = {name: np.array(leaf) for name, leaf in tree.flatten(teacher.params).items()}
    data = experiment.resident_data(), teacher.params
    state, metrics = experiment.train_call(teacher)(
        experiment.create_state(), experiment.seed_array, data, next(experiment.feeds(0))
    )
    assert np.asarray(metrics['model/teacher_kl']).min() > 0
    for name, leaf in tree.flatten(teacher.params).items():
        np.testing.assert_array_equal(leaf, before[name], err_msg=name)
    # Its dropout is off, and the student's is on.
    assert teacher.task.rounds[0][0].loss.__self__.module.dropout == 0.0


def test_an_interrupted_run_is_the_uninterrupted_one_and_has_its_teacher_or_is_refused(folder, student, tmp_path):
    """A run whose teacher is another one or gone goes on when it is back, wherever, and is evaluated without it."""
    shutil.copytree(folder / 'teacher', folder / 'lent')
    own = config(folder, **taught(folder, **{'distill.run': str(folder / 'lent')}))
    half = own.copy_and_resolve_references()
    half.total_steps, run = 2, Run(tmp_path / 'run')
    train(half, run)
    whole, manifest = run.paths.metrics.read_bytes(), run.paths.manifest.read_text()
    digest = json.loads(manifest)['starts'][0]['teacher_sha256']

    def refused() -> str:
        with pytest.raises(UserError) as error:
            train(own, run)
        assert '\n' not in str(error.value) and run.paths.metrics.read_bytes() == whole
        return str(error.value)

    run.paths.manifest.write_text(manifest.replace(digest, '0' * 64))
    assert f'distill.run: the checkpoint of step 4 in {folder}/lent is not the one that this run was' in refused()
    run.paths.manifest.unlink()
    assert 'does not say which teacher' in refused()
    run.paths.manifest.write_text(manifest)
    theirs = folder / 'lent' / 'config.json'
    text = theirs.read_text()
    theirs.write_text(text.replace('"softcap": 15.0', '"softcap": 30.0'))  # the same parameters, and another function
    assert f'distill.run: model.softcap in config.json of {folder}/lent is 30.0, and was 15.0 when this' in refused()
    theirs.write_text(text)
    (folder / 'lent' / 'checkpoints' / '4').rename(folder / 'lent' / 'checkpoints' / '5')
    assert 'no checkpoint of step 4' in refused()
    shutil.rmtree(folder / 'lent')
    gone = f'distill.run: there is no folder {folder}/lent, which this run was trained with; where it lies elsewhere'
    assert refused() == f'{gone} now, add --config.distill.run=FOLDER'
    assert np.isfinite(aigc_jax.open(tmp_path / 'run').log_prob([TEXT[:10]])).all()
    shutil.copytree(folder / 'teacher', folder / 'an other pläce')
    own.distill.run = str(folder / 'an other pläce')
    train(own, run)
    found = state_of(run.folder)
    for name, leaf in state_of(student).items():
        np.testing.assert_array_equal(leaf, found[name], err_msg=name)
    starts = json.loads(run.paths.manifest.read_text())['starts']
    assert [(start['teacher_step'], start['teacher_sha256']) for start in starts] == [(4, digest)] * 2
    assert len(digest) == 64


def test_each_seed_has_the_teacher(folder, student):
    experiment = Experiment(config(folder, **taught(folder), num_seeds=2, replicas='map'))
    teacher = teachers.load(experiment, Run(folder / 'new'), None)
    call, state = experiment.train_call(teacher), experiment.create_state()
    for feed in itertools.islice(experiment.feeds(0), 4):
        state, _ = call(state, experiment.seed_array, (experiment.resident_data(), teacher.params), feed)
    found = tree.flatten(state)
    for name, leaf in state_of(student).items():
        np.testing.assert_allclose(found[name][0], leaf, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('layout', [
    ('parallel.mesh.fsdp=8', "parallel.rules=(('.*', 'fsdp'),)"), ('parallel.mode=pmap', 'micro_batches=2'),
], ids=['fsdp', 'pmap'])  # fmt: skip
def test_eight_devices_train_the_same(runner8, folder, student, layout, tmp_path):
    fields = {**SMALL, **taught(folder), 'data.name': f'text:{folder}/text.txt'}
    fields = [f'--config.{name}={value}' for name, value in fields.items()]
    more = [f'--config.{field}' for field in layout]
    code, _, err = runner8('--config=configs/gpt.py:smoke', f'--workdir={tmp_path}/run', *fields, *more)
    assert code == 0, err
    for own, theirs in zip(rows(tmp_path / 'run'), rows(student), strict=True):
        assert own.keys() == theirs.keys() and theirs['model/teacher_kl'] > 0
        for name in theirs.keys() - {'split'}:
            assert own[name] == pytest.approx(theirs[name], rel=1e-4), name


def test_a_teacher_of_hugging_face(folder):
    """Its tokenizer is that of the run, and it reads windows shorter than those it was made for."""
    path = GOLDENS / 'gpt2'
    fields = {'distill.run': path, 'data.tokenizer': f'hf:{path}', 'model.vocab_size': 0}
    whole = aigc_jax.from_pretrained(path)
    rows_of = jax.tree.leaves(whole.state.params['model']['embed'])[0].shape[0]
    experiment = Experiment(config(folder, **{**fields, 'model.vocab_size': rows_of}))
    teacher = teachers.load(experiment, Run(folder / 'new'), None)
    theirs = tree.flatten(whole.state.params)
    for name, leaf in tree.flatten(teacher.params).items():
        np.testing.assert_array_equal(leaf, theirs[name][: leaf.shape[0]], err_msg=name)
    assert teacher.taken['teacher_step'] == 0


OTHER = 'x yzx xnd x zxw hxd x hexd in x zed of zeeyh\n' * 100  # as many letters


@pytest.mark.parametrize('fields, words', [
    ({'data.tokenizer': 'byte'}, r'distill.run: the tokenizer of .* \(1\d tokens\) is another .* \(256 tokens\)'),
    ({'distill.run': '/nowhere'}, 'distill.run: there is no folder /nowhere'),
    ({'distill.run': ''}, None),
    ({'distill.run': '', 'distill.step': '4'}, 'distill.step: 4, but distill.run names no run'),
    ({'distill.step': '3'}, 'no checkpoint of step 3; there are'),
    ({'distill.step': 'last'}, 'distill.step=last: a number'),
    ({'data.block': 2000}, None),
    ({'distill.run': str(GOLDENS / 'gpt2'), 'data.block': 2000}, 'data.block: 2000; the model of distill.run'),
    ({'distill.run': str(GOLDENS / 'bert_masked')}, 'task.name: lm, but distill.run'),
])  # fmt: skip
def test_what_is_no_teacher(folder, fields, words):
    experiment = Experiment(config(folder, **taught(folder, **fields)), is_plan=True)
    if words is None:
        assert bool(teachers.load(experiment, Run(folder / 'new'), None)) == bool(experiment.config.distill.run)
        return
    with pytest.raises(UserError, match=words) as error:
        teachers.load(experiment, Run(folder / 'new'), None)
    assert '\n' not in str(error.value)


def test_a_tokenizer_of_the_same_size_is_another(folder):
    (folder / 'other').mkdir()
    (folder / 'other' / 'text.txt').write_text(OTHER)
    experiment = Experiment(config(folder / 'other', **taught(folder)))
    size = Run(folder / 'teacher').tokenizer.vocab_size
    assert experiment.dataset.spec.tokenizer.vocab_size == size
    with pytest.raises(UserError, match=rf'distill.run: the tokenizer of .* \({size} tokens\) is another'):
        teachers.load(experiment, Run(folder / 'new'), None)


@pytest.mark.parametrize('name, words', [
    ('vae', 'distill.run: .* is a run of task.name=lm, and this one of vae'),
    ('bert', 'distill.run: .* is a run of task.name=lm, and this one of mlm'),
])  # fmt: skip
def test_a_teacher_of_another_kind_of_task(folder, name, words):
    fields = [('distill.run', str(folder / 'teacher'))]
    fields += [('data.name', f'text:{folder}/text.txt')] * (name == 'bert')
    own = config_lib.load(f'configs/{name}.py:smoke', fields)
    with pytest.raises(UserError, match=words):
        teachers.load(Experiment(own), Run(folder / 'new'), None)


def test_classes_of_other_names_are_told(tmp_path, capsys):
    of = {}
    for labels in ('ab', 'cd'):
        rows = [{'text': f'{i} x', 'label': labels[i % 2]} for i in range(40)]
        (tmp_path / f'{labels}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
        fields = [('data.name', f'labelled:{tmp_path}/{labels}.jsonl'), ('data.valid_percent', '20')]
        fields += [('data.test_percent', '20'), ('model.positions', '50')]
        of[labels] = Experiment(config_lib.load('configs/finetune_classify.py:smoke', fields))
    run = Run(tmp_path)
    manifest.write(run.paths.manifest, of['ab'], 0, {})
    words = [classes.other(str(tmp_path), of[labels], 'distill.run') for labels in ('ab', 'cd')]
    assert words[0] == '' and words[1].startswith(f'distill.run: {tmp_path} knows other classes than those of labelled')
    assert 'does not name' not in capsys.readouterr().err
    manifest.check(run.paths.manifest, of['ab'])
    renamed = copy.copy(of['ab'])
    renamed.dataset = dataclasses.replace(renamed.dataset, class_names=('c', 'd'))  # no part of its fingerprint
    with pytest.raises(UserError, match='^data.name: the classes of labelled:.* have other names than those that this'):
        manifest.check(run.paths.manifest, renamed)
    # A checkpoint of Hugging Face says them in its config.json, or has LABEL_0, LABEL_1, ….
    about = json.loads((GOLDENS / 'bert_sequence' / 'config.json').read_text())
    shutil.copytree(GOLDENS / 'bert_sequence', tmp_path / 'theirs')
    for names in ('ab', 'ba', ['LABEL_0', 'LABEL_1']):
        about['id2label'] = dict(enumerate(names))
        (tmp_path / 'theirs' / 'config.json').write_text(json.dumps(about))
        said = classes.other(str(tmp_path / 'theirs'), of['ab'], 'distill.run')
        assert ('or in another order' in said) == (names == 'ba') and bool(said) == (names == 'ba')
    assert 'does not name its classes; they are taken to be a, b, in this order' in capsys.readouterr().err


def test_a_classifier_of_other_classes_is_not_evaluated_as_one_of_these(tmp_path, capsys):
    """Of init.run: classes a, b and c are 0, 1 and 2 of this run, and others of the checkpoint."""
    shutil.copytree(GOLDENS / 'bert_sequence', tmp_path / 'theirs')
    about = json.loads((GOLDENS / 'bert_sequence' / 'config.json').read_text())
    for names in (('b', 'a', 'c'), ('LABEL_0', 'LABEL_1', 'LABEL_2')):
        about['id2label'] = dict(enumerate(names))
        (tmp_path / 'theirs' / 'config.json').write_text(json.dumps(about))
        known = huggingface.class_names(huggingface.Folder(tmp_path / 'theirs'))
        assert known == (names if names[0] == 'b' else ())
    rows = [json.dumps({'text': f'{i} x', 'label': 'abc'[i % 3]}) for i in range(60)]
    (tmp_path / 'data.jsonl').write_text('\n'.join(rows))
    fields = {'data.name': f'labelled:{tmp_path}/data.jsonl', 'data.valid_percent': '20', 'data.test_percent': '20'}
    config = config_lib.load('configs/finetune_classify.py:smoke', [*(fields | {'model.positions': '50'}).items()])
    experiment = Experiment(config)
    experiment.config.init.run = str(tmp_path / 'theirs')
    params = abstract_params(experiment.task)
    without = tree.map_named(lambda name, leaf: None if 'classifier' in name else leaf, params)
    initial._compare_classes(experiment, params)
    assert 'does not name its classes; they are taken to be a, b, c, in this order' in capsys.readouterr().err
    about['id2label'] = dict(enumerate('bac'))
    (tmp_path / 'theirs' / 'config.json').write_text(json.dumps(about))
    experiment.config.init.drawn = 'classifier'
    initial._compare_classes(experiment, without)
    assert without != params and not capsys.readouterr().err
    initial._compare_classes(experiment, params)
    assert 'knows other classes than those of labelled:' in capsys.readouterr().err
    experiment.config.total_steps = 0
    with pytest.raises(UserError, match='or in another order; give data with the same names of classes'):
        initial._compare_classes(experiment, params)


@pytest.mark.parametrize('conditional', ['True', 'False'])
def test_a_conditional_model_of_other_classes_draws_none_of_these(conditional, tmp_path):
    fields = [('model.conditional', conditional), ('init.run', str(tmp_path)), ('total_steps', '0')]
    experiment = Experiment(config_lib.load('configs/vae.py:smoke', fields))
    other = dataclasses.replace(experiment.dataset, class_names=tuple('abcdefghij'))
    theirs = Experiment(experiment.config)
    theirs.dataset = other
    manifest.write(Run(tmp_path).paths.manifest, theirs, 0, {})
    params = abstract_params(experiment.task)
    if conditional == 'False':
        return initial._compare_classes(experiment, params)
    with pytest.raises(UserError, match='init.run: .* knows other classes than those of '):
        initial._compare_classes(experiment, params)
