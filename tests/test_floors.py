"""The structure: a file imports only from lower floors, and stays small enough to read."""

import ast
import configparser
import importlib.metadata
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'aigc_jax'
# What lies in the package itself, the doors, is the top floor.
FLOORS = {
    'core': 0, 'nn': 1, 'data': 1, 'metrics': 1, 'sandbox': 1, 'decoding': 2, 'plots': 2, 'tasks': 3, 'adapt': 3,
    'runs': 4, 'reports': 5, 'training': 6, 'studies': 7,
}  # fmt: skip
DOORS = 8


def floor(module: str) -> int:
    return FLOORS.get(module.split('.')[1], DOORS) if '.' in module else DOORS


def all_imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from aigc_jax import tasks` imports aigc_jax.tasks
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def imports(path: pathlib.Path) -> set[str]:
    return {name for name in all_imports(path) if name.split('.')[0] == 'aigc_jax'}


def files() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob('*.py'))


def test_imports_go_down_the_floors():
    wrong = []
    for path in files():
        own = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        for name in imports(path):
            same_folder = name.split('.')[1:2] == own.split('.')[1:2]
            if floor(name) > floor(own) or (floor(name) == floor(own) < DOORS and not same_folder):
                wrong.append(f'{own} (floor {floor(own)}) imports {name} (floor {floor(name)})')
    assert not wrong, '\n'.join(wrong)


def test_the_test_sees_a_wrong_import(tmp_path):
    path = tmp_path / 'x.py'
    path.write_text('from aigc_jax import tasks\nimport numpy\n')
    assert imports(path) == {'aigc_jax.tasks'} and floor('aigc_jax.tasks') == 3


def test_what_is_imported_is_declared():
    """In setup.cfg, even where another requirement brings it."""
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / 'setup.cfg')
    canonical = lambda name: re.sub('[-_.]+', '-', name).lower()
    lines = parsed['options']['install_requires'] + parsed['options.extras_require']['onnx']
    declared = {canonical(re.match('[A-Za-z0-9_.-]+', line)[0]) for line in lines.split('\n') if line}
    known = importlib.metadata.packages_distributions()
    own = {'aigc_jax', *(path.stem for path in (PACKAGE / 'sandbox').glob('*.py')), *sys.stdlib_module_names}
    for path in files():
        for name in {name.split('.')[0] for name in all_imports(path)} - own:
            assert declared & {canonical(package) for package in known[name]}, f'{path} imports {name}'


def test_configs_import_only_ml_collections():
    for path in (ROOT / 'configs').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {'ml_collections'}, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module in ('ml_collections', 'configs.sweeps'), path


def test_no_file_is_over_400_lines():
    long = {str(path): n for path in files() if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_the_top_level_holds_what_it_should():
    allowed = {'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'aigc_jax', 'configs', 'scripts', 'tests'}
    made = {'build', 'dist', 'runs'}
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith('.') and not p.name.endswith('.egg-info')}
    assert found - made <= allowed


def test_ruff_finds_nothing():
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', '-q', '.'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
