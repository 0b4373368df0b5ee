"""The workloads of bench.py that begin with a checkpoint in Hugging Face's format, drawn at random and written here."""

import dataclasses
import gc
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from bench_workloads import Workload

PAD, END, CLS, SEP = 0, 1, 2, 3  # END is T5's; [CLS] and [SEP] are BERT's
FIRST_WORD = 5  # token i from here on is the word 'w{i}'
NEW_TOKENS = 64
DROPOUT = 0.1


@dataclasses.dataclass(frozen=True)
class Checkpoint(Workload):
    """kind: 'bert' or 't5' (v1.0). block, target_block: tokens of a text, and of a target, none of which is padding."""

    kind: str
    layers: int
    width: int
    heads: int
    mlp_width: int
    vocab_size: int
    block: int
    target_block: int = 0
    num_examples: int = 512
    learning_rate = 3e-4
    tolerance = 0.1  # each draws its own dropout
    suffix = 'folder'

    def write(self, path: str, num_examples: int | None = None) -> str:
        """Makes a folder with a checkpoint, its tokenizer and the texts; returns its path."""
        folder = pathlib.Path(path)
        folder.mkdir()
        write_checkpoint(folder, self)
        texts = draw_texts(self, num_examples or self.num_examples)
        words = lambda tokens: ' '.join(f'w{token}' for token in tokens)
        with open(folder / 'train.jsonl', 'w', encoding='utf-8') as file:
            for source, told in texts:
                names = ('text', 'label') if self.kind == 'bert' else ('source', 'target')
                told = int(told) if self.kind == 'bert' else words(told)
                print(json.dumps(dict(zip(names, (words(source), told), strict=True))), file=file)
        return path

    def rows(self, num_examples: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(sources (n, block), labels (n,) or targets (n, target_block)), framed as ours frames those of the file."""
        sources, told = zip(*draw_texts(self, num_examples or self.num_examples), strict=True)
        sources = np.stack(sources)
        fill = lambda token: np.full((len(sources), 1), token)
        if self.kind == 'bert':
            return np.concatenate([fill(CLS), sources, fill(SEP)], axis=1), np.array(told)
        return np.concatenate([sources, fill(END)], axis=1), np.concatenate([np.stack(told), fill(END)], axis=1)

    def tiny(self) -> 'Checkpoint':
        small = dict(layers=1, width=16, heads=2, mlp_width=24, vocab_size=40, block=12, num_examples=64, unit=2)
        small |= dict(target_block=self.target_block and 8, batch_size=4, check_steps=2)
        return dataclasses.replace(super().tiny(), **small)


@dataclasses.dataclass(frozen=True)
class FineTuning(Checkpoint):
    """A step trains on a batch: of 'bert' a classifier of texts, of 't5' targets from sources."""


@dataclasses.dataclass(frozen=True)
class Beams(Checkpoint):
    """A step writes NEW_TOKENS for each source with 4 beams, or fewer where all beams have ended. The loss is a number
    of all that is written, which must be the same."""

    counted = 'tokens'
    tolerance = 0.0

    @property
    def items_per_step(self) -> int:
        return self.batch_size * NEW_TOKENS


@dataclasses.dataclass(frozen=True)
class Loading(Checkpoint):
    """A step loads the model from warm files until each parameter was read once. The loss is their mean square; the
    memory is what a load adds to that of the process at its peak."""

    counted = 'MB'
    tolerance = 1e-4

    @property
    def items_per_step(self) -> float:
        return 4 * self.parameters / 1e6

    def tiny(self) -> 'Loading':
        return dataclasses.replace(super().tiny(), parameters=5488)


class Peak:
    """Bytes that the code of a `with` block adds to the memory of the process at its peak; `most`, over all blocks."""

    most = 0.0

    def __enter__(self) -> None:
        gc.collect()
        pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
        self._before = _status('VmRSS')

    def __exit__(self, *_) -> None:
        self.most = max(self.most, _status('VmHWM') - self._before)


def _status(name: str) -> int:
    status = pathlib.Path('/proc/self/status').read_text()
    return int(status.split(f'{name}:')[1].split()[0]) * 1024


def draw_texts(workload: Checkpoint, n: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Without special tokens: the class of a text is whether its first word is of the upper half of the vocabulary; a
    target begins as its source does."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        source = rng.integers(FIRST_WORD, workload.vocab_size, workload.block - (2 if workload.kind == 'bert' else 1))
        upper = source[0] >= (FIRST_WORD + workload.vocab_size) // 2
        yield source, upper if workload.kind == 'bert' else source[: workload.target_block - 1]


def write_checkpoint(folder: pathlib.Path, workload: Checkpoint) -> None:
    """config.json, model.safetensors and tokenizer.json."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    config, shapes = {'bert': bert, 't5': t5}[workload.kind](workload)
    rng = np.random.default_rng(1)

    def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.full(shape, float(name.endswith('weight')), np.float32)
        scale = 0.02 if workload.kind == 'bert' else 0.5 if name == 'shared.weight' else shape[-1] ** -0.5
        return scale * rng.standard_normal(shape, np.float32)

    save_file(
        {name: drawn(name, shape) for name, shape in shapes.items()}, folder / 'model.safetensors', {'format': 'pt'}
    )
    (folder / 'config.json').write_text(json.dumps(config))
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    if workload.kind == 't5':
        special = ['<pad>', '</s>', '<unk>', '<3>', '<4>']
    vocab = {word: i for i, word in enumerate([*special, *(f'w{i}' for i in range(FIRST_WORD, workload.vocab_size))])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=special[1 + (workload.kind == 't5')]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if workload.kind == 'bert':
        tokenizer.post_processor = processors.BertProcessing((special[SEP], SEP), (special[CLS], CLS))
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / 'tokenizer.json'))


def bert(workload: Checkpoint) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """(config.json, {name: shape}) of a BertForSequenceClassification of two classes (Devlin et al. 2019)."""
    d, inner = workload.width, workload.mlp_width
    config = dict(
        model_type='bert', architectures=['BertForSequenceClassification'], vocab_size=workload.vocab_size,
        hidden_size=d, num_hidden_layers=workload.layers, num_attention_heads=workload.heads, intermediate_size=inner,
        max_position_embeddings=512, hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT, num_labels=2,
    )  # fmt: skip
    shapes = {f'bert.embeddings.{kind}_embeddings.weight': (n, d)
              for kind, n in (('word', workload.vocab_size), ('position', 512), ('token_type', 2))}  # fmt: skip
    layers = {'bert.embeddings.LayerNorm': (d,), 'bert.pooler.dense': (d, d), 'classifier': (2, d)}
    for i in range(workload.layers):
        at = f'bert.encoder.layer.{i}.'
        layers |= {f'{at}attention.self.{name}': (d, d) for name in ('query', 'key', 'value')}
        layers |= {f'{at}attention.output.dense': (d, d), f'{at}attention.output.LayerNorm': (d,)}
        layers |= {
            f'{at}intermediate.dense': (inner, d),
            f'{at}output.dense': (d, inner),
            f'{at}output.LayerNorm': (d,),
        }
    shapes |= {f'{name}.weight': shape for name, shape in layers.items()}
    return config, shapes | {f'{name}.bias': shape[:1] for name, shape in layers.items()}


def t5(workload: Checkpoint) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """(config.json, {name: shape}) of T5 v1.0 (Raffel et al. 2020), whose head is its embedding."""
    d, inner = workload.width, workload.mlp_width
    config = dict(
        model_type='t5', architectures=['T5ForConditionalGeneration'], vocab_size=workload.vocab_size, d_model=d,
        d_kv=d // workload.heads, d_ff=inner, num_layers=workload.layers, num_heads=workload.heads,
        feed_forward_proj='relu', dropout_rate=DROPOUT, tie_word_embeddings=True, is_encoder_decoder=True,
        pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD,
    )  # fmt: skip
    shapes = {'shared.weight': (workload.vocab_size, d)}
    for stack, parts in (('encoder', ('SelfAttention',)), ('decoder', ('SelfAttention', 'EncDecAttention'))):
        shapes[f'{stack}.final_layer_norm.weight'] = (d,)
        shapes[f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'] = (32, workload.heads)
        for i in range(workload.layers):
            at = f'{stack}.block.{i}.layer.'
            shapes |= {f'{at}{k}.{part}.{name}.weight': (d, d) for k, part in enumerate(parts) for name in 'qkvo'}
            shapes |= {f'{at}{k}.layer_norm.weight': (d,) for k in range(len(parts) + 1)}
            mlp = f'{at}{len(parts)}.DenseReluDense'
            shapes |= {f'{mlp}.wi.weight': (inner, d), f'{mlp}.wo.weight': (d, inner)}
    return config, shapes


_MINI = dict(config='', layers=4, width=256, heads=4, mlp_width=1024, parameters=None, unit=5, check_steps=20)
_SMALL = dict(
    config='', layers=6, width=512, heads=8, mlp_width=2048, vocab_size=32_128, parameters=60_506_624, loss=None,
    check_steps=1, unit=1, kind='t5', block=64, target_block=NEW_TOKENS, num_examples=8,
)  # fmt: skip
CHECKPOINTS = {
    'finetune_bert': FineTuning(
        'BERT-mini (4 layers, width 256) told two classes of texts of 128 tokens, batch 16, float32', kind='bert',
        vocab_size=30_522, block=128, batch_size=16, loss=math.log(2), **_MINI,
    ),
    'finetune_t5': FineTuning(
        'T5 of 4 and 4 layers, width 256, writes 32 tokens from 128, batch 16, float32', kind='t5',
        vocab_size=32_128, block=128, target_block=32, batch_size=16, loss=None, **_MINI,
    ),
    'beams_mini': Beams(
        'T5 of 4 and 4 layers, width 256, writes 64 tokens from 64 with 4 beams, batch 1', batch_size=1,
        **_SMALL | dict(layers=4, width=256, heads=4, mlp_width=1024, parameters=None),
    ),
    'beams': Beams('T5-small writes 64 tokens from 64 with 4 beams, batch 1', batch_size=1, **_SMALL),
    'load': Loading(
        'T5 of 12 and 12 layers, width 768, in a safetensors file of 1.00 GB', config='', kind='t5', layers=12,
        width=768, heads=12, mlp_width=3840, vocab_size=32_128, block=64, target_block=16, num_examples=8, batch_size=1,
        parameters=251_215_104, loss=None, check_steps=1, unit=1,
    ),
    'beams_8': Beams('T5-small writes 64 tokens from 64 with 4 beams, batch 8', batch_size=8, **_SMALL),
}  # fmt: skip
