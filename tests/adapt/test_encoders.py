"""BERT and RoBERTa of Hugging Face: into runs, whose heads may be other ones, and back.

tests/nn/test_encoder.py compares what they compute. tests/adapt/goldens/ holds what transformers saved
(make_encoder_goldens.py).
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import aigc_jax
from aigc_jax.adapt import huggingface
from aigc_jax.core.errors import UserError
from aigc_jax.data.masking import joints
from aigc_jax.nn import encoder
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import initial
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
STILL = [
    ('optim.model.name', 'sgd'), ('optim.model.options', '{}'), ('optim.model.weight_decay_regex', ''),
    ('optim.model.schedule', "{'name': 'constant_schedule', 'value': 0.0}"), ('data.tokenizer', 'char'),
    *((name, '1') for name in ('total_steps', 'log_every_steps', 'eval_every_steps', 'checkpoint_every_steps')),
]  # fmt: skip


TEXT = ('data.eval_stride', '8'), ('data.tokenizer', 'char')


def run_of(checkpoint, folder, kind, *more):
    """A run of a single step that changes nothing, from a checkpoint: of 'text', or of 'labelled' or 'tagged' texts."""
    rows = [
        {'text': f'a cab {i}', 'label': 'xyz'[i % 3], 'tokens': ['a', 'cab', str(i)], 'tags': ['o', 'n', 'p']}
        for i in range(60)
    ]  # fmt: skip
    used = {'labelled': ('text', 'label'), 'tagged': ('tokens', 'tags'), 'text': ('text',)}[kind]
    (folder / 'data.jsonl').write_text(''.join(json.dumps({k: row[k] for k in used}) + '\n' for row in rows))
    name, config = ('jsonl', 'bert') if kind == 'text' else (kind, 'finetune_classify')
    own = [('data.name', f'{name}:{folder}/data.jsonl'), ('init.run', str(GOLDENS / checkpoint))]
    own += [('data.valid_percent', '20'), ('data.test_percent', '20'), ('data.block', '16')]
    own += [('data.eval_stride', '8')] if kind == 'text' else []
    run = Run(folder / f'run {len([*folder.iterdir()])}')
    train(config_lib.load(f'configs/{config}.py:smoke', STILL + own + [*more]), run)
    return aigc_jax.open(run.folder)


@pytest.mark.parametrize('name', ['bert_masked', 'roberta_sequence', 'bert_tokens'])
def test_no_step_is_the_checkpoint_itself_and_is_written_as_it_was_read(name, tmp_path):
    """To the bit, by the same names."""
    kind = {'masked': 'text', 'sequence': 'labelled', 'tokens': 'tagged'}[name.split('_')[1]]
    run = run_of(name, tmp_path, kind, *([] if kind == 'text' else [('init.drawn', ''), ('init.unused', '')]))
    if name.startswith('roberta'):
        with pytest.raises(UserError, match='padding is token 1; the padding of this tokenizer'):
            aigc_jax.export(run, tmp_path / 'out')
        return
    aigc_jax.export(run, tmp_path / 'out')
    before, after = (load_file(path / 'model.safetensors') for path in (GOLDENS / name, tmp_path / 'out'))
    assert before.keys() == after.keys()
    for tensor, value in before.items():
        np.testing.assert_array_equal(after[tensor], value, err_msg=tensor)
    theirs, ours = (json.loads((path / 'config.json').read_text()) for path in (GOLDENS / name, tmp_path / 'out'))
    for field in theirs.keys() & ours.keys() - {'id2label', 'label2id', 'dtype'}:
        if 'dropout' not in field and not field.endswith('token_id'):
            assert ours[field] == theirs[field], field
    if kind == 'tagged':
        assert ours['id2label'] == {'0': 'n', '1': 'o', '2': 'p'}


def test_a_classifier_begins_with_a_masked_language_model(tmp_path, capsys):
    run = run_of('bert_masked', tmp_path, 'labelled')
    said = capsys.readouterr().err
    params = run.state.params['model']
    assert '(4 arrays) drawn' in said and '(5 arrays) left' in said and 'mask_dense' not in params
    theirs = load_file(GOLDENS / 'bert_masked' / 'model.safetensors')
    kernel = theirs['bert.encoder.layer.1.output.dense.weight'].T
    np.testing.assert_array_equal(params['block_1']['down']['kernel'], kernel)
    with pytest.raises(UserError, match='holds what this model does not have: cls.predictions'):
        run_of('bert_masked', tmp_path, 'labelled', ('init.unused', ''))
    with pytest.raises(UserError, match='task.name: classify, but init.run'):
        run_of('gpt2', tmp_path, 'labelled')


def test_a_run_that_began_with_a_checkpoint_gives_its_model(tmp_path, capsys):
    """As the checkpoint itself does: no field of the model is to be set by hand, and what is given is not changed."""
    first = Run(run_of('bert_masked', tmp_path, 'text', ('total_steps', '0')).run.folder)
    shutil.copytree(first.folder, tmp_path / 'second')  # as if it had gone on from the first one
    second = Run(tmp_path / 'second')
    config, about = (json.loads(path.read_text()) for path in (second.paths.config, second.paths.manifest))
    config['init']['run'] = str(first.folder)
    second.paths.config.write_text(json.dumps(config))
    about['starts'][0]['init_config'] = {'optim.model.name': 'sgd'}
    second.paths.manifest.write_text(json.dumps(about))
    load = lambda name, run, *more: config_lib.load(
        f'configs/{name}.py:smoke',
        [*STILL[:4], ('init.run', str(run.folder)), ('data.name', f'jsonl:{tmp_path}/data.jsonl'), *more],
    )
    capsys.readouterr()
    for run in (first, second):
        own = load('bert', run, ('model.dropout', '0.25'), *TEXT)
        shape = {name: value for name, value in run.config.model.items() if name not in ('dropout', 'zero_init')}
        assert shape.items() <= own.model.to_dict().items() and own.model.dropout == 0.25
        assert f'note: model: that of init.run, {run.folder}: ' in capsys.readouterr().err
        assert config_lib.to_json(config_lib.resolved(own)) == config_lib.to_json(own) and not capsys.readouterr().err
    (params, _), _ = initial.model(Experiment(own, tokenizer=initial.tokenizer(own)))
    theirs = load_file(GOLDENS / 'bert_masked' / 'model.safetensors')
    kernel = theirs['bert.encoder.layer.1.output.dense.weight'].T
    np.testing.assert_array_equal(params['model']['block_1']['down']['kernel'], kernel)
    labelled = ('data.name', f'labelled:{tmp_path}/data.jsonl')
    assert load('finetune_classify', first, labelled).model.width == own.model.width != 0
    for name, value in (('model.width', '24'), ('data.block', '900')):
        with pytest.raises(UserError, match=f'^{name}: .*init.run, {first.folder}'):
            load('bert', first, (name, value))
    # One that did not begin with a checkpoint says by itself what fits, and the config stays as it is.
    del about['starts'][0]['init_config']
    config['init']['run'] = ''
    second.paths.config.write_text(json.dumps(config))
    second.paths.manifest.write_text(json.dumps(about))
    assert load('bert', second).model == config_lib.load('configs/bert.py:smoke', []).model


def test_the_first_checkpoints_of_bert_are_read(tmp_path):
    """With other names of scales and biases, both heads of pre-training, and copies of the embedding."""
    shutil.copytree(GOLDENS / 'bert_masked', tmp_path / 'old')
    whole = load_file(GOLDENS / 'bert_masked' / 'model.safetensors')
    old = lambda name: name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')
    more = {
        'bert.embeddings.position_ids': np.arange(20)[None],
        'cls.predictions.decoder.weight': whole['bert.embeddings.word_embeddings.weight'].copy(),
        'cls.seq_relationship.weight': np.zeros((2, 16)), 'bert.pooler.dense.weight': np.zeros((16, 16)),
        'bert.pooler.dense.bias': np.zeros(16),
    }  # fmt: skip
    tensors = {**{old(name): value for name, value in whole.items()}, **more}
    save_file({name: np.asarray(x, np.float32) for name, x in tensors.items()}, tmp_path / 'old' / 'model.safetensors')
    found = []
    for path, left in ((GOLDENS / 'bert_masked', ()), (tmp_path / 'old', ('pooler/kernel', 'pooler/bias'))):
        folder = huggingface.Folder(path)
        family = huggingface.family_of(folder)
        fields = family.fields(folder.config, 'here')
        own = {name.removeprefix('model.'): value for name, value in fields.items() if name.startswith('model.')}
        module = encoder.Encoder(vocab_size=61, masked=True, zero_init=False, dropout=0.0, attention='einsum', **own)
        abstract = jax.eval_shape(lambda module=module: encoder.init(module, jax.random.key(0)))
        found.append(huggingface.read(folder, family, fields, abstract, left))
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize('name, tensor, more', [
    ('bert_masked', 'cls.predictions.decoder.weight', 'bert.embeddings.word_embeddings.weight'),
    ('bert_masked', 'cls.predictions.decoder.bias', 'cls.predictions.bias'),
    ('roberta_masked', 'lm_head.decoder.weight', 'roberta.embeddings.word_embeddings.weight'),
    ('bert_sequence', 'cls.predictions.decoder.weight', 'bert.embeddings.word_embeddings.weight'),
])  # fmt: skip
def test_a_head_that_is_not_the_embedding_is_refused_where_it_is_used(name, tensor, more, tmp_path):
    shutil.copytree(GOLDENS / name, tmp_path / 'other')
    whole = load_file(GOLDENS / name / 'model.safetensors')
    save_file(whole | {tensor: whole[more] + 1}, tmp_path / 'other' / 'model.safetensors')
    folder = huggingface.Folder(tmp_path / 'other')
    family, fields = huggingface.family_of(folder), huggingface.fields_of(folder)
    own = {field.removeprefix('model.'): value for field, value in fields.items() if field.startswith('model.')}
    heads = {'masked': True} if name.endswith('masked') else {'classes': 3}
    module = encoder.Encoder(vocab_size=61, zero_init=False, dropout=0.0, attention='einsum', **own, **heads)
    abstract = jax.eval_shape(lambda: encoder.init(module, jax.random.key(0)))
    if name == 'bert_sequence':
        huggingface.read(folder, family, fields, abstract)
        return
    with pytest.raises(UserError, match=f'{tensor} is another matrix than {more}'):
        huggingface.read(folder, family, fields, abstract)


def test_a_bert_that_was_trained_here_is_written_and_read_again(tmp_path):
    """Its positions are those of its windows: model.positions is 0."""
    run = run_of('', tmp_path, 'text', ('init.run', ''))
    aigc_jax.export(run, tmp_path / 'out')
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['max_position_embeddings'] == 18 and run.config.model.positions == 0
    again = aigc_jax.from_pretrained(tmp_path / 'out')
    assert again.fill('a <mask>b') == run.fill('a <mask>b')
    with pytest.raises(UserError, match='mlm writes no text and draws no samples'):
        aigc_jax.export(run, tmp_path / 'sampler', 'stablehlo')


def test_a_roberta_with_another_activation_is_refused_both_ways(tmp_path):
    """transformers has GELU before the logits of each RoBERTa: with relu in the blocks the logits differed by 0.4."""
    shutil.copytree(GOLDENS / 'roberta_masked', tmp_path / 'other')
    fields = huggingface.fields_of(huggingface.Folder(tmp_path / 'other'))
    config = json.loads((path := tmp_path / 'other' / 'config.json').read_text())
    path.write_text(json.dumps(config | {'hidden_act': 'relu'}))
    with pytest.raises(UserError, match="config.json: hidden_act is 'relu'; a RoBERTa has 'gelu' before its logits"):
        huggingface.fields_of(huggingface.Folder(tmp_path / 'other'))
    fields |= {'task.name': 'mlm', 'model.zero_init': False, 'model.activation': 'gelu'}
    with pytest.raises(UserError, match="model.activation: 'gelu'; a checkpoint of RoBERTa has no such model"):
        huggingface.family_for(fields).config(fields, 61)
    fields['model.position_offset'] = 0
    assert huggingface.family_for(fields).config(fields, 61)['hidden_act'] == 'gelu_new'


@pytest.mark.parametrize('kind', ['text', 'labelled', 'tagged'])
def test_transformers_loads_what_is_exported(kind, tmp_path):
    torch = pytest.importorskip('torch', reason='needs PyTorch')
    transformers = pytest.importorskip('transformers', reason='needs transformers')
    run = run_of('bert_masked', tmp_path, kind)
    aigc_jax.export(run, tmp_path / 'out')
    auto = {'text': 'MaskedLM', 'labelled': 'SequenceClassification', 'tagged': 'TokenClassification'}[kind]
    model = getattr(transformers, f'AutoModelFor{auto}').from_pretrained(tmp_path / 'out').eval()
    batch = run.experiment.dataset.splits['train'][np.arange(3)]
    lengths = batch.get('tokens_length', np.full(3, batch['tokens'].shape[1]))
    mask = np.arange(batch['tokens'].shape[1]) < lengths[:, None]
    with torch.no_grad():
        theirs = model(torch.tensor(batch['tokens']), attention_mask=torch.tensor(mask.astype(int))).logits.numpy()
    module = run.task.rounds[0][0].loss.__self__.module
    found = module.apply({'params': run.state.params['model']}, batch['tokens'], lengths)
    ours = next(value for value in (found.tokens, found.label, found.tags) if value is not None)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_masks_are_filled_in_by_a_checkpoint_with_its_tokenizer(tmp_path):
    shutil.copytree(GOLDENS / 'bert_masked', tmp_path / 'whole')
    letters = [*'abcdefghijklmnopqrstuvwxyz']
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *letters, *(f'##{one}' for one in letters), *'.,-+']
    (tmp_path / 'whole' / 'vocab.txt').write_text('\n'.join(words) + '\n')
    model = aigc_jax.from_pretrained(tmp_path / 'whole')
    (found,) = model.fill('a <mask> cab.', k=2)
    tokens = np.array([[2, 5, 4, words.index('c'), words.index('##a'), words.index('##b'), words.index('.'), 3]])
    module = model.task.rounds[0][0].loss.__self__.module
    shares = jax.nn.softmax(module.apply({'params': model.state.params['model']}, tokens).tokens[0, 2])
    best = np.argsort(-shares)[:2]
    assert str(found) == 'a, cab.' and found.choices[0][0][0] == ','
    assert [token for token, _ in found.choices[0]] == [words[token] for token in best]
    np.testing.assert_allclose([share for _, share in found.choices[0]], shares[best], rtol=1e-4)
    goes_on, goes_further = joints(model.tokenizer)
    assert [words[i] for i in np.flatnonzero(goes_on)] == [f'##{one}' for one in letters]
    assert [words[i] for i in np.flatnonzero(goes_further)] == [*letters, *(f'##{one}' for one in letters)]


def test_a_classifier_of_images_has_no_form_of_hugging_face():
    fields = config_lib.flatten(config_lib.load('configs/classify.py:smoke', []))
    with pytest.raises(UserError, match='task.name: classify, with this model, has no form'):
        huggingface.family_for(fields)
