"""The structure: a file imports only from lower floors, and stays small enough to read."""

import ast
import configparser
import graphlib
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
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


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
    extras = parsed['options.extras_require']
    lines = parsed['options']['install_requires']
    lines += ''.join(extras[name] for name in ('onnx', 'search', 'sentencepiece', 'text'))
    declared = {canonical(re.match('[A-Za-z0-9_.-]+', line)[0]) for line in lines.split('\n') if line}
    known = importlib.metadata.packages_distributions()
    own = {'aigc_jax', *(path.stem for path in (PACKAGE / 'sandbox').glob('*.py')), *sys.stdlib_module_names}
    for path in files():
        for name in {name.split('.')[0] for name in all_imports(path)} - own:
            assert declared & {canonical(package) for package in known.get(name, [name])}, f'{path} imports {name}'


def test_configs_import_only_ml_collections_and_the_combinators_of_sweeps():
    for path in (ROOT / 'configs').glob('*.py'):  # a study computes what its claims are compared with
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {'ml_collections'}, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module in ('ml_collections', 'aigc_jax.studies.space'), path


def test_no_file_is_over_400_lines():
    long = {str(path): n for path in files() if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_no_file_holds_the_marks_of_a_merge():
    marks = re.compile('^(<{7}|>{7}) ', re.MULTILINE)  # in a docstring they are no error of syntax
    folders = [ROOT / name for name in ('aigc_jax', 'configs', 'scripts', 'tests')]
    texts = [path for folder in folders for kind in ('py', 'md') for path in folder.rglob(f'*.{kind}')]
    assert texts and not [str(path) for path in texts if marks.search(path.read_text())]


def functions(path: pathlib.Path) -> list[ast.AST]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, FUNCTIONS)]


def test_no_function_is_over_80_lines():
    long = {
        f'{path.relative_to(ROOT)}: {node.name}': n
        for path in files()
        for node in functions(path)
        if (n := node.end_lineno - node.lineno + 1) > 80
    }
    assert not long


def test_at_most_seven_files_lie_in_the_package_itself():
    assert len(list(PACKAGE.glob('*.py'))) <= 7


def folder_imports() -> dict[str, set[str]]:
    """{folder of the package: the other folders that its files import from}."""
    found = {name: set() for name in FLOORS}
    for path in files():
        own = path.relative_to(PACKAGE).parts[0]
        if own in found:
            found[own] |= {name.split('.')[1] for name in imports(path) if '.' in name} & FLOORS.keys() - {own}
    return found


def test_folders_form_no_circle():
    list(graphlib.TopologicalSorter(folder_imports()).static_order())  # raises CycleError


def asked_of_a_config(source: str) -> list[str]:
    """The calls of .get with a default on a config, or on a group of it that is reached through one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'get':
            names = set(ast.unparse(node.func.value).split('.'))
            if len(node.args) + len(node.keywords) > 1 and names & {'config', 'cfg'}:
                found.append(ast.unparse(node))
    return found


def test_the_defaults_of_config_fields_stand_in_their_declarations():
    """The fields that older runs lack are given by runs/migrations.py alone."""
    asked, later = [], []
    for path in set(files()) - {PACKAGE / 'runs' / 'migrations.py'}:
        source = path.read_text()
        asked += [f'{path}: {call}' for call in asked_of_a_config(source)]
        later += [path] if 'LATER_FIELDS' in source else []
    assert not asked and not later


def test_a_default_that_is_asked_of_a_config_is_seen():
    asked = "config.get('x', 0)", "experiment.config.model.get('x', default=0)", "cfg.get('x', ())"
    assert asked_of_a_config('\n'.join(asked)) == list(asked)
    assert not asked_of_a_config("config.get('x')\nconfig.x\nstats.get('x', {})")


def test_the_kind_of_a_dataset_is_asked_in_data_alone():
    """What a set holds is its spec, a class."""
    asks = re.compile(r'\b(dataset|spec)\.kind\b')
    assert not [path for path in files() if PACKAGE / 'data' not in path.parents and asks.search(path.read_text())]


def test_the_top_level_holds_what_it_should():
    allowed = {'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'aigc_jax', 'configs', 'scripts', 'tests'}
    made = {'build', 'dist', 'runs'}
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith('.') and not p.name.endswith('.egg-info')}
    assert found - made <= allowed


def test_ruff_finds_nothing():
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', '-q', '.'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
