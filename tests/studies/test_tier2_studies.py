"""The studies that take days are the commands of configs/README.md as data, and their metrics are there."""

import pathlib
import re
import shlex

import datafiles
import numpy as np
import pytest

from aigc_jax import reports
from aigc_jax.metrics.names import named
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.studies import planning, rows
from aigc_jax.studies.claims import Published

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / 'configs' / 'README.md').read_text(encoding='utf-8')
DOUBLY, FIFTY, PACKED = {'task.estimator': 'dreg'}, {'task.k': 50}, {'task.packing': 2}
OWN = {'eval.extractor': 'auto'}  # each run trains the classifier; those of the README have that of run `dcgan`
# {study: (what stands for its data in the commands, {claim: (run, what the claim has in place of the run's)})}
RUNS = {
    'binarized_mnist': ('DIR', {
        'vae': ('bmnist', {}), 'iwae-1': ('iwae_1', {}), 'iwae-5': ('iwae', {}), 'iwae-50': ('iwae', FIFTY),
        'five': ('iwae', {}), 'fifty': ('iwae', FIFTY), 'dreg-5': ('iwae', DOUBLY), 'dreg-50': ('iwae', FIFTY | DOUBLY),
        'vamp': ('vamp', {}), 'flow-prior': ('flow_prior', {}),
    }),
    'stacked_mnist': ('DIR', {
        'dcgan-modes': ('stacked_dcgan', OWN), 'dcgan-kl': ('stacked_dcgan', OWN),
        'pacdcgan2-modes': ('stacked_dcgan', OWN | PACKED), 'pacdcgan2-kl': ('stacked_dcgan', OWN | PACKED),
        **{f'rpgan-{name}': ('stacked', OWN) for name in ('modes', 'kl', 'covers', 'evens')},
    }),
    'language': ('FILE', {
        'pydoc-lstm': ('rnn', {}), 'pydoc': ('gpt', {}), 'stdlib': ('code', {}), 'stdlib-large': ('code_large', {}),
        'stdlib-parses': ('code', {}), 'stdlib-large-parses': ('code_large', {}), 'programs': ('programs', {}),
        'programs-10': ('programs', {}), 'programs-beam': ('programs', {}), 'nanogpt': ('nanogpt', {}),
        'nanogpt-context': ('nanogpt', {}), 'shakespeare': ('shakespeare', {}),
        'shakespeare-context': ('shakespeare', {}), 'shakespeare-large': ('large', {}),
        'shakespeare-large-context': ('large', {}),
    }),
}  # fmt: skip


def commands() -> dict[str, tuple[str, list, dict]]:
    """{run: (config, the fields of its training, the fields of its evaluation)}."""
    found = {}
    for line in README.replace('\\\n', ' ').replace('SEED', '0').split('\n'):
        if line.startswith('    python -m aigc_jax.main'):
            rest, config, fields = config_lib.split_arguments(['main', *shlex.split(line)[3:]])
            run = next(word for word in rest if word.startswith('--workdir=')).rpartition('/')[2]
            if config:
                found[run] = config, fields, {}
            else:
                found[run][2].update(fields)
    return found


def plan(study: str, argument: str) -> planning.Plan:
    return planning.load(f'{ROOT / "configs" / "studies" / study}.py:{argument}')


@pytest.mark.parametrize('study', RUNS)
def test_the_claims_are_the_commands_of_the_documentation(study):
    argument, runs = RUNS[study]
    found, documented = plan(study, argument), commands()
    assert found.claims.keys() == runs.keys()
    for name, (run, instead) in runs.items():
        config, fields, evaluation = documented[run]
        want = config_lib.flatten(config_lib.load(str(ROOT / config), fields))
        ours = config_lib.flatten(found.settings[name].resolved)
        assert {field: value for field, value in ours.items() if value != want.get(field)} == instead, name
        assert ours.keys() == want.keys(), name
        assert dict(rows.texts(found.claims[name].evaluate)) == evaluation, name


def test_without_its_file_the_study_of_language_has_the_texts_of_python():
    shakespeare = {name for name in RUNS['language'][1] if name.startswith(('nanogpt', 'shakespeare'))}
    assert plan('language', '').claims.keys() == RUNS['language'][1].keys() - shakespeare


def test_published_values_are_those_of_the_documentation():
    values = [c.expected for s in RUNS for c in plan(s, RUNS[s][0]).study.claims if isinstance(c.expected, Published)]
    assert len(values) == 11
    # Pythae's page has that of 50 samples, and the documentation no run of them.
    unknown = [v.value for v in values if not re.search(rf'(?<![\d.]){v.value:g}0*(?!\d)', README)]
    assert unknown == [87.1]


def data(study: str, folder: pathlib.Path) -> str:
    """The argument of the study for a little random data in `folder`."""
    random = np.random.default_rng(0)
    if study == 'binarized_mnist':
        for split in ('train', 'valid', 'test'):
            datafiles.write(folder / f'x_{split}.amat', datafiles.amat_bytes(random.integers(0, 2, (250, 784))))
        return str(folder)
    if study == 'stacked_mnist':
        for part in ('train', 't10k'):
            images, labels = random.integers(0, 256, (30, 28, 28)), np.arange(30) % 10
            datafiles.write(folder / f'{part}-images-idx3-ubyte', datafiles.idx_bytes(images.astype(np.uint8)))
            datafiles.write(folder / f'{part}-labels-idx1-ubyte', datafiles.idx_bytes(labels.astype(np.uint8)))
        return str(folder)
    (folder / 'input.txt').write_text('To be, or not to be, that is the question.\n' * 300)
    return str(folder / 'input.txt')


@pytest.mark.parametrize('study', RUNS)
def test_an_evaluation_has_the_metrics_of_the_claims(study, tmp_path):
    found = plan(study, data(study, tmp_path))
    for setting in {id(setting): setting for setting in found.settings.values()}.values():
        if setting.resolved.data.name in ('pydoc', 'python-stdlib', 'programs'):
            continue  # seconds to read; a text of the user's has the same metrics
        experiment = Experiment(setting.resolved)
        names = [name for report in reports.of(experiment) for name in report.names(experiment)]
        if 'ngram_order' in experiment.config.eval:  # not among the names, for they are known at the end
            by = 'mixture', f'{experiment.config.eval.ngram_order}-gram'
            names += [f'{model}/nats_per_token' for model in by]
        for claim in found.study.claims:
            if found.settings[claim.name] is setting:
                assert [m for m in (claim.metric, *claim.floors) if named(m, names) is None] == [], claim.name
