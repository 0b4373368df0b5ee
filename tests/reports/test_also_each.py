"""Reports of the final evaluation that are made at each evaluation, too (eval.also_each)."""

import json
import pathlib

import pytest

from aigc_jax import reports
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

CONFIG = str(pathlib.Path(__file__).parents[2] / 'configs' / 'gan.py')
FIELDS = [('eval.extractor', 'pixels'), ('eval.also_each', "('image_samples',)")]


def test_image_metrics_are_in_the_curves_and_choose_the_best_checkpoint(tmp_path):
    fields = [*FIELDS, ('eval.best_metric', 'samples/frechet'), ('eval_every_steps', '10')]
    config = config_lib.load(f'{CONFIG}:smoke', [*fields, ('checkpoint_every_steps', '40'), ('keep_checkpoints', '1')])
    run = Run(tmp_path)
    train(config, run)
    name = 'samples/frechet_200_pixels'
    by_step = {row['step']: row[name] for row in run.rows() if row['split'] == 'eval'}
    assert list(by_step) == [10, 20, 30, 40]
    final = json.loads(run.paths.evaluation.read_text())[name]
    # Of the split that is evaluated while training, and of the other one at the end.
    assert final['value'] != by_step[40] and final['real'] > 0
    _, state = run.open('best')
    assert int(state.step) == min(by_step, key=by_step.get)


@pytest.mark.parametrize(
    'fields, words',
    [
        ([('eval.also_each', "('image_sample',)")], 'did you mean image_samples'),
        ([('eval.also_each', "('problems',)")], 'no report .problems'),
        ([('eval.extractor', '')], "image_samples is left out, for eval.extractor is ''; set eval.extractor, too"),
        ([('eval.extractor', ''), ('eval.also_each', '()'), ('eval.best_metric', 'samples/frechet')],
         'samples/frechet is not measured while training; set eval.extractor, and eval.also_each to'),
        ([('eval.extractor', ''), ('eval.also_each', '()'), ('eval.best_metric', 'samples/f')], 'has no .sam'),
        ([('eval.best_metric', 'samples/frechet'), ('eval.also_each', '()')],
         'samples/frechet is not measured while training; set eval.also_each to'),
    ],
)
def test_what_does_not_fit_is_refused(fields, words):
    config = config_lib.load(f'{CONFIG}:smoke', [*FIELDS, *fields])
    with pytest.raises(UserError, match=words):
        reports.check(Experiment(config))
