"""A model of other classes or of another tokenizer is refused where it would tell something else than it learned."""

import json
import pathlib
import shutil

import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.data import tokenizer_files
from aigc_jax.runs import classes, initial, manifest
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run

GOLDENS = pathlib.Path(__file__).parents[1] / 'adapt' / 'goldens'


def config(folder, labels, *more):
    rows = [json.dumps({'text': f'{i} x', 'label': labels[i % len(labels)]}) for i in range(40)]
    (folder / f'{labels}.jsonl').write_text('\n'.join(rows))
    own = {'data.name': f'labelled:{folder}/{labels}.jsonl', 'data.valid_percent': '20', 'data.test_percent': '20'}
    return config_lib.load('configs/finetune_classify.py:smoke', [*own.items(), *more])


def changed(folder, checkpoint, name, change):
    """A copy of a checkpoint in which `change` was made to the dict of one of its files."""
    shutil.copytree(GOLDENS / checkpoint, folder)
    said = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(change(said)))
    return str(folder)


def test_a_finished_run_is_not_evaluated_on_other_classes(tmp_path):
    """'b' is class 1 of both data, and was class 0 of the others: the accuracy would be that of no model."""
    own = config(tmp_path, 'ab', ('model.positions', '50'))
    run = Run(tmp_path / 'run')
    run.folder.mkdir()
    run.paths.config.write_text(config_lib.to_json(own))
    manifest.write(run.paths.manifest, Experiment(own), 0, {})
    for labels in ('bc', 'abc'):
        config(tmp_path, labels)
        with pytest.raises(UserError, match='data.name: .* has other classes .* give data with the same names'):
            run.open(overrides=[('data.name', f'labelled:{tmp_path}/{labels}.jsonl')])
    config(tmp_path, 'ba')
    with pytest.raises(UserError, match='there is no checkpoint yet'):  # the same names: the classes are the same
        run.open(overrides=[('data.name', f'labelled:{tmp_path}/ba.jsonl')])


def test_a_head_of_other_classes_is_named(tmp_path):
    whole = [('init.run', str(GOLDENS / 'bert_sequence')), ('init.drawn', ''), ('init.unused', '')]
    own = config(tmp_path, 'ab', ('data.tokenizer', 'char'), *whole)
    with pytest.raises(UserError, match=r'is \(3,\), and the classes of the data ask for \(2,\); init.drawn=classif'):
        initial.model(Experiment(own))
    experiment = Experiment(config(tmp_path, 'ab', ('model.positions', '50')))
    unnamed = changed(tmp_path / 'unnamed', 'bert_sequence', 'config.json',
                      lambda said: said | {'id2label': {str(i): f'LABEL_{i}' for i in range(3)}})  # fmt: skip
    assert 'knows other classes' in classes.other(unnamed, experiment, 'distill.run')
    several = changed(tmp_path / 'several', 'bert_sequence', 'config.json',
                      lambda said: said | {'problem_type': 'multi_label_classification'})  # fmt: skip
    with pytest.raises(UserError, match='problem_type is multi_label_classification'):
        classes.other(several, experiment, 'distill.run')


def test_a_tokenizer_beside_that_of_the_checkpoint_is_refused_if_it_is_another(tmp_path):
    name, reversed_ = 'tokenizer_config.json', lambda said: dict(reversed([*said.items(), ('backend', 'tokenizers')]))
    same = changed(tmp_path / 'same', 'gpt2', name, reversed_)
    other = changed(tmp_path / 'other', 'gpt2', name, lambda said: said | {'pad_token': 'a'})
    of = {folder: tokenizer_files.read(folder) for folder in (same, other, str(GOLDENS / 'gpt2'))}
    assert [of[folder].writes_as(of[str(GOLDENS / 'gpt2')]) for folder in of] == [True, False, True]

    def taken(tokenizer):
        fields = [('init.run', str(GOLDENS / 'gpt2')), ('data.tokenizer', tokenizer)]
        return initial.tokenizer(config_lib.load('configs/gpt.py:smoke', fields))

    assert taken(f'hf:{same}') == taken('auto') == of[str(GOLDENS / 'gpt2')]
    for folder in (other, GOLDENS / 'llama'):
        with pytest.raises(UserError, match=f'data.tokenizer: hf:{folder}, but .* which is another; set it to auto'):
            taken(f'hf:{folder}')


@pytest.mark.parametrize('what, words', [
    ('init.run', 'name the folder of a run, or of a checkpoint of Hugging Face'),
    ('prune.run', 'name the folder of a run$'),
])  # fmt: skip
def test_a_folder_of_neither_a_run_nor_a_checkpoint(what, words, tmp_path):
    with pytest.raises(UserError, match=f'{what}: {tmp_path} holds no config.json; {words}'):
        initial.source(tmp_path, what)


def test_classes_without_names_are_those_of_their_numbers():
    """Digits as they are embedded have no names, and of an .npz they have '0' to '9'."""
    known, numbers = manifest.classes(3, ()), ('0', '1', '2')
    assert manifest.are_classes(known, 3, numbers) and manifest.are_classes(manifest.classes(3, numbers), 3, ())
    for count, names in ((3, ('a', 'b', 'c')), (3, ('1', '0', '2')), (4, ()), (4, (*numbers, '3'))):
        assert not manifest.are_classes(known, count, names)
        assert manifest.are_classes(manifest.classes(count, names), count, names)
