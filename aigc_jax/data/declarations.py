"""The fields of a config's group `data`: those of images and points, of text, and of pairs and labelled texts."""

from aigc_jax.core.schema import Field
from aigc_jax.data import augment, specs, tokenizers
from aigc_jax.data.sources import text

_NAME = Field(str, doc='the data set, with its place after a colon; aigc_jax/data/README.md tells of each')
_DIR = Field(str, '', doc="where TFDS keeps its sets; empty: TFDS's default")
_STREAM = Field(bool, False, doc='whether Grain reads while training; otherwise the data are resident on the device')

IMAGES_AND_POINTS = {
    'name': _NAME,
    'dir': _DIR,
    'num_examples': Field(int, 100_000, least=0, doc='of the training split of the 2-D and stacked sets'),
    'valid_examples': Field(
        int, -1, least=-1,
        doc='training examples held out where the data have no valid split; -1: 10,000, or a fifth of the training '
        'examples where those are fewer; 0: there is no valid split, all is trained on',
    ),
    'shape': Field(
        tuple, (), items=Field(int, least=1),
        doc='(H, W) of images that an npz, npy, mat or amat holds as rows of pixels; (): they are square',
    ),
    'binarize': Field(
        str, 'none', choices=specs.BINARIZE,
        doc='of images: `threshold` at ½; `static`: each pixel is drawn once; `dynamic`: whenever it is seen',
    ),
    'scale': Field(
        str, 'unit', choices=specs.SCALES,
        doc='images to [0, 1] (`unit`) or [-1, 1] (`symmetric`); points as they are (`unit`) or with mean 0 and '
        'variance 1 (`standard`)',
    ),
    'stream': _STREAM,
    'augment': Field(dict, fields=augment.FIELDS, doc='of training images, on the device, by draws of each step'),
}  # fmt: skip
_TOKENIZER = {
    'tokenizer': Field(
        str, 'auto',
        doc=f'of text: {", ".join(f"`{kind}`" for kind in tokenizers.KINDS)}; `hf:FOLDER`, that of a folder in Hugging '
        'Face format; `auto`, that of init.run, or bytes',
    ),
    'vocab_size': Field(
        int, -1, least=-1,
        doc='most tokens of `word` and `bpe`, special ones included; -1: as many as init.run has, or 1024',
    ),
    'special': Field(
        tuple, (), items=Field(str, choices=tokenizers.SPECIAL),
        doc='tokens that stand for no text and that a tokenizer gets besides, such as `mask`; prompts write <mask>',
    ),
    'sentinels': Field(
        int, 0, least=0, most=tokenizers.MOST_SENTINELS,
        doc='number of the tokens <extra_id_0>, <extra_id_1>, …, which stand for hidden spans (T5: 100)',
    ),
    'code': Field(
        bool, False,
        doc='whether the text is Python source; that of code:, python-stdlib, python-modules and programs always is',
    ),
}  # fmt: skip
_HELD_OUT = {
    'valid_percent': Field(float, 5.0, least=0, below=100, doc='of the text, or of its documents, held out'),
    'test_percent': Field(float, 5.0, least=0, below=100, doc='of the text, or of its documents, held out'),
}
TEXT = {
    'name': _NAME,
    'dir': _DIR,
    **_TOKENIZER,
    'order': Field(
        str, 'shuffled', choices=text.ORDERS,
        doc='windows from anywhere, or `contiguous`: rows of text read on from window to window, for recurrent models',
    ),
    **_HELD_OUT,
    'block': Field(
        int, 256, least=1,
        doc='tokens of a training window: the most that a Transformer sees, prompt and continuation, and those through '
        'which the gradient of a recurrent model goes back',
    ),
    'eval_block': Field(int, 0, least=0, doc='tokens of a window of the evaluation, at most; 0: as while training'),
    'eval_stride': Field(
        int, -1, least=-1,
        doc='tokens from window to window of the evaluation; each is scored with block − stride tokens before it, or '
        'more; -1: half a window',
    ),
    'fim_rate': Field(
        float, 0.0, least=0, most=1,
        doc='share of training windows whose middle is moved to their end, for infilling; 0: none',
    ),
    'fim_identifiers': Field(float, 0.0, least=0, most=1, doc='share of these whose middle is one identifier'),
    'number_identifiers': Field(
        bool, False, doc='whether windows tell where identifiers stand and which are the same: for task.objective'
    ),
    'stream': _STREAM,
}  # fmt: skip
EXAMPLES = {
    'name': _NAME,
    'dir': _DIR,
    'columns': Field(
        tuple, (), items=Field(str),
        doc='names of the fields that are read: source and target; text, perhaps a second one, and label; tokens and '
        'tags; (): those that aigc_jax/data/README.md tells of',
    ),
    'both_ways': Field(
        bool, False,
        doc='whether each pair is also turned round; sources then begin with <NAME>, the column that is to be written',
    ),
    'train_examples': Field(
        int, -1, least=-1,
        doc='training examples that are used, chosen by their hashes, so that fewer are a part of more; -1: all',
    ),
    **_TOKENIZER,
    **_HELD_OUT,
    'block': Field(int, 256, least=1, doc='most tokens of a source or a labelled text, special ones included'),
    'target_block': Field(int, 128, least=1, doc='the same of a target'),
    'stream': _STREAM,
}  # fmt: skip
