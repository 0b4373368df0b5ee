"""Writes local files as a TFDS set in array_record, without TensorFlow and without the network.

    python scripts/prepare_data.py --source=idx:DIR --name=my_mnist --data_dir=DIR [--valid_examples=N]
    python scripts/prepare_data.py --source=text:FILE_OR_GLOB --name=my_text --data_dir=DIR [--test_percent=P]

Then `--config.data.name=tfds:my_mnist --config.data.dir=DIR` reads it, example for example in the same order; of text,
an example is a document.
Exit codes: 0 done, 1 the writing failed, 2 a wrong flag or file, 130 Ctrl-C, 143 SIGTERM. Unless all went
well, no part of the set is left behind.
"""

import contextlib
import itertools
import os
import re
import shlex
import signal
import sys
import tempfile

import numpy as np
from absl import app, flags
from ml_collections import config_dict

from aigc_jax.core.errors import RunError, UserError
from aigc_jax.data import TEXTS, Dataset, Images, Tokens, load

_SOURCE = flags.DEFINE_string(
    'source',
    None,
    'What to read: idx:DIR, npz:FILE, npy:FILE, mat:FILE, amat:DIR, images:DIR; text:FILE_OR_GLOB, code:DIR, '
    'jsonl:FILE; also as text:train=A,valid=B,test=C. aigc_jax/data/README.md tells what each may hold.',
    required=True,
)
_NAME = flags.DEFINE_string('name', None, 'Name of the new set: a-z, 0-9 and _.', required=True)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Folder of TFDS sets to put it in.', required=True)
_VALID = flags.DEFINE_integer(
    'valid_examples',
    -1,
    'How many training examples to hold out for validation where the source has no valid split; -1: 10,000, or a fifth '
    'of them where those are fewer.',
)
_PERCENT = {
    split: flags.DEFINE_float(f'{split}_percent', 5.0, f'Of text: how much of it, or of its documents, is for {split}.')
    for split in ('valid', 'test')
}


def write(dataset: Dataset, name: str, data_dir: str) -> str:
    """Writes data_dir/name whole or not at all, and returns that path.

    Raises:
      UserError: if the name is not one for TFDS, the set exists already, or data_dir cannot be written.
      RunError: if writing fails half-way, as on a full disk.
    """
    if not re.fullmatch('[a-z][a-z0-9_]*', name):
        raise UserError(f'--name={name}: TFDS wants a-z, 0-9 and _, with a letter first')
    target = os.path.join(data_dir, name)
    if os.path.lexists(target):
        raise UserError(f'{target}: exists already; remove it, or choose another --name')
    try:
        os.makedirs(data_dir, exist_ok=True)
        # Beside the target, so that the rename at the end is one step on one disk.
        scratch = tempfile.TemporaryDirectory(prefix=f'.{name}.', dir=data_dir)
    except OSError as e:
        raise UserError(f'--data_dir={data_dir}: cannot be written ({e.strerror})') from e
    with scratch:
        try:
            _prepare(dataset, name, scratch.name)
            os.rename(os.path.join(scratch.name, name), target)
        except OSError as e:
            raise RunError(f'{target}: writing failed ({e.strerror or e})') from e
    return target


def _prepare(dataset: Dataset, name: str, folder: str) -> None:
    import tensorflow_datasets as tfds

    if isinstance(dataset.spec, Tokens):
        features = {'text': tfds.features.Text()}
    else:
        key = 'image' if isinstance(dataset.spec, Images) else 'x'
        dtype = dataset.splits['train'][0]['x'].dtype
        # Not tfds.features.Image: it calls TensorFlow to make a PNG of an array.
        features = {key: tfds.features.Tensor(shape=dataset.spec.shape, dtype=dtype, encoding='zlib')}
        if dataset.num_classes:
            features['label'] = tfds.features.ClassLabel(num_classes=dataset.num_classes)

    def examples(source):
        if isinstance(dataset.spec, Tokens):  # the tokens are bytes
            tokenizer = dataset.spec.tokenizer
            ends = np.flatnonzero(source.tokens == tokenizer.end) if tokenizer.has_end else [-1]
            for i, (begin, end) in enumerate(itertools.pairwise([*ends, len(source.tokens)])):
                yield i, {'text': source.tokens[begin + 1 : end].astype(np.uint8).tobytes()}
            return
        for i in range(len(source)):
            example = source[i]
            yield i, {key: example['x']} | {k: int(v) for k, v in example.items() if k == 'label'}

    class LocalFiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                license=dataset.licence,
                metadata=tfds.core.MetadataDict(levels=getattr(dataset.spec, 'levels', 0)),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            names = {'train': 'train', 'validation': 'valid', 'test': 'test'}
            return {ours: examples(dataset.splits[split]) for ours, split in names.items() if split in dataset.splits}

        def _generate_examples(self):
            raise NotImplementedError('_split_generators gives the examples')

    LocalFiles.name = name
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr):  # TFDS prints its progress
        LocalFiles(data_dir=folder, file_format='array_record').download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


def main(argv: list[str]) -> None:
    for caught in (signal.SIGINT, signal.SIGTERM):
        signal.signal(caught, lambda number, _: sys.exit(128 + number))  # an exception, so that `write` cleans up
    try:
        if len(argv) > 1:
            raise UserError(f'{argv[1]}: is no flag; every argument is a --flag=value')
        if _SOURCE.value.startswith('tfds:'):
            raise UserError(f'--source={_SOURCE.value}: is a TFDS set already')
        data_dir = os.path.abspath(os.path.expanduser(_DATA_DIR.value))
        if _SOURCE.value.partition(':')[0] + ':' in TEXTS:
            percents = {f'{split}_percent': flag.value for split, flag in _PERCENT.items()}
            fields = dict(tokenizer='byte', vocab_size=0, order='shuffled', block=1, eval_block=0, eval_stride=1)
        else:
            percents, fields = {}, dict(dir='', num_examples=0, valid_examples=_VALID.value)
        dataset = load(config_dict.ConfigDict(dict(name=_SOURCE.value, **percents, **fields)))
        write(dataset, _NAME.value, data_dir)
    except (UserError, RunError) as e:
        print(f'prepare_data: {e}', file=sys.stderr)
        sys.exit(e.exit_code)
    print(shlex.join([f'--config.data.name=tfds:{_NAME.value}', f'--config.data.dir={data_dir}']))


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as e:
        print(f'prepare_data: {str(e).splitlines()[-1]}', file=sys.stderr)
        sys.exit(UserError.exit_code)


if __name__ == '__main__':
    app.run(main, flags_parser=_parse)
