"""Hidden tokens that are filled in: by the library and by the command."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import assert_refused

import aigc_jax
from aigc_jax.core.errors import UserError
from aigc_jax.nn import encoder
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

SMALL = [
    ('total_steps', '2'), ('log_every_steps', '2'), ('eval_every_steps', '2'), ('checkpoint_every_steps', '2'),
    ('model.width', '8'), ('model.layers', '1'), ('data.tokenizer', 'word'), ('data.vocab_size', '60'),
]  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('filling') / 'run'
    train(config_lib.load('configs/bert.py:smoke', SMALL), Run(folder))
    return folder


def test_the_likeliest_tokens_of_each_mask_are_those_of_the_model(folder):
    model = aigc_jax.open(folder)
    own, texts = model.tokenizer, ['the <mask> statement', 'if <mask> is <mask> the', 'a <mask>']
    found = model.fill(texts, k=3)
    module = encoder.make(model.config, own.vocab_size, 48, 'a window', masked=True)
    call = jax.jit(lambda tokens: module.apply({'params': model.state.params['model']}, tokens).tokens)
    for text, filled in zip(texts, found, strict=True):
        tokens = np.array([own.cls, *own.encode(text, special=True), own.sep])
        shares = jax.nn.softmax(call(jnp.asarray(tokens[None]))[0])
        places = np.flatnonzero(tokens == own.mask)
        assert len(filled.choices) == len(places) == text.count('<mask>')
        for place, choices in zip(places, filled.choices, strict=True):
            best = np.argsort(-shares[place])[:3]
            assert [token for token, _ in choices] == [own.decode([token]) for token in best]
            np.testing.assert_allclose([share for _, share in choices], shares[place][best], rtol=1e-4)
            tokens[place] = best[0]
        assert str(filled) == own.decode(tokens[1:-1]) and filled.lines().count('\n') == 1 + len(places)
    # A text is filled in as it is alone, whatever stands beside it.
    assert model.fill(texts[0], k=3)[0].text == found[0].text


def test_what_cannot_be_filled_in_is_named(folder):
    model = aigc_jax.open(folder)
    with pytest.raises(UserError, match="'the end': there is no <mask>"):
        model.fill('the end')
    with pytest.raises(UserError, match='has 62 tokens, the model reads 48'):
        model.fill('the <mask> ' * 30)
    with pytest.raises(UserError, match='fill: it is given no text'):
        model.fill([])
    with pytest.raises(UserError, match='<extra_id_0>: the tokenizer has no such'):
        model.fill('<extra_id_0>')


def test_the_command_fills_in(folder, runner):
    ask = lambda *flags: runner('--mode=sample', f'--workdir={folder}', *flags)
    code, out, _ = ask('--prompt=the <mask> statement')
    assert code == 0 and out.count('<mask> 1: ') == 1 and out.splitlines()[0].startswith('the ')
    assert_refused(ask(), '--prompt: missing')
    assert_refused(ask('--prompt=the end'), 'there is no <mask>')
    assert_refused(ask('--prompt=a <mask>', '--temperature=0.5'), '--temperature: mlm draws nothing')
