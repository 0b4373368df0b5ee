"""Which pictures are drawn, and by whom; of images whose classes have names of any bytes."""

import os

import numpy as np
import pytest
from PIL import Image

from aigc_jax.core import processes
from aigc_jax.core.capabilities import Codebook, Samples
from aigc_jax.data import Images, Points
from aigc_jax.reports import pictures
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.paths import Paths


@pytest.mark.parametrize('is_first', [True, False])
def test_every_process_computes_a_picture_and_the_first_one_draws_it(tmp_path, monkeypatch, is_first):
    told = []

    def picture(name):
        def shown(look):
            told.append(f'{name} is computed')
            yield
            told.append(f'{name} is drawn over {look.samples.shape}, step {look.rows[0]["step"]}')

        return shown

    def nothing(look):
        return
        yield

    table = (picture('a'), (Samples, Images)), (nothing, ()), (picture('b'), (Codebook,)), (picture('c'), (Points,))
    monkeypatch.setattr(pictures, 'PICTURES', table)
    monkeypatch.setattr(processes, 'first', lambda: is_first)
    experiment = Experiment(config_lib.load('configs/vae.py:smoke', []))
    evaluator, state = Evaluator(experiment, Paths(tmp_path)), experiment.create_state()
    pictures.draw(evaluator, '00000007', state, 0, None)
    assert told == []
    pictures.draw(evaluator, '00000007', state, 0, [{'step': 7}])
    n = experiment.config.eval.num_shown
    assert told == ['a is computed'] + [f'a is drawn over {(n, 8, 8, 1)}, step 7'] * is_first
    assert (tmp_path / 'samples' / '00000007.npz').exists() == is_first


def test_a_class_folder_whose_name_is_no_utf8_is_trained_and_drawn(command_line, tmp_path):
    root = os.fsencode(tmp_path / 'images')
    for k, name in enumerate((b'h\xfcnd', 'katze ñ'.encode())):
        os.makedirs(os.path.join(root, name))
        for i in range(20):
            x = np.full((8, 8), 20 * k + 10 * i, np.uint8)
            Image.fromarray(x).save(os.path.join(root, name, b'%d.png' % i))
    run = tmp_path / 'run'
    fields = dict(data__name=f'images:{tmp_path / "images"}', model__conditional='True', batch_size=8)
    command_line.run('gan:smoke', run, **fields)
    assert (run / 'plots' / 'samples.png').exists() and (run / 'evaluation.json').exists()
