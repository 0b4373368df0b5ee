"""Checkpoints of Hugging Face: read, computed with as transformers does, and written back.

tests/adapt/goldens/ holds small models as transformers saves them, with what it computes (make_goldens.py).
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import tempfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from aigc_jax.adapt import huggingface
from aigc_jax.core.errors import UserError
from aigc_jax.decoding import Sampling, sampling
from aigc_jax.decoding.beam import beam_search
from aigc_jax.nn.transformer import Transformer
from aigc_jax.runs import initial

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
DECODERS = 'gpt2', 'llama', 'qwen2', 'qwen3', 'mistral'
REST = dict(zero_init=False, dropout=0.0, attention='einsum', remat=False, end=None)


def fields_of(folder: huggingface.Folder) -> dict:
    return huggingface.family_of(folder).fields(folder.config, str(folder.path))


def decoder(folder: huggingface.Folder, **other) -> Transformer:
    fields = fields_of(folder)
    own = {name.removeprefix('model.'): value for name, value in fields.items() if name.startswith('model.')}
    del own['kind']
    return Transformer(**own, **REST | other, vocab_size=folder.config['vocab_size'], context=fields['data.block'])


def read(folder: huggingface.Folder, module, sharding=None) -> dict:
    abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32)))['params']
    abstract = jax.tree.map(lambda leaf: leaf.update(sharding=sharding), abstract)
    return huggingface.read(folder, huggingface.family_of(folder), fields_of(folder), abstract)


@pytest.fixture(scope='module', params=DECODERS)
def loaded(request):
    folder = huggingface.Folder(GOLDENS / request.param)
    module = decoder(folder)
    return folder, module, read(folder, module), np.load(folder.path / 'golden.npz')


def test_logits_are_those_of_transformers(loaded):
    _, module, params, golden = loaded
    logits = jax.jit(module.apply)({'params': params}, golden['tokens'])[0]
    assert np.std(golden['logits']) > 0.5
    np.testing.assert_allclose(logits, golden['logits'], atol=1e-4)


def test_logits_of_a_token_at_a_time_are_those_of_transformers():
    """Of a tied head, which few rows are multiplied by otherwise (nn.language_layers): those of all texts, and of each
    alone, as a draft reads them."""
    folder = huggingface.Folder(GOLDENS / 'gpt2')
    module, golden = decoder(folder), np.load(folder.path / 'golden.npz')
    params, tokens = read(folder, module), golden['tokens']
    assert module.tied and 1 < len(tokens) <= 8

    def stepwise(tokens):
        step = lambda state, token: module.apply({'params': params}, token[:, None], state)[::-1]
        _, logits = jax.lax.scan(step, module.initial_state(*tokens.shape), tokens.T)
        return logits[:, :, 0].swapaxes(0, 1)

    for found in jax.jit(lambda x: (stepwise(x), jax.vmap(lambda row: stepwise(row[None])[0])(x)))(tokens):
        np.testing.assert_allclose(found, golden['logits'], atol=1e-4)


def test_greedy_and_beam_search_write_the_same_tokens(loaded):
    """With the cache. Each text ends by its length; the penalty of lengths is 0."""
    _, module, params, golden = loaded
    apply, prompt = lambda tokens, state: module.apply({'params': params}, tokens, state), golden['tokens']
    new, key, index = golden['greedy'].shape[1], jax.random.key(0), jnp.arange(len(prompt))

    def both(prompt):
        state = lambda room: module.initial_state(len(prompt), prompt.shape[1] + room)
        greedy = sampling.sample(apply, state(new), prompt, key, index, Sampling(temperature=0.0), new)
        found = beam_search(apply, state(0), prompt, Sampling(beam_size=4), new, shared=True)
        return greedy.tokens, found.tokens

    greedy, beams = jax.jit(both)(prompt)
    np.testing.assert_array_equal(greedy, golden['greedy'])
    np.testing.assert_array_equal(beams, golden['beams'])
    assert (golden['greedy'] != golden['beams']).any()  # else the test of beams says nothing


def test_layers_in_a_loop_hold_the_same_weights(loaded):
    folder, module, params, golden = loaded
    stacked = module.clone(scan_layers=True)
    own = read(folder, stacked)
    assert set(own) & {'blocks'} and not set(own) & {'block_0'}
    np.testing.assert_allclose(stacked.apply({'params': own}, golden['tokens'])[0], golden['logits'], atol=1e-4)


def written(tmp_path, folder, params, **options) -> pathlib.Path:
    fields = {**fields_of(folder), 'task.name': 'lm'}
    family = huggingface.family_for(fields)
    config = family.config(fields, folder.config['vocab_size'])
    huggingface.write(tmp_path / 'out', config, huggingface.tensors(family, fields, params), **options)
    return tmp_path / 'out'


@pytest.mark.parametrize('scan_layers', [False, True])
def test_what_is_written_is_what_was_read(loaded, tmp_path, scan_layers):
    """To the bit, by the same names; the config.json describes the same model."""
    folder, module, *_ = loaded
    out = written(tmp_path, folder, read(folder, module.clone(scan_layers=scan_layers)))
    before, after = (load_file(path / 'model.safetensors') for path in (folder.path, out))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    again = huggingface.Folder(out)
    assert fields_of(again) == fields_of(folder)
    for name, value in folder.config.items():  # null: the default
        if name in again.config and value is not None and name not in ('rope_parameters', 'sliding_window'):
            assert again.config[name] == value, name


def test_shards_are_one_checkpoint(loaded, tmp_path):
    folder, module, params, _ = loaded
    out = written(tmp_path, folder, params, shard=4000)
    assert len(list(out.glob('*.safetensors'))) > 2
    index = json.loads((out / 'model.safetensors.index.json').read_text())
    assert index['metadata']['total_size'] == sum(4 * np.prod(s) for s in huggingface.Folder(out).shapes.values())
    jax.tree.map(np.testing.assert_array_equal, read(huggingface.Folder(out), module), params)


def test_the_bare_model_is_read_as_well(tmp_path):
    """GPT-2's own checkpoint on the hub has no prefix, and masks of attention."""
    folder = huggingface.Folder(GOLDENS / 'gpt2')
    shutil.copytree(folder.path, tmp_path / 'bare')
    whole = load_file(folder.path / 'model.safetensors')
    bare = {name.removeprefix('transformer.'): value for name, value in whole.items()}
    masks = {f'h.{i}.attn.bias': np.ones((1, 1, 40, 40), np.float32) for i in range(2)}
    save_file(bare | masks, tmp_path / 'bare' / 'model.safetensors')
    module = decoder(folder)
    found = read(huggingface.Folder(tmp_path / 'bare'), module)
    jax.tree.map(np.testing.assert_array_equal, found, read(folder, module))


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_read(tmp_path, dtype):
    folder = huggingface.Folder(GOLDENS / 'llama')
    shutil.copytree(folder.path, tmp_path / 'half')
    whole = load_file(folder.path / 'model.safetensors')
    half = {name: x.astype(dtype) for name, x in whole.items()}
    save_file(half, tmp_path / 'half' / 'model.safetensors')
    module = decoder(folder)
    near = lambda half, full: np.testing.assert_array_equal(half, full.astype(dtype).astype(np.float32))
    found = read(huggingface.Folder(tmp_path / 'half'), module)
    jax.tree.map(near, found, read(folder, module))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype('float32')}


def damaged(tmp_path, name: str, change) -> pathlib.Path:
    folder = tmp_path / 'model'
    shutil.copytree(GOLDENS / name, folder)
    change(folder)
    return folder


def config_with(**fields):
    def change(folder):
        found = json.loads((folder / 'config.json').read_text()) | fields
        (folder / 'config.json').write_text(json.dumps({k: v for k, v in found.items() if v is not None}))

    return change


def cut(folder):
    data = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(data[:-10])


def without(name):
    def change(folder):
        whole = load_file(folder / 'model.safetensors')
        del whole[name]
        save_file(whole, folder / 'model.safetensors')

    return change


def more(folder):
    whole = load_file(folder / 'model.safetensors')
    save_file(whole | {'classifier.weight': np.ones((2, 2), np.float32)}, folder / 'model.safetensors')


def pickled(folder):
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')


def shard_gone(folder):
    (folder / 'model.safetensors').unlink()
    index = {'weight_map': {'a': 'model-00001-of-00002.safetensors'}}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))


def shard_elsewhere(folder):
    (folder / 'model.safetensors').unlink()
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': '../x.safetensors'}}))


def a_pipe(folder):
    (folder / 'model.safetensors').unlink()
    os.mkfifo(folder / 'model.safetensors')


def two_shards(folder):
    whole = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').rename(folder / 'a.safetensors')
    save_file({name: x + 1 for name, x in whole.items()}, folder / 'b.safetensors')
    names = dict.fromkeys(whole, 'a.safetensors') | {'model.norm.weight': 'b.safetensors'}
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': names}))


def of_dtype(dtype):
    def change(folder):
        whole = load_file(folder / 'model.safetensors')
        save_file({name: x.astype(dtype) for name, x in whole.items()}, folder / 'model.safetensors')

    return change


DAMAGE = {
    'no config': ('llama', lambda folder: (folder / 'config.json').unlink(), 'has no config.json'),
    'no json': ('llama', lambda folder: (folder / 'config.json').write_text('{'), 'no JSON object with a model_type'),
    'no weights': ('llama', lambda folder: (folder / 'model.safetensors').unlink(), 'has neither model.safetensors'),
    'cut short': ('llama', cut, 'is no whole safetensors file'),
    'pickled': ('gpt2', pickled, 'import GPT2LMHeadModel as t; t.from_pretrained'),
    'a shard gone': ('llama', shard_gone, 'lacks the shard model-00001-of-00002.safetensors'),
    'a shard elsewhere': ('llama', shard_elsewhere, 'which is no file of the folder'),
    'another kind': ('llama', config_with(model_type='mamba'), "model_type is 'mamba'"),
    'a misspelt kind': ('llama', config_with(model_type='lama'), 'did you mean llama?'),
    'another shape': ('llama', config_with(hidden_size=32), 'asks for'),
    'no number': ('llama', config_with(num_hidden_layers='two'), "num_hidden_layers is 'two'"),
    'another activation': ('gpt2', config_with(activation_function='mish'), "activation_function is 'mish'"),
    'no gate': ('gpt2', config_with(activation_function='silu'), "activation_function is 'silu'; known: gelu_new"),
    'a list': ('gpt2', config_with(activation_function=['gelu']), "activation_function is ['gelu']"),
    'no rope': ('llama', config_with(rope_parameters=[1]), 'its rope is [1]'),
    'half of a head': ('llama', config_with(partial_rotary_factor=0.5), 'partial_rotary_factor is 0.5'),
    'no window': ('mistral', config_with(sliding_window='x'), "sliding_window is 'x'"),
    'a pipe': ('llama', a_pipe, 'it is a pipe or a device'),
    'in two shards': ('llama', two_shards, 'is in b.safetensors and in another shard, too'),
    'of eight bits': ('llama', of_dtype(ml_dtypes.float8_e4m3fn), 'is of the dtype F8_E4M3; F64, F32'),
    'quantized': ('llama', config_with(quantization_config={'quant_method': 'awq'}), 'are quantized (awq)'),
    'another rope': ('llama', config_with(rope_parameters={'rope_type': 'yarn'}), "of the type 'yarn'"),
    'two windows': (
        'qwen2', config_with(
            use_sliding_window=True, sliding_window=8, layer_types=['full_attention', 'sliding_attention']
        ),
        'some layers have a sliding window',
    ),
    'some biases': ('llama', config_with(attention_bias=True), 'attention_bias and mlp_bias differ'),
    'cross-attention': ('gpt2', config_with(add_cross_attention=True), 'add_cross_attention is True'),
    'a tensor missing': ('llama', without('model.norm.weight'), 'lacks model.norm.weight'),
    'a tensor more': ('llama', more, 'holds what this model does not have: classifier.weight'),
}  # fmt: skip


@pytest.mark.parametrize('name, change, words', DAMAGE.values(), ids=DAMAGE)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, name, change, words):
    path = damaged(tmp_path, name, change)
    with pytest.raises(UserError) as caught:
        folder = huggingface.Folder(path)
        read(folder, decoder(folder))
    assert words in str(caught.value) and str(path) in str(caught.value) and '\n' not in str(caught.value)


@contextlib.contextmanager
def bound():
    """As a user whom permissions bind, which root is not."""
    if is_root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize('name', [
    '', 'config.json', 'model.safetensors', 'model.safetensors.index.json', 'tokenizer.json', 'tokenizer_config.json'
])  # fmt: skip
def test_what_may_not_be_read_is_named(name):
    """The folder, or the file in it, and that a permission lacks."""
    config = ConfigDict({'init': {'run': str(GOLDENS / 'llama')}, 'data': {'tokenizer': 'char'}})
    initial.tokenizer(config)  # imports what it needs, which may lie where the user below may not read
    with tempfile.TemporaryDirectory() as place:  # that of tmp_path is entered by root alone
        os.chmod(place, 0o755)
        path = damaged(pathlib.Path(place), 'llama', two_shards if 'index' in name else lambda folder: None)
        config.init.run = str(path)
        (path / 'tokenizer_config.json').touch()
        os.chmod(path / name, 0)
        with bound(), pytest.raises(UserError) as caught:
            initial.tokenizer(config)
        os.chmod(path / name, 0o755)
    why = f'{path / name}: cannot be read: Permission denied; make it readable for this user'
    assert why in str(caught.value) and '\n' not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_not_half_there(tmp_path):
    def failing():
        yield 'a', np.zeros(3, np.float32)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        huggingface.write(tmp_path / 'out', {}, failing(), shard=1)
    assert not list(tmp_path.iterdir())
    (tmp_path / 'there').mkdir()
    with pytest.raises(UserError, match='is there already'):
        huggingface.write(tmp_path / 'there', {}, iter(()))


def test_what_no_checkpoint_can_hold_is_refused_by_its_field():
    folder = huggingface.Folder(GOLDENS / 'llama')
    fields = {**fields_of(folder), 'task.name': 'lm', 'model.softcap': 15.0}
    with pytest.raises(UserError, match='model.softcap: 15.0'):
        huggingface.family_for(fields).config(fields, 61)
    with pytest.raises(UserError, match='task.name: vae'):
        huggingface.family_for({'task.name': 'vae'})


def test_a_run_is_no_checkpoint_of_hugging_face(tmp_path):
    (tmp_path / 'config.json').write_text('{"schema": 3}')
    assert not huggingface.is_folder(tmp_path) and not huggingface.is_folder(tmp_path / 'none')
    assert huggingface.is_folder(GOLDENS / 'gpt2')


@pytest.mark.parametrize('text', ['{"n_embd": 3}', '[]', '{', None])
def test_weights_beside_a_damaged_config_are_those_of_a_checkpoint(tmp_path, text):
    """So that the message is of config.json, and not that there is no run."""
    shutil.copy(GOLDENS / 'gpt2' / 'model.safetensors', tmp_path)
    if text is not None:
        (tmp_path / 'config.json').write_text(text)
    assert huggingface.is_folder(tmp_path)
    with pytest.raises(UserError, match='config.json'):
        huggingface.Folder(tmp_path)


def test_a_file_that_changes_later_changes_no_parameter(tmp_path):
    """The first tensor begins where JAX would take memory as it is."""
    shutil.copytree(GOLDENS / 'gpt2', tmp_path / 'copy')
    path = tmp_path / 'copy' / 'model.safetensors'
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], 'little')
    header = whole[8:end] + b' ' * (-end % 64)
    path.write_bytes(len(header).to_bytes(8, 'little') + header + whole[end:])
    folder = huggingface.Folder(path.parent)
    one = jax.sharding.NamedSharding(jax.make_mesh((1,), ('data',)), jax.sharding.PartitionSpec())
    params = read(folder, decoder(folder), one)
    before = jax.tree.map(np.array, params)
    with open(path, 'r+b') as file:
        file.seek(8 + len(header))
        file.write(b'\1' * (len(whole) - end))
    assert all((folder.read(name) == np.full(1, 0x01010101, np.int32).view(np.float32)).all() for name in folder.shapes)
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.parametrize('name', ['gpt2', 'qwen2', 't5_v1_0'])
def test_a_head_of_its_own_is_read_whatever_the_config_says(tmp_path, name):
    """As transformers 5 does: it ties no two matrices of a checkpoint that differ. A copy of the embedding is none."""
    whole = load_file(GOLDENS / name / 'model.safetensors')
    (embedding,) = (key for key in whole if re.search(r'(wte|embed_tokens|shared)\.weight$', key))
    for factor, is_tied in ((1, True), (2, False)):
        shutil.copytree(GOLDENS / name, folder := tmp_path / str(factor))
        save_file(whole | {'lm_head.weight': factor * whole[embedding]}, folder / 'model.safetensors')
        fields = huggingface.fields_of(huggingface.Folder(folder))
        assert fields['model.tied'] is is_tied and fields.get('model.scaled_logits', True)


@pytest.mark.parametrize('config, window', [
    ({}, 0), ({'use_sliding_window': True}, 0), ({'use_sliding_window': True, 'max_window_layers': 0}, 8),
    ({'use_sliding_window': True, 'max_window_layers': 2}, 0),
    ({'use_sliding_window': True, 'layer_types': ['sliding_attention'] * 2}, 8),
    ({'use_sliding_window': True, 'max_window_layers': 0, 'layer_types': ['full_attention'] * 2}, 0),
    ({'use_sliding_window': True, 'max_window_layers': 0, 'sliding_window': None}, 0),
])  # fmt: skip
def test_the_window_of_qwen_is_that_of_its_layers(config, window):
    """Layers from max_window_layers on have it, so that none has it where they are as many."""
    theirs = {name: value for name, value in huggingface.Folder(GOLDENS / 'qwen2').config.items()
              if name not in ('layer_types', 'max_window_layers', 'use_sliding_window')}  # fmt: skip
    fields = huggingface.FAMILIES['qwen2'].fields(theirs | {'sliding_window': 8} | config, 'here')
    assert fields['model.window'] == window


def test_the_window_of_a_mistral_that_names_none_is_that_of_transformers():
    theirs = dict(huggingface.Folder(GOLDENS / 'mistral').config)
    del theirs['sliding_window']
    found = lambda **more: huggingface.FAMILIES['mistral'].fields(theirs | more, 'here')['model.window']
    assert found() == 4096 and found(sliding_window=None) == 0
