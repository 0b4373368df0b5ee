"""The notebook scripts/tour.ipynb runs as it stands, and shows pictures."""

import json

# What Jupyter does, without its kernel: the code cells one after the other, in one namespace.
EXECUTE = """
import json, sys
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt

names = {'__name__': '__main__'}
for number, cell in enumerate(json.load(open(sys.argv[1]))['cells']):
    if cell['cell_type'] == 'code':
        exec(compile(''.join(cell['source']), f'cell {number}', 'exec'), names)
for number in plt.get_fignums():
    axes = plt.figure(number).axes[0]
    shown = axes.images[0].get_array() if axes.images else axes.lines[0].get_ydata()
    print('figure', axes.get_title(), len(shown), float(max(map(max, shown)) if axes.images else shown[0] - shown[-1]))
"""


def test_the_notebook_runs_in_a_fresh_process(command_line, tmp_path):
    path = command_line.root / 'scripts' / 'tour.ipynb'
    cells = json.loads(path.read_text())['cells']
    assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in cells if 'outputs' in cell)
    done = command_line.python('-c', EXECUTE, path, env={'TMPDIR': str(tmp_path)})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    figures = [line.split() for line in lines if line.startswith('figure')]
    assert len(figures) == 4
    assert float(figures[0][-1]) > 5  # nats by which the loss has fallen
    assert all(float(figure[-1]) > 0.5 for figure in figures[1:])  # something white is seen
    value = lambda name: next(float(line.split()[-1]) for line in lines if line.startswith(name))
    assert value('test images') > value('pixels in disorder') + 5
