"""What the READMEs, docstrings and comments refer to exists: files, headings, tests, flags, fields, variants."""

import ast
import copy
import functools
import importlib.util
import io
import pathlib
import re
import shlex
import subprocess
import tokenize

import pytest
from absl import flags

import aigc_jax.main  # noqa: F401 (defines the flags)
from aigc_jax import compare, sweep, verify
from aigc_jax.core import command
from aigc_jax.core.errors import UserError
from aigc_jax.data import declarations
from aigc_jax.runs import config as config_lib
from aigc_jax.studies import report_text, rows
from aigc_jax.studies.claims import Claim
from aigc_jax.studies.findings import Finding, Report

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
FOLDERS = ('aigc_jax', 'configs', 'scripts', 'tests')
# A folder of the repository, or a file in it; any Python file that stands behind the name of its folder.
PATH = re.compile(
    rf'(?<![\w./*-])(?:(?:{"|".join(FOLDERS)})/(?:[\w.-]+/)*(?:[\w-]+\.(?:py|md)\b|(?<=/)(?![\w.*-]))'
    r'|(?:\w+/)+\w+\.py\b)'
)
TEST = re.compile(r'([\w/]+\.py)::(\w+)')
HEADING = re.compile(r'"([^"\n]+)"\s+in\s+([\w/]+\.md)')
GROUPS = re.compile(r'(?:data|model|task|eval|sample|parallel)\.[a-z]\w*(?:\.\w+)*')
# What a command or a usage line shows in the place of a value of the user's.
STAND_INS = {
    'SEED': '0', 'N|best': 'best', '--from_step=N': '--from_step=20', 'PLAYER': 'model', '[:variant,…]': '',
    '[--config.FIELD=VALUE …]': '',
}  # fmt: skip


def tracked(*endings: str) -> list[pathlib.Path]:
    """The files of the repository, with those that git does not track yet."""
    listed = ('git', 'ls-files', '--cached', '--others', '--exclude-standard')
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if name.endswith(endings) and (ROOT / name).is_file()]


READMES = tracked('.md')
SOURCES = [path for path in tracked('.py') if path != pathlib.Path(__file__).resolve()]


def of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: pathlib.Path) -> str:
    """A README; of Python the comments, the docstrings, and each other text that names a README."""
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.md':
        return text
    parts = [t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            parts.append(ast.get_docstring(node) or '')
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and 'README.md' in node.value:
            parts.append(node.value)
    return '\n'.join(parts)


def slugs(path: pathlib.Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a README."""
    headings = re.findall(r'^#+ +(.+)$', path.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def spans(text: str) -> list[str]:
    return re.findall(r'`([^`\n]+)`', text)


def blocks(text: str) -> list[str]:
    """The lines of indented blocks, with their continuations joined."""
    return [line.strip() for line in text.replace('\\\n', ' ').split('\n') if line.startswith('    ')]


def find(name: str, beside: pathlib.Path) -> pathlib.Path | None:
    places = (ROOT, ROOT / 'aigc_jax', beside.parent)
    return next((place / name for place in places if (place / name).exists()), None)


def test_the_readme_is_read_in_five_minutes():
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').split()) <= 1200


@pytest.mark.parametrize('path', READMES, ids=of)
def test_links_lead_somewhere(path):
    wrong = []
    for target in re.findall(r'\]\(([^)\s]+)\)', path.read_text(encoding='utf-8')):
        if not target.startswith('https://'):
            name, _, anchor = target.partition('#')
            file = path.parent / name if name else path
            if not file.exists() or (anchor and anchor not in slugs(file)):
                wrong.append(target)
    assert not wrong


@pytest.mark.parametrize('path', READMES, ids=of)
def test_every_row_of_a_table_has_its_cells(path):
    wrong, cells = [], None
    for line in path.read_text(encoding='utf-8').split('\n'):
        if line.startswith('|'):
            n = len(re.findall(r'(?<!\\)\|', line))
            cells = cells or n
            if n != cells:
                wrong.append(line)
        else:
            cells = None
    assert not wrong


def lost(path: pathlib.Path, text: str) -> list[str]:
    """What `text`, which stands in `path`, refers to in vain."""
    wrong = [name for name in PATH.findall(text) if not find(name, path)]
    for name, test in TEST.findall(text):
        file = find(name, path)
        if not file or f'def {test}(' not in file.read_text(encoding='utf-8'):
            wrong.append(f'{name}::{test}')
    for heading, name in HEADING.findall(text):
        file = find(name, path)
        if not file or not re.search(rf'^#+ {re.escape(heading)}$', file.read_text(encoding='utf-8'), re.MULTILINE):
            wrong.append(f'"{heading}" in {name}')
    return wrong


def test_paths_tests_and_headings_that_are_referred_to_exist():
    wrong = [f'{of(path)}: {name}' for path in READMES + SOURCES for name in lost(path, prose(path))]
    assert not wrong, '\n'.join(wrong)


def test_the_test_sees_what_is_lost():
    wrong = [
        'aigc_jax/evals/',
        'evals/none.py',
        'tests/test_floors.py::test_none',
        '"Never" in aigc_jax/data/README.md',
    ]
    right = ['aigc_jax/data/', 'core/rng.py', 'tests/test_floors.py::floor', '"Text" in aigc_jax/data/README.md']
    assert lost(ROOT / 'README.md', ', '.join(wrong + right)) == wrong


def test_every_variant_stands_in_the_table():
    table = (ROOT / 'configs' / 'README.md').read_text(encoding='utf-8')
    for path in CONFIGS:
        row = next(line for line in table.split('\n') if line.startswith(f'| `{of(path)}` |'))
        assert sorted(spans(row)[1:]) == sorted(module(path).VARIANTS), path


@functools.cache
def module(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(f'documented_{path.stem}', path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@functools.cache
def fields() -> set[str]:
    """Every field of every config and variant, and every group; those of pairs, which a config gets by data.name."""
    found = {f'data.{name}' for name in declarations.EXAMPLES}
    for path in CONFIGS:
        for variant in ('', *module(path).VARIANTS):
            for name in config_lib.flatten(config_lib.load(f'{path}:{variant}' if variant else str(path), [])):
                parts = name.split('.')
                found |= {'.'.join(parts[: i + 1]) for i in range(len(parts))}
    return found


@functools.cache
def script_flags(path: pathlib.Path) -> set[str]:
    constants = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
    return {str(name).removeprefix('--') for name in constants}


def run_command(line: str, before: dict[str, str]) -> None:
    """Parses a command as the command line does. Raises what is wrong.

    before: {workdir: the config that an earlier command of the page began it with}, which this one adds to.
    """
    for text, stand_in in STAND_INS.items():
        line = line.replace(text, stand_in)
    words = shlex.split(re.sub(r'\[(--[^\]]*)\]', r'\1', line), comments=True)
    if words[:1] == ['python'] and words[1].startswith('scripts/'):
        known = script_flags(ROOT / words[1])
        rest, path, overrides = config_lib.split_arguments(words[1:])
        if path:
            config_lib.load(str(ROOT / path), overrides)
        for word in rest[1:]:
            name = word.removeprefix('--').partition('=')[0]
            assert not word.startswith('--') or name in known, f'{words[1]} has no flag {word}'
        return
    for door in (compare, verify):
        if (name := door.__name__) in words:
            return command.read(copy.deepcopy(door.FLAGS), words[words.index(name) :], '', '')
    if 'aigc_jax.sweep' in words:
        return run_sweep(words[words.index('aigc_jax.sweep') + 1 :])
    arguments = words[1:] if words[0] == 'aigc-jax' else words[words.index('aigc_jax.main') + 1 :]
    rest, path, overrides = config_lib.split_arguments(['aigc-jax', *arguments])
    values = copy.deepcopy(flags.FLAGS)
    assert len(values(rest)) == 1 and (values.workdir or values.mode == 'fields')
    if path and path != 'FILE.py':
        config_lib.load(str(ROOT / path), overrides)
        before[values.workdir] = path
    elif values.workdir in before:
        config_lib.load(str(ROOT / before[values.workdir]), overrides)
    else:
        assert not (unknown := {name for name, _ in overrides} - fields()), unknown


def run_sweep(arguments: list[str]) -> None:
    rest, path, overrides = config_lib.split_arguments(['sweep', *arguments])
    grid, rest = sweep.split_grid(rest)
    values = copy.deepcopy(sweep.FLAGS)
    values.unparse_flags()  # what a sweep in this process has set
    assert values(rest)[1:] in ([], ['status']) and values.workdir
    if path:
        rows.load(str(ROOT / path), overrides, grid, values.seeds)


COMMAND = re.compile(
    r'(?:python (?:-P )?-m aigc_jax\.(?:main|sweep)|aigc-jax) (?:status )?--'
    r'|python -m aigc_jax\.(?:compare|verify) |python scripts/'
)


def commands(text: str) -> list[str]:
    shown = [part for line in blocks(text) for part in line.split(' && ')] + spans(text)
    return [line for line in shown if COMMAND.match(line) and 'BEFORE' not in line]


@pytest.mark.parametrize('path', READMES + CONFIGS, ids=of)
def test_every_command_parses(path):
    text = prose(path)
    before: dict[str, str] = {}
    for line in commands(text):
        try:
            run_command(line, before)
        except (UserError, flags.Error, AssertionError) as error:
            raise AssertionError(f'{of(path)}: {line}: {error}') from None


def test_there_are_commands_to_parse():
    assert len(commands((ROOT / 'README.md').read_text(encoding='utf-8'))) == 9
    for line in (
        '--config=configs/gan.py:none --workdir=x',
        '--config=configs/gan.py --config.nothing=1 --workdir=x',
        '--mode=sample --workdir=x --nothing=1',
        '--mode=evaluate --workdir=x --config.eval.none=1',
    ):
        with pytest.raises((UserError, flags.Error, AssertionError)):
            run_command(f'python -m aigc_jax.main {line}', {})
    with pytest.raises(AssertionError):
        run_command('python scripts/bench.py --nothing', {})
    with pytest.raises(UserError, match='nothing'):
        run_command('python -m aigc_jax.compare runs --nothing', {})
    for line in ('status', '--config=configs/gan.py --workdir=x --sweep.task.none=1,2', 'status --workdir=x --none=1'):
        with pytest.raises((UserError, flags.Error, AssertionError)):
            run_command(f'python -m aigc_jax.sweep {line}', {})


@pytest.mark.parametrize('path', READMES, ids=of)
def test_every_flag_and_field_exists(path):
    """Those that stand alone: `--stop`, `--config.data.name=…`, `data.name`."""
    wrong = []
    text = prose(path)
    for shown in spans(text) + [line for line in blocks(text) if line.startswith('--')]:
        if shown.startswith('--'):
            names = re.findall(r'(?<!\S)--([\w.]+)', shown)
            programs = [*(ROOT / 'scripts').glob('*.py'), *(ROOT / 'aigc_jax').glob('*.py')]
            of_scripts = set().union(*map(script_flags, programs))
            known = fields() | of_scripts | {*flags.FLAGS, *sweep.FLAGS, 'FIELD', 'parallel.'}
            wrong += [f'--{name}' for name in names if name.removeprefix('config.') not in known]
        elif (match := GROUPS.match(shown)) and match[0] not in fields() and not shown.endswith(('.py', '()')):
            wrong.append(shown)
    assert not wrong


def renderer():
    return module(ROOT / 'scripts' / 'render_docs.py')


def test_tables_are_as_rendered():
    for file, name in renderer().tables():
        text = (ROOT / file).read_text(encoding='utf-8')
        assert renderer().rendered(file, text) == text, f'{file}: run python scripts/render_docs.py'
        begin = f'<!-- {name}:begin -->\n'
        assert renderer().rendered(file, text.replace(begin, begin + 'a line by hand\n')) == text
        with pytest.raises(ValueError, match=name):
            renderer().rendered(file, text.replace(begin, ''))


def test_tables_of_studies_are_those_of_their_results(tmp_path):
    """All rows, or those that a mark names; the document says where a study or a row is not there."""
    docs, studies = renderer(), tmp_path / 'configs' / 'studies'
    docs.ROOT, docs.TABLES = tmp_path, {}
    studies.mkdir(parents=True)
    claims = [Claim(name, name, 'own.py', 'model/nll', 'min') for name in ('a', 'b', 'c')]
    report = Report('own', 'Own', 'ab' * 32, tuple(Finding(claim, 3, 0.05) for claim in claims))
    (studies / 'own.results.json').write_text(report.to_json(), encoding='utf-8')
    mark = lambda name, inner='': f'<!-- {name}:begin -->\n{inner}<!-- {name}:end -->\n'
    page = tmp_path / 'README.md'
    page.write_text(mark('study:own') + 'between\n' + mark('study:own:c,a', 'a line by hand\n'), encoding='utf-8')
    want = mark('study:own', report_text.table(report)) + 'between\n'
    want += mark('study:own:c,a', report_text.table(report, ['c', 'a']))
    assert docs.rendered('README.md', page.read_text(encoding='utf-8')) == want
    for name, words in (('study:other', 'other.results.json: cannot be read'), ('study:own:d', "has no claim 'd'")):
        page.write_text(mark(name), encoding='utf-8')
        with pytest.raises(ValueError, match=words):
            docs.rendered('README.md', mark(name))
