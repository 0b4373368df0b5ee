"""A checkpoint of Hugging Face into a run, and a run into what other programs read."""

import importlib.metadata
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
from aigc_jax.reports.trained import Trained
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment

GOLDENS = pathlib.Path(__file__).parents[1] / 'adapt' / 'goldens'
CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
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
for folder in sys.argv[1:]:
    about = json.load(open(f'{folder}/sampler.json'))
    called = jax.export.deserialize(bytearray(open(f'{folder}/sampler.stablehlo', 'rb').read()))
    if 'prompt' not in about['inputs']:
        labels = [np.arange(5, dtype=np.int32)] * ('labels' in about['inputs'])
        np.save(f'{folder}/found.npy', called.call(np.int32(3), *labels))
        continue
    import tokenizers
    tokenizer = tokenizers.Tokenizer.from_file(f'{folder}/tokenizer.json')
    tokenizer.encode_special_tokens = not about['special_tokens']
    decode = lambda tokens: tokenizer.decode(tokens, skip_special_tokens=False)
    _, n, columns = about['inputs']['prompt']
    prompt, start = np.zeros((n, columns), np.int32), np.zeros(n, np.int32)
    prompts = json.load(open(f'{folder}/prompts'))
    read = [tokenizer.encode(text, add_special_tokens=False).ids for text in prompts]
    for i, own in enumerate(read):
        tokens = about['before'] + own + about['behind']
        start[i] = columns - len(tokens)
        prompt[i, start[i]:] = tokens
    texts = []
    for own, row, length in zip(read, *map(np.asarray, called.call(np.int32(3), prompt, start))):
        row, first = row[:length].tolist(), about['before_text']
        row = row[:-1] if row[-1:] == [about['end']] else row
        row = row[len(first):] if row[:len(first)] == first else row
        own = own if about['goes_on'] else []
        texts.append(decode(own + row)[len(decode(own)):])
    json.dump(texts, open(f'{folder}/texts', 'w'))
assert not {'aigc_jax', 'flax', 'optax', 'orbax'} & set(sys.modules), sys.modules.keys()
'''
PROMPTS = 'def f(', '', 'a cab <extra_id_0>'


def of_words_with_spaces(folder: pathlib.Path) -> pathlib.Path:
    """The golden Llama with a tokenizer whose words hold the space before them, as SentencePiece's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    shutil.copytree(GOLDENS / 'llama', folder)
    library = Tokenizer(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    alphabet = sorted({*TEXT.strip(), *'<pads>/'})
    special = ['<pad>', '<s>', '</s>']
    library.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=61, special_tokens=special, initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    library.save(str(folder / 'tokenizer.json'))
    return folder


def test_samplers_run_where_jax_is_alone(smoke, command_line, tmp_path):
    """Those of models of text with the package tokenizers, too: they write what `generate` writes for the prompts."""
    llama = aigc_jax.from_pretrained(of_words_with_spaces(tmp_path / 'llama'))
    gan, gpt = map(aigc_jax.open, (smoke('gan'), smoke('gpt')))
    experiment = Experiment(config_lib.load(f'{CONFIGS}/t5.py:smoke', []))
    t5 = Trained(None, experiment, experiment.create_state())  # drawn is enough: its texts differ by prompt
    greedy, beams = {'temperature': 0.0}, {'beam_size': 2, 'length_penalty': 1.0}
    asked = (gpt, {}), (gpt, greedy), (llama, beams), (t5, {}), (t5, {**greedy, 'max_new_tokens': 20})
    folders = [tmp_path / str(k) for k in range(len(asked))]
    for (run, how), folder in zip(asked, folders, strict=True):
        aigc_jax.export(run, folder, 'stablehlo', 3, **how)
        (folder / 'prompts').write_text(json.dumps(('a cab <s>', '', 'beech') if run is llama else PROMPTS))
    aigc_jax.export(gan, tmp_path / 'gan', 'stablehlo', 5)
    (tmp_path / 'call.py').write_text(STABLEHLO)
    done = command_line.python(tmp_path / 'call.py', tmp_path / 'gan', *folders)
    assert done.returncode == 0, done.stderr
    labels = np.arange(5) % 10
    found = np.load(tmp_path / 'gan' / 'found.npy')
    np.testing.assert_allclose(found, gan.sample(5, seed=3, labels=labels if gan.num_classes else None), atol=1e-5)
    for (run, how), folder in zip(asked, folders, strict=True):
        about = json.loads((folder / 'sampler.json').read_text())
        assert about['jax'] == jax.__version__ and about['made'].startswith('20')
        most = about['max_new_tokens']
        assert about['outputs'] == {'tokens': ['int32', 3, most], 'length': ['int32', 3]}
        assert about['how']['temperature'] == how.get('temperature', 1.0) and about['end'] == run.tokenizer.end
        prompts = json.loads((folder / 'prompts').read_text())
        theirs = run.generate(prompts, seed=3, **{'max_new_tokens': most, **how})
        assert json.loads((folder / 'texts').read_text()) == [text.text for text in theirs]
        assert run is gpt or len({text.text for text in theirs}) == 3
    sizes = [json.loads((folder / 'sampler.json').read_text())['inputs']['prompt'] for folder in folders]
    assert sizes == [['int32', 3, columns] for columns in (24, 24, 20, 40, 40)]


def test_a_sampler_draws_as_the_command_says_and_the_config(runner, smoke, tmp_path):
    gpt = smoke('gpt')
    given = '--format=stablehlo', '--config.sample.top_k=3', '--temperature=0.5', '--max_new_tokens=9'
    code, _, err = runner(f'--workdir={gpt}', '--mode=export', '--num_samples=1', f'--output={tmp_path}/out', *given)
    assert code == 0, err
    about = json.loads((tmp_path / 'out' / 'sampler.json').read_text())
    assert about['inputs']['prompt'] == ['int32', 1, 39] and about['max_new_tokens'] == 9
    assert (about['how']['top_k'], about['how']['temperature']) == (3, 0.5)
    for more, words in (
        (('--max_new_tokens=48',), 'max_new_tokens=48: and a prompt are more than the 48 tokens of the model'),
        (('--stop=x',), 'stop: an exported sampler has none'),
        (('--prompt=x',), '--prompt: an export writes no text'),
        (('--format=safetensors', '--top_p=0.5'), 'top_p: is of a sampler, which format=safetensors does not hold'),
    ):
        code, out, err = runner(f'--workdir={gpt}', '--mode=export', f'--output={tmp_path}/x', given[0], *more)
        assert code == 2 and not out and words in err and not (tmp_path / 'x').exists(), err
    with pytest.raises(UserError, match='temperature: gan writes no text'):
        aigc_jax.export(smoke('gan'), tmp_path / 'x', 'stablehlo', temperature=0.5)


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




def test_what_jax_writes_a_sampler_with_is_installed_without_extras():
    """The test environment has flatbuffers by another package; a plain installation ended in an ImportError."""
    wanted = importlib.metadata.requires('aigc_jax')
    assert [line for line in wanted if line.startswith('flatbuffers') and 'extra' not in line]
