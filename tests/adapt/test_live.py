"""Live, where PyTorch and transformers are installed: what transformers draws and saves here, computed and written by
both, and what is exported, loaded by transformers again.

    pip install -e '.[test,bench]' && pytest tests/adapt/test_live.py

The tests beside this file hold the same without them, by arrays that transformers computed once.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='needs PyTorch')
transformers = pytest.importorskip('transformers', reason='needs transformers')

import make_encoder_goldens  # noqa: E402
import make_goldens  # noqa: E402
import make_t5_goldens  # noqa: E402
from test_encoders import STILL, run_of  # noqa: E402

import aigc_jax  # noqa: E402
from aigc_jax import adapt, tasks  # noqa: E402
from aigc_jax.reports.trained import Trained  # noqa: E402

SEED, VOCAB, PAD, UNKNOWN, READ, NEW = 5, 61, 0, 2, 30, 12
DECODERS, STACKS = tuple(make_goldens.DECODERS), tuple(make_t5_goldens.MODELS)
ENCODERS = tuple(make_encoder_goldens.MODELS)
ATOL = 1e-4


class Live(NamedTuple):
    """A model of transformers, the folder that it saved, what stands for it here, and texts (n, L) of both."""

    model: torch.nn.Module
    folder: pathlib.Path
    run: Trained
    tokens: np.ndarray
    end: int

    @property
    def texts(self) -> list[str]:
        return [' '.join(f'w{i}' for i in row) for row in self.tokens]

    def ours(self, *inputs):
        config = self.run.config  # the task that no change of the model is around
        module = tasks.make(config, self.run.experiment.dataset).rounds[0][0].loss.__self__.module
        return module.apply({'params': adapt.merged(self.run.state.params, config)['model']}, *inputs)


def with_words(folder: pathlib.Path, end: int, pad: int = PAD, begin: int | None = None) -> None:
    """Puts a tokenizer into a folder whose token i is the word wi. begin: a token that stands before each text, which
    `end` then stands behind."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    library = Tokenizer(models.WordLevel({f'w{i}': i for i in range(VOCAB)}, unk_token=f'w{UNKNOWN}'))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = {'pad_token': f'w{pad}', 'unk_token': f'w{UNKNOWN}', 'eos_token': f'w{end}'}
    if begin is not None:
        roles |= {'cls_token': f'w{begin}', 'sep_token': f'w{end}', 'mask_token': 'w4'}
        library.post_processor = processors.BertProcessing((f'w{end}', end), (f'w{begin}', begin))
    library.add_special_tokens([*dict.fromkeys(roles.values())])
    library.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'PreTrainedTokenizerFast', **roles}))


def tokens(n: int, length: int) -> np.ndarray:
    return np.random.default_rng(SEED).integers(READ, VOCAB, (n, length))


def an_end(model: torch.nn.Module) -> int:
    """A token that the model comes to write, and that no text of `tokens` has."""
    inputs = torch.tensor(tokens(3, 9))
    how = dict(do_sample=False, eos_token_id=None, pad_token_id=PAD, max_new_tokens=NEW)
    found = model.generate(inputs, attention_mask=torch.ones_like(inputs), num_beams=4, **how)[:, 2:]
    return next(token for token in found.T.flatten().tolist() if token > 4 and token not in inputs)


def written(live: Live, **how) -> list[list[int]]:
    return [text.tokens.tolist() for text in live.run.generate(live.texts, max_new_tokens=NEW, **how)]


def written_there(live: Live, inputs: np.ndarray, **how) -> list[list[int]]:
    """Without what is read, up to the end of each text."""
    of_stacks = live.model.config.is_encoder_decoder
    found = live.model.generate(
        torch.tensor(inputs), attention_mask=torch.ones(inputs.shape, dtype=int), do_sample=False, max_new_tokens=NEW,
        eos_token_id=live.end, pad_token_id=PAD, **how,
    )[:, 1 if of_stacks else inputs.shape[1] :].tolist()  # fmt: skip
    return [row[: row.index(live.end) + 1] if live.end in row else row for row in found]


# A beam search whose score no length changes, and which goes on until no beam can become better.
BEAMS = dict(num_beams=4, length_penalty=0.0, early_stopping='never')


def same_texts(live: Live, inputs: np.ndarray) -> None:
    greedy, beams = written(live, temperature=0.0), written(live, beam_size=4)
    assert greedy == written_there(live, inputs)
    assert beams == written_there(live, inputs, **BEAMS)
    assert greedy != beams and any(row[-1] == live.end for row in greedy + beams)


def exported(live: Live, folder: pathlib.Path, kind: str) -> torch.nn.Module:
    """What transformers loads of an export: nothing lacks, nothing is left over, and it reads texts alike."""
    aigc_jax.export(live.run, folder)
    own, again = (transformers.AutoTokenizer.from_pretrained(path) for path in (live.folder, folder))
    assert own(live.texts)['input_ids'] == again(live.texts)['input_ids']
    model, told = getattr(transformers, kind).from_pretrained(
        folder, output_loading_info=True, attn_implementation=live.model.config._attn_implementation
    )  # fmt: skip
    assert not any(told.values()), told
    assert type(model) is type(live.model) and model.dtype == torch.float32
    return model.eval()


@pytest.fixture(scope='module', params=DECODERS)
def decoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = make_goldens.drawn(make_goldens.DECODERS[request.param](), SEED)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    with_words(folder, end := an_end(model))
    return Live(model, folder, aigc_jax.from_pretrained(folder), tokens(3, 9), end)


def test_decoders(decoder, tmp_path):
    inputs = torch.tensor(decoder.tokens)
    with torch.no_grad():
        theirs = decoder.model(inputs).logits
    np.testing.assert_allclose(decoder.ours(decoder.tokens)[0], theirs, atol=ATOL)
    same_texts(decoder, decoder.tokens)
    again = exported(decoder, tmp_path / 'out', 'AutoModelForCausalLM')
    with torch.no_grad():
        assert torch.equal(again(inputs).logits, theirs)


@pytest.fixture(scope='module', params=STACKS)
def stacks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = make_t5_goldens.drawn(request.param, SEED)
    model.save_pretrained(folder)
    with_words(folder, end := an_end(model))
    return Live(model, folder, aigc_jax.from_pretrained(folder), tokens(3, 9), end)


def test_encoder_decoders(stacks, tmp_path):
    """Of sources of unequal length, too."""
    lengths, target = np.array([9, 5, 1]), np.concatenate([np.full((3, 1), PAD), tokens(3, 6)], axis=1)
    mask = np.arange(9) < lengths[:, None]
    source = np.where(mask, stacks.tokens, PAD)

    def logits(model):
        with torch.no_grad():
            return model(
                input_ids=torch.tensor(source), attention_mask=torch.tensor(mask.astype(int)),
                decoder_input_ids=torch.tensor(target),
            ).logits  # fmt: skip

    theirs = logits(stacks.model)
    np.testing.assert_allclose(stacks.ours(source, mask, target), theirs, atol=ATOL)
    same_texts(stacks, stacks.tokens)
    assert torch.equal(logits(exported(stacks, tmp_path / 'out', 'AutoModelForSeq2SeqLM')), theirs)


@pytest.mark.parametrize('name', ENCODERS)
def test_encoders(name, tmp_path):
    """With each head, from a run that changes nothing. Rows are filled up behind a text."""
    family, head = name.split('_')
    pad, begin, end = (0, 1, 3) if family == 'bert' else (1, 0, 3)
    model, _ = make_encoder_goldens.make(name, SEED)
    folder = tmp_path / 'folder'
    model.save_pretrained(folder)
    with_words(folder, end, pad, begin)
    kind = {'masked': 'text', 'sequence': 'labelled', 'tokens': 'tagged'}[head]
    more = [] if kind == 'text' else [('init.drawn', ''), ('init.unused', '')]
    run = run_of(folder, tmp_path, kind, *more, ('data.tokenizer', 'auto'))
    live = Live(model.eval(), folder, run, tokens(3, 9), end)
    lengths = np.array([9, 5, 1])
    mask = np.arange(9) < lengths[:, None]
    rows = np.where(mask, live.tokens, pad)

    def logits(model):
        with torch.no_grad():
            return model(torch.tensor(rows), attention_mask=torch.tensor(mask.astype(int))).logits

    theirs, found = logits(live.model), live.ours(rows, lengths)
    ours = next(value for value in (found.tokens, found.label, found.tags) if value is not None)
    np.testing.assert_allclose(ours, theirs, atol=ATOL)
    auto = {'masked': 'MaskedLM', 'sequence': 'SequenceClassification', 'tokens': 'TokenClassification'}[head]
    assert torch.equal(logits(exported(live, tmp_path / 'out', f'AutoModelFor{auto}')), theirs)
    if head == 'masked':
        (filled,) = run.fill('w5 <mask> w9', k=3)
        framed = torch.tensor([[begin, 5, 4, 9, end]])
        with torch.no_grad():
            best = live.model(framed).logits[0, 2].topk(3).indices.tolist()
        assert [token for token, _ in filled.choices[0]] == [f'w{i}' for i in best]


CHANGES = {
    'pruned': {'prune.keep': 0.4},
    'gptq': {'quantize.weights': 'int4', 'quantize.method': 'gptq', 'total_steps': 0},
    'lora': {'adapt.name': 'lora'},
    'dora': {'adapt.name': 'dora'},
    'distilled': {'init.run': '', 'distill.run': '{folder}', 'data.tokenizer': 'hf:{folder}'},
}


def changed(config: str, folder: pathlib.Path, tmp_path: pathlib.Path, change: str) -> Trained:
    """A run of two steps of a change, from a checkpoint, or of a student of it whose model is that of the config."""
    draws = np.random.default_rng(0)
    names = ('text',) if config == 'bert' else ('source', 'target')
    text = lambda: ' '.join(f'w{i}' for i in draws.integers(READ, VOCAB, 6))
    rows = [json.dumps({name: text() for name in names}) for _ in range(60)]
    (tmp_path / 'data.jsonl').write_text('\n'.join(rows))
    fields = {**dict(STILL), 'optim.model.schedule': {'name': 'constant_schedule', 'value': 0.05}, 'total_steps': 2}
    fields |= {'init.run': folder, 'data.tokenizer': 'auto', 'data.valid_percent': 20, 'data.test_percent': 20}
    fields |= {'eval.best_metric': '', 'data.block': 16}
    if config == 'bert':
        fields |= {'data.name': f'jsonl:{tmp_path}/data.jsonl', 'data.eval_stride': 8}
    else:
        fields |= {'data.name': f'pairs:{tmp_path}/data.jsonl', 'data.columns': names, 'eval.num_generated': 0}
    fields |= {name: str(value).format(folder=folder) for name, value in CHANGES[change].items()}
    if config == 'bert' and change == 'distilled':
        fields |= {'model.positions': 48, 'model.token_types': 2}  # as each checkpoint of BERT has some
    own = [(name, str(value)) for name, value in fields.items()]
    aigc_jax.train(f'configs/{config}.py:smoke', tmp_path / 'run', own)
    return aigc_jax.open(tmp_path / 'run')


@pytest.mark.parametrize('change', CHANGES)
def test_changed_encoder_decoders(change, tmp_path):
    base = make_t5_goldens.drawn('t5_v1_1', SEED)
    base.save_pretrained(folder := tmp_path / 'folder')
    with_words(folder, end := an_end(base))
    run = changed('finetune_seq2seq', folder, tmp_path, change)
    model = exported(Live(base, folder, run, tokens(3, 9), end), tmp_path / 'out', 'AutoModelForSeq2SeqLM')
    live = Live(model, folder, run, tokens(3, 9), end)
    mask, target = np.ones((3, 9), bool), np.concatenate([np.full((3, 1), PAD), tokens(3, 6)], axis=1)
    inputs = dict(input_ids=torch.tensor(live.tokens), decoder_input_ids=torch.tensor(target))
    with torch.no_grad():
        before, theirs = (one(**inputs).logits for one in (base, model))
    # DoRA of these wide weights: 1.01e-4 at a logit of 4.95, by rounding.
    np.testing.assert_allclose(live.ours(live.tokens, mask, target), theirs, atol=ATOL, rtol=2e-5)
    assert (before - theirs).abs().max() > 0.01
    assert written(live, temperature=0.0) == written_there(live, live.tokens)


@pytest.mark.parametrize('change', CHANGES)
def test_changed_encoders(change, tmp_path):
    base, _ = make_encoder_goldens.make('bert_masked', SEED)
    base.save_pretrained(folder := tmp_path / 'folder')
    with_words(folder, 3, 0, 1)
    run = changed('bert', folder, tmp_path, change)
    model = exported(Live(base.eval(), folder, run, tokens(3, 9), 3), tmp_path / 'out', 'AutoModelForMaskedLM')
    live = Live(model, folder, run, tokens(3, 9), 3)
    framed = torch.tensor([[1, 5, 4, 9, 3]])
    with torch.no_grad():
        before, theirs = (one(torch.tensor(live.tokens)).logits for one in (base, model))
        best = model(framed).logits[0, 2].topk(3).indices.tolist()
    np.testing.assert_allclose(live.ours(live.tokens, np.full(3, 9)).tokens, theirs, atol=ATOL)
    assert (before - theirs).abs().max() > 0.01
    (filled,) = run.fill('w5 <mask> w9', k=3)
    assert [token for token, _ in filled.choices[0]] == [f'w{i}' for i in best]
