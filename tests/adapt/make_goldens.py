"""Makes tests/adapt/goldens/: small checkpoints as transformers saves them, and what it computes with them.

    python tests/adapt/make_goldens.py [NAME …]

needs PyTorch and transformers 5. The models are drawn at random, norms and biases too, so that each one matters.
"""

import pathlib
import sys

import numpy as np
import tokenizers
import torch
import transformers as t

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
VOCAB = 61
PROMPT = 'a cab.'
# Of the Llama shapes. A head is wider than hidden_size / heads in Qwen3, and keys are shared.
_SHAPE = dict(
    vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=40, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_LLAMA3 = dict(
    rope_type='llama3', rope_theta=10_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
DECODERS = {
    'gpt2': lambda: t.GPT2LMHeadModel(t.GPT2Config(
        vocab_size=VOCAB, n_positions=40, n_embd=16, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2,
    )),
    'llama': lambda: t.LlamaForCausalLM(t.LlamaConfig(**_SHAPE, rope_parameters=_LLAMA3)),
    'qwen2': lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**_SHAPE, tie_word_embeddings=True)),
    'qwen3': lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**_SHAPE, head_dim=8)),
    'mistral': lambda: t.MistralForCausalLM(t.MistralConfig(**_SHAPE, head_dim=4, sliding_window=6)),
}  # fmt: skip


def drawn(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """All weights anew, wide enough that a wrong one shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_scale = name.endswith('weight') and ('norm' in name or '.ln_' in name)
            weight.copy_(is_scale + 0.3 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def tokenizer(begins: bool) -> t.PreTrainedTokenizerFast:
    """Letters and a few merges of them. begins: whether a token stands before each text, as Llama has it."""
    letters = [*'abcdefghijklmnopqrstuvwxyz .,:()', '\n']
    merges = [('a', 'b'), ('c', 'ab'), ('b', 'e'), (' ', 'a')]
    pieces = ['<pad>', '<s>', '</s>', *letters, *map(''.join, merges)]
    library = tokenizers.Tokenizer(tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    library.decoder = tokenizers.decoders.Fuse()
    if begins:
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', 1)]
        )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=library, bos_token='<s>', eos_token='</s>', pad_token='<pad>',
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def decoder(name: str) -> None:
    torch.manual_seed(0)
    model, folder = drawn(DECODERS[name]()), GOLDENS / name
    model.save_pretrained(folder)
    (folder / 'generation_config.json').unlink(missing_ok=True)
    words = tokenizer(begins=name != 'gpt2')
    words.save_pretrained(folder)
    tokens = torch.from_numpy(np.random.RandomState(0).randint(3, VOCAB, (2, 12)))
    # Seeds of texts that do not end: what follows a text's end is nobody's.
    how = dict(max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=None, length_penalty=0.0)
    with torch.no_grad():
        logits = model(tokens).logits
        greedy = model.generate(tokens, **{**how, 'length_penalty': 1.0})[:, 12:]
        beams = model.generate(tokens, num_beams=4, **how)[:, 12:]
        text = words(PROMPT, return_tensors='pt').input_ids
        lacking = list(range(len(words), VOCAB))  # rows that the tokenizer has no token of
        long = {**how, 'length_penalty': 1.0, 'max_new_tokens': 16, 'suppress_tokens': lacking}
        written = words.decode(model.generate(text, **long)[0, text.shape[1] :])
    (folder / 'golden.txt').write_text(written, encoding='utf-8')
    np.savez(folder / 'golden.npz', tokens=tokens.int(), logits=logits, greedy=greedy.int(), beams=beams.int())


if __name__ == '__main__':
    for name in sys.argv[1:] or DECODERS:
        decoder(name)
