"""Pictures of images whose classes have names of any bytes."""

import os

import numpy as np
from PIL import Image


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
