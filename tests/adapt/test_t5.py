"""T5 v1.0, v1.1 and CodeT5: read, computed with and written with as transformers does, and written back.

tests/adapt/goldens/ holds small models as transformers saves them, with what it computes (make_t5_goldens.py).
"""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from stacks import stacked

import aigc_jax
from aigc_jax.adapt import huggingface
from aigc_jax.core.capabilities import Seq2Seq
from aigc_jax.core.errors import UserError
from aigc_jax.decoding import Sampling
from aigc_jax.decoding.beam import beam_search
from aigc_jax.decoding.language import TextDecoder
from aigc_jax.nn.encoder_decoder import EncoderDecoder, distance_buckets

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
NAMES = 't5_v1_0', 't5_v1_1', 'codet5'
ATOL = 1e-4


def module_of(folder: huggingface.Folder, **more) -> EncoderDecoder:
    fields = huggingface.fields_of(folder)
    own = {name.removeprefix('model.'): value for name, value in fields.items() if name.startswith('model.')}
    rest = {'vocab_size': folder.config['vocab_size'], 'dropout': 0.0, 'attention': 'einsum'}
    return EncoderDecoder(**own, **rest | more)


def read(folder: huggingface.Folder, module: EncoderDecoder) -> dict:
    tokens = jnp.zeros((1, 4), jnp.int32)
    abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, tokens > 0, tokens))['params']
    return huggingface.read(folder, huggingface.family_of(folder), huggingface.fields_of(folder), abstract)


@pytest.fixture(scope='module', params=[*NAMES, 't5_v1_0 scan'])
def loaded(request):
    name, *scan = request.param.split()
    folder = huggingface.Folder(GOLDENS / name)
    module = module_of(folder, scan_layers=bool(scan))
    return folder, module, read(folder, module), np.load(folder.path / 'golden.npz')


def mask_of(golden) -> np.ndarray:
    return np.arange(golden['source'].shape[1]) < golden['lengths'][:, None]


def seq2seq(module, params, end: int) -> Seq2Seq:
    call = lambda *arguments, method: module.apply({'params': params}, *arguments, method=method)

    def init_cache(params, extra, source, start, columns):
        mask = jnp.arange(source.shape[1]) >= start[:, None]
        return call(call(source, mask, method='encode'), mask, columns, method='initial_state')

    decode = lambda params, extra, tokens, cache: call(tokens, None, None, cache, method='decode')
    return Seq2Seq(decode, init_cache, None, ((), ()), vocab_size=module.vocab_size, eos=end, bos=0, columns=True)


def prompts(golden) -> tuple[np.ndarray, np.ndarray]:
    """The sources, filled on the left, and where each begins."""
    start = (golden['source'].shape[1] - golden['lengths']).astype(np.int32)
    return np.stack([np.roll(row, n) for row, n in zip(golden['source'], start, strict=True)]).astype(np.int32), start


@pytest.mark.parametrize('attention', ['einsum', 'xla'])
def test_logits_are_those_of_transformers(loaded, attention):
    """Of sources of unequal length. The encoder's features are compared where a source has a token."""
    folder, module, params, golden = loaded
    module, mask = module.clone(attention=attention), mask_of(golden)
    logits = module.apply({'params': params}, golden['source'], mask, golden['target'])
    assert np.std(golden['logits']) > 0.2
    np.testing.assert_allclose(logits, golden['logits'], atol=ATOL)
    memory = module.apply({'params': params}, golden['source'], mask, method='encode')
    np.testing.assert_allclose(memory[mask], golden['memory'][mask], atol=ATOL)


def test_gradients_are_those_of_the_other_attention():
    """Of the bias of distances too; of blocks that are computed again in the backward pass, and of those in a loop, of
    which the encoder has more here than the decoder."""
    folder = huggingface.Folder(GOLDENS / 't5_v1_1')
    module, golden = module_of(folder), np.load(folder.path / 'golden.npz')
    params, mask = read(folder, module), mask_of(golden)

    def gradient(module, params=params):
        loss = lambda p: (module.apply({'params': p}, golden['source'], mask, golden['target']) ** 2).mean()
        return jax.jit(jax.grad(loss))(params)

    wanted = gradient(module.clone(attention='xla'))
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(wanted))
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))
    for other in (module, module.clone(remat=True)):
        jax.tree.map(near, gradient(other), wanted)
    scanned = module.clone(scan_layers=True, remat=True)
    own = read(folder, scanned)
    jax.tree.map(np.testing.assert_array_equal, own, stacked(params))
    jax.tree.map(near, gradient(scanned, own), stacked(wanted))


@pytest.mark.parametrize('pieces', [[1] * 7, [3, 1, 3]], ids=str)
def test_written_piece_by_piece_it_is_the_same(loaded, pieces):
    """The source stands in the cache; filled on the left or on the right it is the same text."""
    _, module, params, golden = loaded
    source, start = prompts(golden)
    model = seq2seq(module, params, 1)
    cache, found, at = model.init_cache(None, None, source, start, 9), [], 0
    for piece in pieces:
        logits, cache = model.decode(None, None, golden['target'][:, at : at + piece], cache)
        found.append(logits)
        at += piece
    np.testing.assert_allclose(np.concatenate(found, axis=1), golden['logits'], atol=ATOL)


@pytest.mark.parametrize('name, how', [('greedy', Sampling(temperature=0.0)), ('beams', Sampling(beam_size=4))])
def test_greedy_and_beam_search_write_the_same_tokens(loaded, name, how):
    """Up to the end of each text; without a penalty of its length."""
    _, module, params, golden = loaded
    end = int(golden['end'])
    decoder, (source, start) = TextDecoder(seq2seq(module, params, end)), prompts(golden)
    index = np.arange(len(source), dtype=np.int32)
    found = decoder.generate(params, None, source, start, jax.random.key(0), index, how, 10, ())
    for tokens, length, wanted in zip(found.tokens, found.length, golden[name].tolist(), strict=True):
        wanted = wanted[: wanted.index(end) + 1] if end in wanted else wanted
        assert tokens[:length].tolist() == wanted
    assert (golden['greedy'] != golden['beams']).any()  # else the test of beams says nothing


def test_beams_share_what_was_read_and_copy_none():
    """A search has the source once for each text, not for each beam, and no step takes rows of keys or values."""
    folder = huggingface.Folder(GOLDENS / 't5_v1_0')
    module, (n, length, beams) = module_of(folder), (3, 11, 4)
    params, source, start = read(folder, module), jnp.zeros((n, length), jnp.int32), jnp.zeros((n,), jnp.int32)
    model = seq2seq(module, params, 1)

    def search(source, start):
        first, cache = model.begin(None, None, source, start, 0)
        apply = lambda tokens, cache: model.decode(None, None, tokens, cache)
        return beam_search(apply, cache, first, Sampling(beam_size=beams), 7, 1, shared=True)

    (loop,) = (e for e in jax.make_jaxpr(search)(source, start).jaxpr.eqns if e.primitive.name == 'while')
    shapes = [value.aval.shape for value in loop.params['body_jaxpr'].jaxpr.invars]
    kept = [(n, module.heads, columns, module.head_features) for columns in (length, 1 + 7 * beams)]
    assert [shapes.count(shape) for shape in kept] == [2 * module.layers] * 2
    assert sum(len(shape) == 4 for shape in shapes) == 4 * module.layers
    gathered = [e.invars[0].aval.shape for e in _every(loop.params['body_jaxpr'].jaxpr) if e.primitive.name == 'gather']
    assert gathered and not set(kept) & set(gathered)


def test_the_order_of_products_of_a_step_is_of_no_training():
    """Of few targets and a longer source, too: else the losses of runs would change in their last bits."""
    folder = huggingface.Folder(GOLDENS / 't5_v1_1')
    module = module_of(folder)
    params, source, target = read(folder, module), jnp.zeros((9, 20), jnp.int32), jnp.zeros((9, 4), jnp.int32)
    reordered = lambda call, *arguments: 'optimization_barrier' in str(jax.make_jaxpr(call)(*arguments))
    assert not reordered(lambda p: module.apply({'params': p}, source, source == 0, target), params)
    model, start = seq2seq(module, params, 1), jnp.zeros((9,), jnp.int32)
    cache = model.begin(None, None, source, start, 20)[1]
    assert reordered(lambda cache: model.decode(None, None, target, cache), cache)


def _every(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from _every(inner)


def test_buckets_of_distances_are_those_of_transformers():
    """Of the published models, 32 up to 128, and of the goldens, 8 up to 6; where the logarithm is whole, too."""
    buckets = np.load(GOLDENS / 't5_v1_0' / 'golden.npz')['buckets']
    for wanted, (both_ways, count, most) in zip(
        buckets, [(True, 32, 128), (False, 32, 128), (True, 8, 6), (False, 8, 6)], strict=True
    ):  # fmt: skip
        table = distance_buckets(count, most, both_ways)
        np.testing.assert_array_equal(table[np.clip(np.arange(-200, 201), -most, most) + most], wanted)


def test_dropout_is_where_t5_has_it():
    """In both stacks: of the embedding, the weights, the hidden units, what is added, and the last norm; each draws for
    itself, and the draws of an example are its own."""
    folder, drawn = huggingface.Folder(GOLDENS / 't5_v1_0'), []
    module = module_of(folder, dropout=0.5)
    tokens = jnp.zeros((1, 3), jnp.int32)

    def draw(name, shape):
        drawn.append(name)
        return jnp.full((1, *shape), 0.75)

    module.apply({'params': read(folder, module)}, tokens, tokens == 0, tokens, draw)
    wanted = [f'encoder/dropout/{name}' for name in ('embed', 'norm')]
    wanted += [f'decoder/dropout/{name}' for name in ('embed', 'norm')]
    for stack, more in (('encoder', []), ('decoder', ['cross', 'cross_weights'])):
        names = ['weights', 'attention', 'hidden', 'mlp', *more]
        wanted += [f'{stack}/dropout/{i}/{name}' for i in range(2) for name in names]
    assert sorted(drawn) == sorted(wanted)


@pytest.mark.parametrize('scan', [False, True])
def test_parameters_are_drawn_as_mesh_tensorflow_does(scan):
    """Deviations of 1/√(inputs), of queries divided by √d; of the embedding 1; of each layer its own."""
    shape = dict(vocab_size=400, layers=2, heads=4, width=64, head_width=32, mlp_width=256, activation='geglu')
    module = EncoderDecoder(**shape, tied=False, dropout=0.0, attention='einsum', scan_layers=scan)
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(0), tokens, tokens == 0, tokens)['params']
    whole = params if scan else stacked(params)
    assert jnp.abs(jnp.diff(whole['encoder_blocks']['up']['kernel'], axis=0)).mean() > 0.1
    block = jax.tree.map(lambda x: x[1], whole['decoder_blocks'])
    found = {name: float(jnp.std(block[name]['kernel'])) for name in block if 'norm' not in name}
    wide, narrow = 64**-0.5, 256**-0.5
    wanted = dict.fromkeys(('key', 'value', 'cross_key', 'cross_value', 'gate', 'up'), wide)
    wanted |= dict.fromkeys(('query', 'cross_query'), wide * 32**-0.5) | {'down': narrow}
    wanted |= dict.fromkeys(('out', 'cross_out'), 128**-0.5)
    assert found == pytest.approx(wanted, rel=0.05)
    assert jnp.std(params['embed']['embedding']) == pytest.approx(1, rel=0.05)
    assert jnp.std(params['head']['kernel']) == pytest.approx(wide, rel=0.05)


def test_what_is_written_is_what_was_read(loaded, tmp_path):
    """To the bit, by the same names; the config.json describes the same model."""
    folder, _, params, _ = loaded
    fields = {**huggingface.fields_of(folder), 'task.name': 'seq2seq', 'model.dropout': 0.1}
    family = huggingface.family_for(fields)
    config = family.config(fields, folder.config['vocab_size'])
    huggingface.write(tmp_path / 'out', config, huggingface.tensors(family, fields, params))
    before, after = (load_file(path / 'model.safetensors') for path in (folder.path, tmp_path / 'out'))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    again = huggingface.Folder(tmp_path / 'out')
    assert huggingface.fields_of(again) == huggingface.fields_of(folder)
    for name in again.config.keys() & folder.config.keys():
        assert again.config[name] == folder.config[name], name


@pytest.fixture
def copied(tmp_path):
    """copied(name, config=…, tensors=…) -> a folder with other fields in its config.json, and other tensors besides."""

    def make(name, tensors=None, **config):
        path = tmp_path / 'copy'
        shutil.copytree(GOLDENS / name, path)
        found = json.loads((path / 'config.json').read_text()) | config
        (path / 'config.json').write_text(json.dumps(found))
        if tensors:
            save_file(load_file(path / 'model.safetensors') | tensors, path / 'model.safetensors')
        return huggingface.Folder(path)

    return make


def test_as_transformers_5_saves_a_head_of_its_own(copied):
    """It writes that the head is tied, and keeps the weights."""
    folder = huggingface.Folder(GOLDENS / 't5_v1_1')
    found = copied('t5_v1_1', tie_word_embeddings=True, scale_decoder_outputs=False)
    assert huggingface.fields_of(found) == huggingface.fields_of(folder)
    jax.tree.map(np.testing.assert_array_equal, read(found, module_of(found)), read(folder, module_of(folder)))


def test_copies_of_the_embedding_are_not_read(copied):
    whole = load_file(GOLDENS / 't5_v1_0' / 'model.safetensors')['shared.weight']
    names = 'lm_head.weight', 'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'
    found = copied('t5_v1_0', {name: whole.copy() for name in names})
    assert huggingface.fields_of(found)['model.tied']
    read(found, module_of(found))


def test_another_embedding_of_the_encoder_is_refused(copied):
    whole = load_file(GOLDENS / 't5_v1_0' / 'model.safetensors')['shared.weight']
    folder = copied('t5_v1_0', {'encoder.embed_tokens.weight': whole + 1})
    with pytest.raises(UserError, match='encoder.embed_tokens.weight is another matrix than shared.weight'):
        read(folder, module_of(folder))


def test_a_tokenizer_whose_padding_begins_no_target_is_refused(copied):
    path = with_words(copied('t5_v1_0', decoder_start_token_id=7).path, 21)
    with pytest.raises(UserError, match='decoder_start_token_id is 7, and a target begins with the padding here'):
        aigc_jax.from_pretrained(path)


@pytest.mark.parametrize('change, words', [
    (dict(feed_forward_proj='gated-relu'), "feed_forward_proj is 'gated-relu'"),
    (dict(feed_forward_proj=['relu']), "feed_forward_proj is ['relu']"),
    (dict(d_kv=3), 'asks for'),
    (dict(num_decoder_layers=3), 'lacks decoder.block.2'),
    (dict(is_encoder_decoder=False), 'is_encoder_decoder is False'),
])  # fmt: skip
def test_another_model_is_refused_in_one_line(copied, change, words):
    folder = copied('t5_v1_0', **change)
    with pytest.raises(UserError) as caught:
        read(folder, module_of(folder))
    assert words in str(caught.value) and str(folder.path) in str(caught.value) and '\n' not in str(caught.value)


def test_the_folder_is_loaded_by_transformers(loaded, tmp_path):
    """Live: what is written is the same model there."""
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    torch = pytest.importorskip('torch', reason='PyTorch is not installed')
    folder, _, params, golden = loaded
    fields = {**huggingface.fields_of(folder), 'task.name': 'seq2seq'}
    family = huggingface.family_for(fields)
    config = family.config(fields, folder.config['vocab_size'])
    huggingface.write(tmp_path / 'out', config, huggingface.tensors(family, fields, params))
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / 'out').eval()
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(golden['source']), attention_mask=torch.tensor(mask_of(golden).astype(int)),
            decoder_input_ids=torch.tensor(golden['target']),
        ).logits  # fmt: skip
    np.testing.assert_allclose(logits, golden['logits'], atol=1e-5)


def with_words(folder: pathlib.Path, end: int) -> pathlib.Path:
    """A copy of a golden folder with a tokenizer whose token i is the word wi, and `end` that which ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    library = Tokenizer(models.WordLevel({f'w{i}': i for i in range(61)}, unk_token='w2'))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(['w0', 'w2', f'w{end}'])
    library.save(str(folder / 'tokenizer.json'))
    roles = {'pad_token': 'w0', 'unk_token': 'w2', 'eos_token': f'w{end}'}
    (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'PreTrainedTokenizerFast', **roles}))
    return folder


@pytest.mark.parametrize('name, how', [('greedy', {'temperature': 0.0}), ('beams', {'beam_size': 4})])
def test_a_folder_writes_in_a_notebook_as_in_transformers(copied, name, how):
    """From text to text, with the folder's own tokenizer."""
    golden = np.load(GOLDENS / 't5_v1_1' / 'golden.npz')
    end = int(golden['end'])
    model = aigc_jax.from_pretrained(with_words(copied('t5_v1_1').path, end))
    sources = zip(golden['source'], golden['lengths'], strict=True)
    texts = model.generate([' '.join(f'w{i}' for i in row[:n]) for row, n in sources], max_new_tokens=10, **how)
    for text, wanted in zip(texts, golden[name].tolist(), strict=True):
        wanted = wanted[: wanted.index(end) + 1] if end in wanted else wanted
        assert text.tokens.tolist() == wanted and not str(text).startswith(text.prompt)
