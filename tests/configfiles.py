"""The config files of the repository and their variants."""

import importlib.util
import pathlib

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
FILES = sorted(path for path in CONFIGS.glob('*.py'))


def variants(path):
    spec = importlib.util.spec_from_file_location('config', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.VARIANTS)


def needs_files(config):
    return config.data.name.removeprefix('stacked:').partition(':')[0] in ('idx', 'npz', 'amat', 'tfds', 'text')
