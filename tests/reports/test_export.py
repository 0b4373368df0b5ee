"""A checkpoint of Hugging Face into a run, and a run into what other programs read."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import aigc_jax
from aigc_jax.adapt import huggingface
from aigc_jax.core.errors import UserError
from aigc_jax.data import tokenizers
from aigc_jax.reports import export

GOLDENS = pathlib.Path(__file__).parents[1] / 'adapt' / 'goldens'
TEXT = 'a cab and a bag had a head in a bed of beech\n' * 200
SCHEDULE = "--config.optim.model.schedule={{'name': 'constant_schedule', 'value': {}}}"  # whatever total_steps is
FIELDS = (
    '--config.data.block=32', '--config.eval.ngram_order=1', '--config.eval.num_samples=2', SCHEDULE.format(1e-3),
)  # fmt: skip
STEPS = 'total_steps', 'steps_per_call', 'log_every_steps', 'eval_every_steps', 'checkpoint_every_steps'


def from_checkpoint(name: str, tmp_path, *more) -> list[str]:
    (tmp_path / 'text.txt').write_text(TEXT)
    return [
        '--config=configs/gpt.py:smoke', f'--config.init.run={GOLDENS / name}', f'--workdir={tmp_path}/run',
        f'--config.data.name=text:{tmp_path}/text.txt', *FIELDS, *more,
    ]  # fmt: skip


@pytest.fixture(scope='module')
def tuned(runner, tmp_path_factory):
    """A run that was fine-tuned from the golden Llama."""
    folder = tmp_path_factory.mktemp('tuned')
    code, _, err = runner(*from_checkpoint('llama', folder))
    assert code == 0, err
    return folder / 'run'


def test_a_run_takes_the_model_of_the_checkpoint(tuned):
    config = json.loads((tuned / 'config.json').read_text())['model']
    assert config['width'] == 16 and config['activation'] == 'swiglu'
    assert config['rope_scaling'] == [8.0, 1.0, 4.0, 16.0]
    assert config['vocab_size'] == 61 and config['position'] == 'rope' and config['softcap'] == 0.0
    start = json.loads((tuned / 'manifest.json').read_text())
    assert len(start['starts'][0]['init_sha256']) == 64


def test_no_step_is_the_checkpoint_itself(runner, tmp_path):
    """What is exported after 0 steps is what was read, to the bit."""
    still = SCHEDULE.format(0.0), '--config.optim.model.name=sgd', '--config.optim.model.options={}'
    code, _, err = runner(*from_checkpoint('gpt2', tmp_path, *(f'--config.{name}=1' for name in STEPS), *still))
    assert code == 0, err
    code, out, err = runner(f'--workdir={tmp_path}/run', '--mode=export', f'--output={tmp_path}/out')
    assert code == 0 and f'{tmp_path}/out/model.safetensors' in out, err
    before, after = (load_file(path / 'model.safetensors') for path in (GOLDENS / 'gpt2', tmp_path / 'out'))
    for name, value in before.items():
        cut = value[:32] if name == 'transformer.wpe.weight' else value  # positions beyond data.block are not there
        np.testing.assert_array_equal(after.pop(name), cut)
    assert not after


def test_what_is_exported_is_the_average_that_was_evaluated(tuned, tmp_path):
    run = aigc_jax.open(tuned)
    assert {path.name for path in aigc_jax.export(run, tmp_path / 'out')} >= {'config.json', 'model.safetensors'}
    folder = huggingface.Folder(tmp_path / 'out')
    assert folder.config['architectures'] == ['LlamaForCausalLM'] and folder.config['vocab_size'] == 61
    kernel = run.state.params['model']['block_1']['query']['kernel']
    np.testing.assert_array_equal(folder.read('model.layers.1.self_attn.q_proj.weight'), np.asarray(kernel).T)


def test_transformers_loads_what_is_exported(tuned, tmp_path):
    torch = pytest.importorskip('torch', reason='needs PyTorch')
    transformers = pytest.importorskip('transformers', reason='needs transformers')
    run = aigc_jax.open(tuned)
    aigc_jax.export(run, tmp_path / 'out')
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
    tokens = np.arange(20).reshape(2, 10) % 15
    with torch.no_grad():
        nll = -torch.log_softmax(model(torch.from_numpy(tokens[:, :-1])).logits, -1)
    theirs = np.take_along_axis(nll.numpy(), tokens[:, 1:, None], 2)[..., 0]
    text = run.task.capabilities[1]
    ours = text.token_nll(run.state.params, None, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


STABLEHLO = '''
import json, sys
import jax, numpy as np
folder, out = sys.argv[1:]
about = json.load(open(f'{folder}/sampler.json'))
called = jax.export.deserialize(bytearray(open(f'{folder}/sampler.stablehlo', 'rb').read()))
inputs = [np.int32(3), *(np.arange(shape[0], dtype=np.int32) % 10 for _, *shape in list(about['inputs'].values())[1:])]
found = called.call(*inputs)
np.save(out, found)
if 'end' in about:
    import tokenizers
    tokenizer, rows = tokenizers.Tokenizer.from_file(f'{folder}/tokenizer.json'), np.asarray(found).tolist()
    cut = lambda row: row[: row.index(about['end'])] if about['end'] in row else row
    json.dump([tokenizer.decode(cut(row), skip_special_tokens=False) for row in rows], open(f'{out}.json', 'w'))
assert not {'aigc_jax', 'flax', 'optax', 'orbax'} & set(sys.modules), sys.modules.keys()
'''


@pytest.mark.parametrize('name', ['gan', 'gpt', 'gpt2'])
def test_a_sampler_runs_where_jax_is_alone(name, smoke, command_line, tmp_path):
    """Of a text model with the package tokenizers, which makes text of its tokens."""
    run = aigc_jax.from_pretrained(GOLDENS / name) if name == 'gpt2' else aigc_jax.open(smoke(name))
    aigc_jax.export(run, tmp_path / 'out', 'stablehlo', 5)
    about = json.loads((tmp_path / 'out' / 'sampler.json').read_text())
    assert about['jax'] == jax.__version__ and about['made'].startswith('20')
    (tmp_path / 'call.py').write_text(STABLEHLO)
    done = command_line.python(tmp_path / 'call.py', tmp_path / 'out', tmp_path / 'x.npy')
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / 'x.npy')
    labels = np.arange(5) % 10 if run.num_classes else None
    if run.tokenizer:
        assert json.loads((tmp_path / 'x.npy.json').read_text()) == run.sample(5, seed=3)
        assert about['end'] == run.tokenizer.end and (name == 'gpt2') == (about['end'] is not None)
    else:
        np.testing.assert_allclose(found, run.sample(5, seed=3, labels=labels), atol=1e-5)


def test_a_tokenizer_that_has_no_such_file_is_left_out_with_a_note(capsys):
    words = tokenizers.train('word', ['a b a b'], ['a b a b'], 8, False)
    assert export._texts(words) == {} == export._texts(None)
    assert 'note: format: the folder is without the tokenizer: a tokenizer of words' in capsys.readouterr().err


def test_safetensors_hold_all_parameters_by_their_paths(smoke, tmp_path):
    run = aigc_jax.open(smoke('gan'))
    aigc_jax.export(run, tmp_path / 'out', 'safetensors')
    found = load_file(tmp_path / 'out' / 'model.safetensors')
    assert {name.split('/')[0] for name in found} == set(run.state.params)
    assert sum(x.size for x in found.values()) == sum(x.size for x in jax.tree.leaves(run.state.params))


@pytest.mark.parametrize('name', ['gpt2', 'llama', 'qwen3'])
def test_a_checkpoint_writes_as_transformers_does_with_its_own_tokenizer(name, tmp_path):
    """Greedy, from text to text: a Llama reads <s> before the prompt, a GPT-2 nothing. Tokens that the tokenizer lacks
    are never written, though the model has rows of them."""
    model = aigc_jax.from_pretrained(GOLDENS / name)
    (text,) = model.generate('a cab.', temperature=0.0, max_new_tokens=16)
    theirs = (GOLDENS / name / 'golden.txt').read_text(encoding='utf-8')
    assert text.text == theirs
    assert aigc_jax.export(model, tmp_path / 'out')
    again = aigc_jax.from_pretrained(tmp_path / 'out')
    assert again.generate('a cab.', temperature=0.0, max_new_tokens=16)[0].text == theirs
    with pytest.raises(UserError, match='of no run'):
        model.metrics()


REFUSED = {
    'another width': (['--config.model.width=32'], 'model.width: 16 is that of init.run'),
    'too long': (['--config.data.block=64'], 'data.block: 64; the model of init.run'),
    'another tokenizer': (['--config.data.tokenizer=byte'], 'the run has a tokenizer of kind huggingface'),
    'a step': (['--config.init.step=10'], 'init.step: 10, but init.run'),
    'another task': (['--config=configs/vae.py:smoke'], 'which task.name=lm trains'),
}  # fmt: skip


@pytest.mark.parametrize('more, words', REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_a_checkpoint_is_refused(runner, tmp_path, more, words):
    arguments = from_checkpoint('llama', tmp_path)
    if more[0].startswith('--config='):
        arguments = [*more, *(word for word in arguments[1:] if '.init.run' in word or 'workdir' in word)]
    else:
        arguments += more
    code, out, err = runner(*arguments)
    assert code == 2 and not out and words in err and len(err.splitlines()) <= 3, err
    assert not (tmp_path / 'run').exists()


def test_a_checkpoint_without_a_tokenizer_wants_one_that_fits(runner, tmp_path):
    shutil.copytree(GOLDENS / 'llama', tmp_path / 'bare', ignore=shutil.ignore_patterns('tokenizer*'))
    arguments = from_checkpoint('llama', tmp_path, f'--config.init.run={tmp_path}/bare')
    code, out, err = runner(*arguments)
    assert code == 2 and not out and 'model.vocab_size: 61, but the tokenizer has 256 tokens' in err, err
    code, _, err = runner(*arguments, '--config.data.tokenizer=char', '--config.total_steps=10', *(
        f'--config.{name}=10' for name in STEPS[2:]))  # fmt: skip
    assert code == 0 and 'bare, holds none' in err, err
    with pytest.raises(UserError, match='holds no tokenizer'):
        aigc_jax.from_pretrained(tmp_path / 'bare')


def test_what_rounds_its_activations_is_no_checkpoint(tmp_path):
    """Transformers would compute other numbers with the same weights."""
    more = {'quantize.weights': 'int8', 'quantize.activations': 'int8'}
    model = aigc_jax.from_pretrained(GOLDENS / 'gpt2', more)
    with pytest.raises(UserError, match='quantize.activations: int8; a checkpoint of Hugging Face holds weights alone'):
        aigc_jax.export(model, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_mistakes_of_an_export_are_named(runner, smoke, tmp_path):
    folder = shutil.copytree(smoke('gan'), tmp_path / 'gan')
    for more, words in (
        ((), '--output: missing'),
        ((f'--output={tmp_path}/x',), 'task.name: gan, with this model, has no form of Hugging Face'),
        ((f'--output={tmp_path}/x', '--format=hfs'), "format: 'hfs'; did you mean hf"),
        ((f'--output={folder}', '--format=safetensors'), 'is there already'),
    ):
        code, out, err = runner(f'--workdir={folder}', '--mode=export', *more)
        assert code == 2 and not out and words in err, err
    with pytest.raises(UserError, match='n: '):
        aigc_jax.export(folder, tmp_path / 'x', 'stablehlo', 0)


