"""Makes tests/adapt/goldens/NAME of BERT and RoBERTa: models drawn by transformers, saved by it, and what they give.

    python tests/adapt/make_encoder_goldens.py [NAME …]      # needs torch and transformers, which the tests do not
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
VOCAB, POSITIONS, N, LENGTH = 61, 20, 3, 12
LENGTHS = (12, 7, 1)
COMMON = dict(
    vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, num_labels=3,
    attn_implementation='eager',
)  # fmt: skip
BERT = dict(max_position_embeddings=POSITIONS, type_vocab_size=2, pad_token_id=0)
ROBERTA = dict(max_position_embeddings=POSITIONS + 2, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5)
MODELS = {
    'bert_masked': (transformers.BertForMaskedLM, transformers.BertConfig, BERT),
    'bert_sequence': (transformers.BertForSequenceClassification, transformers.BertConfig, BERT),
    'bert_tokens': (transformers.BertForTokenClassification, transformers.BertConfig, BERT),
    'roberta_masked': (transformers.RobertaForMaskedLM, transformers.RobertaConfig, ROBERTA),
    'roberta_sequence': (transformers.RobertaForSequenceClassification, transformers.RobertaConfig, ROBERTA),
    'roberta_tokens': (transformers.RobertaForTokenClassification, transformers.RobertaConfig, ROBERTA),
}


def make(name: str, seed: int = 0) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """A model of MODELS whose parameters are far from their initialization, and its inputs and outputs."""
    kind, config, own = MODELS[name]
    torch.manual_seed(seed)
    model = kind(config(**COMMON, **own)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    draws = np.random.default_rng(0)
    tokens = draws.integers(2, VOCAB, (N, LENGTH))
    lengths = np.array(LENGTHS)
    is_text = np.arange(LENGTH) < lengths[:, None]
    tokens = np.where(is_text, tokens, own['pad_token_id'])
    types = draws.integers(0, own['type_vocab_size'], (N, LENGTH))
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(is_text.astype(np.int64)),
            token_type_ids=torch.tensor(types), output_hidden_states=True,
        )  # fmt: skip
    values = dict(tokens=tokens, lengths=lengths, types=types, logits=found.logits, hidden=found.hidden_states[-1])
    return model, {name: np.asarray(value) for name, value in values.items()}


def main() -> None:
    for name in sys.argv[1:] or MODELS:
        model, values = make(name)
        model.save_pretrained(GOLDENS / name)
        (GOLDENS / name / 'generation_config.json').unlink(missing_ok=True)
        np.savez_compressed(GOLDENS / name / 'golden.npz', **values)


if __name__ == '__main__':
    main()
