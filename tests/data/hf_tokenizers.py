"""Small tokenizers of the families that people have, made and saved by transformers, and what it makes of some texts.

    python tests/data/hf_tokenizers.py        # writes tests/data/hf_tokenizers.json; needs transformers 5, not PyTorch
"""

import base64
import json
import pathlib
import sys
import tempfile

GOLDEN = pathlib.Path(__file__).with_suffix('.json')
CORPUS = [
    'def add(first, second):\n    return first + second\n',
    'The import statement finds a module, and binds it.',
    'class Stack:\n    def push(self, item):\n        self.items.append(item)\n',
    "It isn't a statement; it's a name.",
    'for name in names:\n    print(name, 10, 2024)\n',
    'A café is not a module. The statement is bound to a name.',
] * 3
TEXTS = [
    'The statement binds a name.',
    'def push(self, item):\n    return 12',
    '  two  spaces, a tab\tand an end ',
    'Café ☕ naïve',
    "it isn't",
    'x',
    '日本 and é (two letters)',
    'THE Import',
    '<mask> [MASK] <pad> </s> <extra_id_0> as text',
    'a\n\nb',
]


def _trained(model, trainer, pre_tokenizer, normalizer=None):
    import tokenizers

    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizer
    if normalizer:
        library.normalizer = normalizer
    library.train_from_iterator(CORPUS, trainer)
    return json.loads(library.to_str())['model']


def _byte_level(special, size=300):
    from tokenizers import models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    found = _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    return found['vocab'], [tuple(merge) for merge in found['merges']]


def families() -> dict:
    """{name: a tokenizer of transformers}."""
    import transformers
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

    bert = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=bert, show_progress=False)
    lower = normalizers.BertNormalizer()
    words = _trained(models.WordPiece(unk_token='[UNK]'), trainer, pre_tokenizers.BertPreTokenizer(), lower)
    roberta = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
    vocab, merges = _byte_level(roberta)
    special = ['<pad>', '</s>', '<unk>']
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token='<unk>', show_progress=False)
    pieces = _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), normalizers.NFKC())['vocab']
    gpt2 = _byte_level(['<|endoftext|>'])
    mask = AddedToken('<mask>', lstrip=True, special=True)
    extra = [f'<extra_id_{i}>' for i in reversed(range(5))]
    found = {
        'bert': transformers.BertTokenizer(vocab=words['vocab']),
        'bert_cased': transformers.BertTokenizer(vocab=words['vocab'], do_lower_case=False),
        'gpt2': transformers.GPT2Tokenizer(vocab=gpt2[0], merges=gpt2[1]),
        'roberta': transformers.RobertaTokenizer(vocab=vocab, merges=merges, mask_token=mask),
        'codet5': transformers.RobertaTokenizer(
            vocab=vocab, merges=merges, mask_token=mask, additional_special_tokens=extra
        ),
        't5': transformers.T5Tokenizer(
            vocab=[*map(tuple, pieces), *((one, 0.0) for one in extra)], extra_ids=5
        ),
        'llama': transformers.LlamaTokenizer(vocab=_of_llama()[0], merges=_of_llama()[1]),
        'qwen2': transformers.Qwen2Tokenizer(vocab=gpt2[0], merges=gpt2[1]),
    }  # fmt: skip
    return found


def _of_llama():
    """BPE of letters with a byte for what it lacks, as Llama 2."""
    from tokenizers import models, pre_tokenizers, trainers

    special = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    found = _trained(models.BPE(), trainer, pre_tokenizers.Metaspace())
    return found['vocab'], [tuple(merge) for merge in found['merges']]


def measured(tokenizer) -> dict:
    """What transformers makes of TEXTS."""
    plain = lambda text, **how: tokenizer(text, add_special_tokens=False, **how)['input_ids']
    split = [tokenizer(text, add_special_tokens=False, split_special_tokens=True)['input_ids'] for text in TEXTS]
    roles = ('pad', 'mask', 'cls', 'sep', 'eos', 'bos', 'unk')
    return {
        'ids': split,
        'special': [plain(text) for text in TEXTS],
        'framed': [tokenizer(text, split_special_tokens=True)['input_ids'] for text in TEXTS],
        'pair': tokenizer(TEXTS[0], TEXTS[1])['input_ids'],
        'decoded': [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in split],
        'roles': {role: getattr(tokenizer, f'{role}_token_id') for role in roles},
        'sentinels': [
            tokenizer.get_vocab()[f'<extra_id_{i}>'] for i in range(5) if f'<extra_id_{i}>' in tokenizer.get_vocab()
        ],
        'vocab_size': len(tokenizer),
    }


def saved(tokenizer, folder) -> dict[str, str]:
    """{name: text} of its files."""
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_text(encoding='utf-8') for path in sorted(pathlib.Path(folder).iterdir())}


def of_spiece() -> dict:
    """What T5's class makes of a sentencepiece model alone, and the model."""
    import sentencepiece
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        path, rules = pathlib.Path(folder, 'spiece.model'), pathlib.Path(folder, 'rules.tsv')
        rules.write_text('E9\t65\nEF\t69\nA0\t20\n')  # é, ï and a wide space; all of NFKC would be 300 KB
        with open(path, 'wb') as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(CORPUS), model_writer=file, vocab_size=70, model_type='unigram', pad_id=0,
                eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
                normalization_rule_tsv=str(rules),
            )  # fmt: skip
        tokenizer = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=5)
        return {'spiece': base64.b64encode(path.read_bytes()).decode(), **measured(tokenizer)}


def main() -> None:
    import transformers

    found = {}
    for name, tokenizer in families().items():
        with tempfile.TemporaryDirectory() as folder:
            files = saved(tokenizer, folder)
            again = transformers.AutoTokenizer.from_pretrained(folder)
            found[name] = {'class': type(again).__name__, 'files': files, **measured(again)}
    found = {'transformers': transformers.__version__, 'families': found, 'spiece': of_spiece()}
    GOLDEN.write_text(json.dumps(found, ensure_ascii=False) + '\n', encoding='utf-8')
    sys.stdout.write(f'{GOLDEN}: {GOLDEN.stat().st_size >> 10} KB\n')


if __name__ == '__main__':
    main()
