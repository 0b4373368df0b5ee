"""aigc_jax.open: a trained model on raw arrays and text, in the data's own units."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import aigc_jax
from aigc_jax.core import rng
from aigc_jax.core.capabilities import CausalText, Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra


@pytest.fixture(scope='module')
def vae(smoke):
    return aigc_jax.open(smoke('vae'))


@pytest.fixture(scope='module')
def text(smoke):
    return aigc_jax.open(smoke('gpt'))


def test_an_array_of_any_length_goes_through_a_latent_space_and_back(vae):
    chunk = vae.config.eval.batch_size
    x = vae.experiment.examples('train', np.arange(chunk + 3))['x']  # whole numbers 0 to 16
    z, reconstructed = vae.encode(x), vae.reconstruct(x)
    assert len(z) == chunk + 3 and z.ndim == 2
    assert reconstructed.shape == x.shape and 0 <= reconstructed.min() and reconstructed.max() <= 1
    np.testing.assert_allclose(vae.encode(x / 16), z, atol=1e-5)  # the same images as floats
    np.testing.assert_allclose(vae.encode(x[:5]), z[:5], atol=1e-5)  # whatever else stands in the array
    # It is what the evaluation of the run itself gives.
    from aigc_jax.reports.evaluator import Evaluator

    theirs = Evaluator(vae.experiment).encode(vae.state, 0, 'train', chunk + 3)
    np.testing.assert_array_equal(theirs, z)
    walk = vae.interpolate(x[:4], x[4:8], steps=5)
    assert walk.shape == (4, 5, *x.shape[1:])
    np.testing.assert_allclose(walk[:, 0], vae.decode(z[:4]), atol=1e-5)
    np.testing.assert_allclose(walk[:, -1], vae.decode(z[4:8]), atol=1e-5)


@pytest.mark.parametrize('width', [1, 3, 9])
def test_codes_of_another_width_are_refused(vae, width):
    with pytest.raises(UserError, match=rf'codes: of shape \(4, {width}\); decode wants \(n, 2\)'):
        vae.decode(np.zeros((4, width)))


def test_a_model_without_a_latent_space_says_so(smoke):
    gan = aigc_jax.open(smoke('gan'))
    x = gan.sample(2)
    with pytest.raises(UserError, match='interpolate: gan, as it is configured here, has no latent space'):
        gan.interpolate(x, x)


def test_what_was_given_to_open_is_given_once(vae, text, smoke):
    for more in (dict(step=20), dict(overrides={'eval.batch_size': np.int64(7)})):
        with pytest.raises(UserError, match='open already'):
            aigc_jax.sample(vae, 2, **more)
        with pytest.raises(UserError, match='open already'):
            aigc_jax.generate(text, 'The', **more)
    assert aigc_jax.open(smoke('vae'), overrides={'eval.batch_size': np.int64(7)}).config.eval.batch_size == 7
    with pytest.raises(UserError, match='0 prompts'):
        aigc_jax.generate(text, [])


def test_sample_i_is_a_function_of_the_seed_and_i(vae, smoke):
    samples = vae.sample(6, seed=3)
    np.testing.assert_array_equal(vae.sample(6, seed=3), samples)
    np.testing.assert_allclose(vae.sample(3, seed=3), samples[:3], atol=1e-6)
    assert np.abs(vae.sample(6, seed=4) - samples).max() > 0.01
    (path, found), *rest = aigc_jax.sample(smoke('vae'), 6, 3).items()
    assert not rest and path.name == '00000040_sample3.npz'
    np.testing.assert_array_equal(found, samples)
    np.testing.assert_array_equal(np.load(path)['samples'], samples)
    colder = [aigc_jax.sample(smoke('vae'), 6, 3, overrides={'sample.temperature': t}) for t in (0.5, 0.25, 1.0)]
    half, quarter, same = (next(iter(found)) for found in colder)
    assert same == path and len({path, half, quarter}) == 3 and half.name.startswith('00000040_sample3-')
    assert (np.load(half)['samples'] != np.load(quarter)['samples']).any()
    np.testing.assert_array_equal(np.load(path)['samples'], samples)


def test_the_bound_of_a_vae_is_its_evaluations(vae):
    """log_prob is the importance-weighted bound of 64 draws. The smoke run reports that of fewer, which is lower."""
    x = vae.experiment.examples('test', np.arange(180))['x']
    bound, reported = vae.log_prob(x), vae.evaluations()['evaluation']
    assert bound.shape == (180,)
    elbo, nll = (reported[f'model/{name}']['value'] for name in ('elbo', 'nll'))
    assert elbo < bound.mean() and abs(bound.mean() + nll) < 0.5


def test_rows_and_evaluations_are_plain(vae):
    rows = vae.metrics()
    assert {row['split'] for row in rows} == {'train', 'eval', 'final'} and rows[-1]['step'] == vae.step == 40
    assert vae.evaluations()['evaluation']['step'] == 40
    assert aigc_jax.evaluate(vae.run.folder).results['model/nll'] == vae.evaluations()['evaluation']['model/nll']


def test_what_a_model_cannot_do_is_said_in_one_line(vae, text, smoke):
    gan = aigc_jax.open(smoke('gan'))
    x = gan.sample(3)
    for call, words in {
        lambda: gan.encode(x): 'encode: gan, as it is configured here, has no latent space; of the tasks vae',
        lambda: gan.log_prob(x): 'log_prob: gan, as it is configured here, has no density over the data; of the tasks',
        lambda: vae.generate('a'): 'generate: vae, as it is configured here, writes no text; of the tasks lm, seq2seq',
        lambda: text.reconstruct(['a']): 'reconstruct: lm, as it is configured here, reconstructs nothing',
        lambda: aigc_jax.sample(text): 'sample: lm writes text; call generate',
        lambda: vae.encode(vae.sample(2)[:, :4]): r'x: (2, 4, 8, 1) float32; this run (digits) wants (n, 8, 8, 1)',
        lambda: vae.encode(np.zeros((0, 8, 8, 1))): 'x: of shape (0, 8, 8, 1); it holds no example',
        lambda: vae.decode(np.zeros(2)): 'codes: of shape (2,); decode wants (n, d)',
        lambda: vae.sample(2, labels=[0, 1]): 'labels: this model is unconditional',
        lambda: vae.sample(0): 'n: 0; it is 1 to 1000000',
        lambda: vae.interpolate(np.zeros((2, 8, 8, 1)), np.zeros((1, 8, 8, 1))): 'interpolate: a is (2, 8, 8, 1), b (1',
        lambda: vae.replica(1): 'replica: 1; the run has 1, counted from 0',
        lambda: text.generate('a', temprature=1.0): 'generate: there is no temprature; known: ',
        lambda: text.log_prob([]): 'log_prob: it is given no text',
        lambda: text.log_prob('a' * 2000): 'log_prob: text 0 has ',
        lambda: aigc_jax.open(smoke('vae'), step=39): 'no checkpoint of step 39',
        lambda: aigc_jax.open(smoke('vae'), overrides={'model.latent_dim': 3}): 'in this mode only data.*',
    }.items():
        with pytest.raises(UserError) as found:
            call()
        assert words in str(found.value) and len(str(found.value).splitlines()) == 1, str(found.value)


# {what is called, on a VAE of images or a language model: the words of the refusal}, one line each.
IMAGES = {
    'sample(2.5)': 'n: 2.5 is a number; it holds a whole number',
    'sample(True)': 'n: True is True or False; it holds a whole number',
    "sample('2')": "n: '2' is a text",
    'sample(None)': 'n: None is NoneType',
    'sample(-1)': 'n: -1; it is 1 to 1000000',
    'sample(2, seed=2**31)': 'seed: 2147483648; it is -2147483648 to 2147483647',
    "sample(2, 'a')": "seed: 'a' is a text",
    'sample(2, 1.5)': 'seed: 1.5 is a number',
    'encode(x, seed=2**40)': 'seed: 1099511627776; it is',
    'encode([[1, 2], [3]])': 'x: is no array: ',
    'encode(None)': 'x: of shape (); it holds no example',
    "encode('abc')": 'x: of shape (); it holds no example',
    "encode(['abc'])": 'x: (1,) <U3; this run (digits) wants (n, 8, 8, 1)',
    'encode(x > 0)': 'x: (3, 8, 8, 1) bool; this run',
    'encode(x * 1j)': 'x: (3, 8, 8, 1) complex',
    'encode(x * float("nan"))': 'x: float32 from nan to nan; this run',
    'encode(x + 1e300)': 'x: float32 from inf to inf; this run',
    'encode(x / 16 + 0.5)': 'or floats in [0, 1]; numpy.clip(x, 0, 1) cuts it to them',
    'encode(x, labels=[0, 1, 2])': 'labels: this model is unconditional; leave them out',
    'reconstruct(x, labels=[0, 1, 2])': 'labels: this model is unconditional',
    'decode(z, labels=[0])': 'labels: this model is unconditional',
    'decode(z + 1j)': 'codes: complex128; decode wants numbers',
    "decode([['a', 'b']])": 'codes: <U1; decode wants numbers',
    'decode([[1, 2], [3]])': 'codes: is no array',
    'decode(z * float("inf"))': 'codes: some are NaN or infinite',
    'interpolate(x, x, steps=2.5)': 'steps: 2.5 is a number',
    'interpolate(x, x, steps=1)': 'steps: 1; it is 2 or more',
    "interpolate(x, x, how='line')": "how: 'line'; did you mean linear",
    'interpolate(x, x, how=1)': 'how: 1 is a whole number',
    'interpolate(1, x)': 'interpolate: a is (), b (3, 8, 8, 1)',
    "replica('a')": "k: 'a' is a text",
    'replica(0.0)': 'k: 0.0 is a number',
}
TEXTS = {
    'generate(5)': 'prompt: holds 5, int; it is a text, or a list of texts',
    "generate(['a', None])": 'prompt: holds None, NoneType',
    "generate('a', n=2.5)": 'n: 2.5 is a number',
    "generate('a', n=0)": 'n: 0; it is 1 to',
    "generate('a', seed=-2**31 - 1)": 'seed: -2147483649; it is',
    "generate('a', max_new_tokens=0)": 'max_new_tokens: 0; it is 1 to 1000000',
    "generate('a', max_new_tokens=-2)": 'max_new_tokens: -2; it is',
    "generate('a', max_new_tokens=1.5)": 'max_new_tokens: 1.5 is a number',
    "generate('a', temperature='hot')": "temperature: 'hot' is a text; it holds a number",
    "generate('a', top_k=1.5)": 'top_k: 1.5 is a number',
    "generate('a', stop=5)": 'stop: 5 is a whole number; it holds a text',
    "generate('a', draft=True)": 'draft: True is True or False; it holds a text',
    "generate('a', stream=1)": 'stream: is a function',
    "generate(['a', 'b'], stream=print)": 'stream: is a function that is called with a single text',
    "generate('\\ud800')": "prompt: character 1, '\\ud800', is no UTF-8",
    'log_prob(5)': 'x: holds 5, int; it is a text, or a list of texts',
    'log_prob([1, 2])': 'x: holds 1, int',
    "log_prob('a\\ud800')": "x: character 2, '\\ud800', is no UTF-8",
    "sample(2, labels=[1, 2])": 'labels: this model is unconditional',
}


@pytest.mark.parametrize('call', [*IMAGES, *TEXTS])
def test_arguments_of_a_wrong_type_or_value_are_named(vae, text, call):
    x = vae.experiment.examples('test', np.arange(3))['x']
    with pytest.raises(UserError) as found:
        eval(f'run.{call}', {'run': vae if call in IMAGES else text, 'x': x, 'z': np.zeros((1, 2))})
    message = str(found.value)
    assert message.startswith((IMAGES | TEXTS)[call]) or (IMAGES | TEXTS)[call] in message, message
    assert len(message.splitlines()) == 1


def test_numbers_of_numpy_and_jax_are_numbers(vae, text):
    expected = vae.sample(2, 3)
    np.testing.assert_array_equal(vae.sample(np.int64(2), jnp.int32(3)), expected)
    assert len(text.generate('a', n=np.int32(1), max_new_tokens=np.array(2), temperature=np.float32(0.5))) == 1


def test_the_functions_of_the_door_name_their_arguments(smoke, tmp_path):
    calls = {
        lambda: aigc_jax.train(5, tmp_path): "config: is int; it is 'FILE.py[:variant,…]' or a ConfigDict",
        lambda: aigc_jax.train({'seed': 1}, tmp_path): 'config: is dict',
        lambda: aigc_jax.train('configs/vae.py', None): 'workdir: None names no folder',
        lambda: aigc_jax.train('configs/vae.py', tmp_path, 'seed=1'): "overrides: holds 's'; it is {field: value}",
        lambda: aigc_jax.train('configs/vae.py', tmp_path, {1: 2}): 'overrides: holds (1, 2)',
        lambda: aigc_jax.train('configs/vae.py', tmp_path, devices=[0]): 'devices: [0]; it is a list of some of',
        lambda: aigc_jax.train('configs/vae.py', tmp_path, progress='yes'): "progress: 'yes'; it is a stream",
        lambda: aigc_jax.evaluate(smoke('vae'), progress=1): 'progress: 1; it is a stream',
        lambda: aigc_jax.sample(smoke('vae'), 1.5): 'n: 1.5 is a number',
        lambda: aigc_jax.sample(smoke('vae'), 2, seed='a'): "seed: 'a' is a text",
        lambda: aigc_jax.generate(smoke('gpt'), 5): 'prompt: holds 5',
        lambda: aigc_jax.open(smoke('vae'), 1.5): "step=1.5: a number or 'best'",
        lambda: aigc_jax.open(smoke('vae'), True): "step=True: a number or 'best'",
        lambda: aigc_jax.load(smoke('vae'), 'last'): "step=last: a number or 'best'",
    }
    for call, words in calls.items():
        with pytest.raises(UserError) as found:
            call()
        assert words in str(found.value) and len(str(found.value).splitlines()) == 1, str(found.value)
    assert not list(tmp_path.iterdir())


def test_samples_of_images_are_in_their_range(tmp_path, monkeypatch, command_line):
    """A flow of floats bounds nothing. Its samples are clipped, as metrics and pictures have them: they are data."""
    monkeypatch.chdir(command_line.root)
    np.savez(tmp_path / 'x.npz', train=np.random.default_rng(0).random((200, 4, 4, 1), np.float32))
    steps = dict.fromkeys(('total_steps', 'eval_every_steps', 'checkpoint_every_steps'), 10)
    fields = {'data.name': f'npz:{tmp_path}/x.npz', 'eval.num_samples': 50, **steps}
    aigc_jax.train('configs/flow.py:smoke', tmp_path / 'run', fields)
    flow = aigc_jax.open(tmp_path / 'run')
    samples = flow.sample(20)
    ctx = rng.context(0, 'sample', 0, jnp.arange(20))
    raw = flow.task.get(Samples).draw(flow.state.params, Extra({}, {}), ctx, None)
    assert raw.min() < -0.01 and raw.max() > 1.01
    np.testing.assert_allclose(samples, np.clip(raw, 0, 1), atol=0.05)
    assert np.isfinite(flow.log_prob(samples)).all()


def test_a_conditional_model_wants_labels(tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(command_line.root)
    fields = {'model.conditional': True, 'total_steps': 10, 'log_every_steps': 10, 'eval_every_steps': 10,
              'checkpoint_every_steps': 10, 'num_seeds': 2}  # fmt: skip
    aigc_jax.train('configs/vae.py:smoke', tmp_path, fields)
    run = aigc_jax.open(tmp_path)
    batch = run.experiment.examples('test', np.arange(4))
    z = run.encode(batch['x'], batch['label'])
    walk = run.interpolate(batch['x'][:2], batch['x'][2:], 3, labels=[1, 2])
    np.testing.assert_allclose(walk[1, 0], run.decode(run.encode(batch['x'][:2], [1, 2]), [1, 2])[1], atol=1e-5)
    assert run.sample(12).shape == run.sample(12, labels=[3] * 12).shape
    wrong = [[0, 1, 2, 10], [0, 1, 2, -1], [0, 1], [0.0, 1, 2, 3], 'abcd', [[0, 1], [2]], [True] * 4]
    for labels in (None, *wrong):
        for call in (run.encode, run.reconstruct):
            with pytest.raises(UserError, match='^labels: '):
                call(batch['x'], labels)
        with pytest.raises(UserError, match='^labels: '):
            run.decode(z, labels)
    for call in (lambda: run.encode(batch['x']), lambda: run.decode(z), lambda: run.decode(z, [0, 1, 2, 10])):
        with pytest.raises(UserError, match='labels: .*this run is conditional and wants'):
            call()
    # The replicas are models of their own, and share what is compiled.
    first, second = run.replicas()
    np.testing.assert_array_equal(first.sample(2), run.sample(2))
    assert np.abs(second.sample(2) - first.sample(2)).max() > 1e-3
    names = [f'00000010_sample0_seed{seed}.npz' for seed in run.experiment.seeds]
    for folder_or_run, written in ((tmp_path, names), (run, names), (run.replica(1), names[1:]), (first, names[:1])):
        assert [path.name for path in aigc_jax.sample(folder_or_run, 2)] == written


def test_text_is_written_and_scored(text, smoke):
    assert text.can(CausalText)
    written = text.generate('def ', n=3, seed=1, max_new_tokens=12, temperature=0.8)
    assert [one.prompt for one in written] == ['def '] * 3
    assert str(written[0]) == str(text.generate('def ', n=1, seed=1, max_new_tokens=12, temperature=0.8)[0])
    # By the logits of the cache that generation uses, in float64 on the host.
    causal = text.experiment.task.get(CausalText)
    tokens = [causal.bos, *text.tokenizer.encode('for x in y').tolist()]
    tokens += [] if causal.eos is None else [causal.eos]
    cache = causal.init_cache(1, len(tokens))
    logits, _ = causal.decode(text.state.params, ((), ()), np.array([tokens], np.int32), cache)
    log_p = scipy.special.log_softmax(np.asarray(logits[0], np.float64), axis=-1)
    expected = sum(log_p[i, token] for i, token in enumerate(tokens[1:]))
    np.testing.assert_allclose(text.log_prob('for x in y'), [expected], rtol=1e-4)
    both = text.log_prob(['a', 'for x in y'])
    np.testing.assert_allclose(text.log_prob('for x in y'), both[1:], rtol=1e-5)  # whatever stands beside it
    samples = text.sample(2)
    assert len(samples) == 2 and all(isinstance(one, str) for one in samples)
    (path, texts), = aigc_jax.generate(smoke('gpt'), ['a', 'b'], seed=1, max_new_tokens=3).items()
    (cold, _), = aigc_jax.generate(smoke('gpt'), 'a', seed=1, max_new_tokens=3, temperature=np.float32(0.5)).items()
    assert path.name == '00000040_sample1.npz' and cold.name.startswith('00000040_sample1-')
    assert path.exists() and [one.prompt for one in texts] == ['a', 'b']
