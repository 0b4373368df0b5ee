"""Language models of texts that come with Python and, where its file is given, of Tiny Shakespeare.

    python -m aigc_jax.study --config=configs/studies/language.py:FILE --workdir=runs/language

FILE is input.txt of github.com/karpathy/char-rnn; its last 10 % are held out. Without :FILE the study has the other
rows alone. It takes about 20 hours of one core in all, and goes on where it was ended: a seed takes 7 minutes (pydoc-…),
20 (stdlib), 80 (stdlib-large and programs), 5 (shakespeare and nanogpt), and 4 hours (shakespeare-large).

The texts are those of the Python that runs, so that another version has other values. What an n-gram model, its mixture
with the model, and xz reach on the same text stands beside a row.
"""

from aigc_jax.studies.claims import Claim, Published, Versus

_CONTEXT, _WINDOWS, _BITS = 'model/nats_per_token', 'model/nats_per_token_window', 'model/bits_per_byte'
_NANOGPT = 'README.md of github.com/karpathy/nanoGPT'
