"""Makes tests/adapt/goldens/t5_*: models drawn by transformers, saved by it, and what it computes with them.

    python tests/adapt/make_t5_goldens.py      # needs PyTorch and transformers 5, which the tests do not
"""

import json
import pathlib

import numpy as np
import torch
import transformers as t
from safetensors.torch import save_file

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
VOCAB, N, SOURCE, TARGET = 61, 3, 11, 7
LENGTHS = (11, 6, 1)  # of the sources
PAD, END = 0, 1
# The token that ends what is written, of the longer searches below: one that these models come to write.
ENDS = {'t5_v1_0': 21, 't5_v1_1': 16, 'codet5': 51}
COMMON = dict(vocab_size=VOCAB, d_model=16, d_ff=24, num_layers=2, num_heads=2, pad_token_id=PAD, eos_token_id=END,
              decoder_start_token_id=PAD)  # fmt: skip
# So few buckets and so short a distance that those of several tokens are met, and the last one.
NEAR = dict(relative_attention_num_buckets=8, relative_attention_max_distance=6)
MODELS = {
    't5_v1_0': dict(d_kv=8, feed_forward_proj='relu', **NEAR),
    # A head is no part of the width, and the stacks are of unequal height.
    't5_v1_1': dict(d_kv=6, feed_forward_proj='gated-gelu', tie_word_embeddings=False, num_decoder_layers=1, **NEAR),
    # As Salesforce/codet5-small has it: v1.0 with the special tokens of RoBERTa.
    'codet5': dict(d_kv=8, feed_forward_proj='relu', bos_token_id=1, eos_token_id=2, n_positions=512),
}  # fmt: skip


def drawn(name: str, seed: int = 0) -> torch.nn.Module:
    """A model whose weights are wide enough that a wrong one shows in the logits."""
    model = t.T5ForConditionalGeneration(t.T5Config(**COMMON | MODELS[name]))
    generator = torch.Generator().manual_seed(seed)
    if name == 't5_v1_1':
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if 'layer_norm' in key else (0.3 if 'shared' in key else 0.6) * noise)
    return model.eval()


def make(name: str) -> None:
    model, folder = drawn(name), GOLDENS / name
    folder.mkdir(parents=True, exist_ok=True)
    # As the published checkpoints have it: transformers 5 itself would write that it is tied.
    config = model.config.to_dict() | {'tie_word_embeddings': name != 't5_v1_1'}
    config['architectures'] = ['T5ForConditionalGeneration']
    del config['scale_decoder_outputs']
    (folder / 'config.json').write_text(json.dumps(config, indent=2, sort_keys=True) + '\n')
    tied = () if name == 't5_v1_1' else ('lm_head.weight',)
    left_out = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight', *tied)
    weights = {key: value.contiguous() for key, value in model.state_dict().items() if key not in left_out}
    save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})
    draws = np.random.default_rng(0)
    mask = np.arange(SOURCE) < np.array(LENGTHS)[:, None]
    source = np.where(mask, draws.integers(3, VOCAB, (N, SOURCE)), PAD)
    target = np.concatenate([np.full((N, 1), PAD), draws.integers(3, VOCAB, (N, TARGET - 1))], axis=1)
    inputs = dict(input_ids=torch.tensor(source), attention_mask=torch.tensor(mask.astype(np.int64)))
    with torch.no_grad():
        found = model(**inputs, decoder_input_ids=torch.tensor(target))
        how = dict(**inputs, max_new_tokens=10, do_sample=False, eos_token_id=ENDS[name])
        greedy = model.generate(**how)[:, 1:]
        # Without a penalty of the length, and on until no beam can become better.
        beams = model.generate(**how, num_beams=4, length_penalty=0.0, early_stopping='never')[:, 1:]
    fill = lambda rows: np.pad(rows, ((0, 0), (0, 10 - rows.shape[1])))
    stack = model.decoder.block[0].layer[0].SelfAttention
    distance = torch.arange(-200, 201)
    buckets = [
        stack._relative_position_bucket(distance, both_ways, count, most)
        for both_ways, count, most in ((True, 32, 128), (False, 32, 128), (True, 8, 6), (False, 8, 6))
    ]  # fmt: skip
    values = dict(
        end=ENDS[name], source=source, lengths=np.array(LENGTHS), target=target, logits=found.logits,
        memory=found.encoder_last_hidden_state, greedy=fill(greedy), beams=fill(beams), buckets=torch.stack(buckets),
    )  # fmt: skip
    np.savez_compressed(folder / 'golden.npz', **{key: np.asarray(value) for key, value in values.items()})
    print(name, greedy.tolist(), beams.tolist())


if __name__ == '__main__':
    for one in MODELS:
        make(one)
