"""Whether two commits give the same runs: every variant of every config, with smoke on top.

    python scripts/compare_commits.py [BEFORE] [AFTER] [--only=gan,vae:conv] [--out=DIR] [--jobs=1] [--timeout=600]

BEFORE is HEAD where it is left out, and AFTER is the working tree, with the files that git does not track yet. Each
commit trains its own configs through the command line on the CPU, one process a variant. metrics.jsonl must be equal
to the byte. Each field of BEFORE's evaluation.json must have the same value in AFTER's, which may have more fields.
The script prints one line a variant: equal, differs (the first difference, BEFORE → AFTER), failed (the last line of
stderr), new (AFTER alone has it), gone (BEFORE alone has it). It exits with 0 if all are equal or new, otherwise 1.

The runs stay in --out/CODE/VARIANT, where CODE is a digest of the folders aigc_jax and configs. A finished run is used
again where the command, the Python packages, the host, and the variables JAX_* and XLA_* are the same. A variant whose
data are the user's own files trains on embedded data of the same kind (STAND_INS).
"""

import argparse
import collections
import concurrent.futures
import contextlib
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = ('aigc_jax', 'configs')
# {kind of data.name, with a place behind its colon: what is trained on instead}
STAND_INS = {'amat': 'digits', 'idx': 'digits', 'npz': 'digits', 'tfds': 'digits', 'text': 'pydoc'}
# What smoke sets does not go with these; they are laid over smoke.
OVER_SMOKE = ('vq:fsq',)
_OURS = ('JAX_PLATFORMS', 'JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
# Run with the folder of a commit: {'gan:dcgan': ['dcgan,smoke', data.name]}.
_LIST = """
import importlib, inspect, json, pathlib, sys
sys.path.insert(0, 'configs')
found = {}
for path in sorted(pathlib.Path('configs').glob('*.py')):
    module = importlib.import_module(path.stem)
    for variant in getattr(module, 'VARIANTS', ()):
        name = f'{path.stem}:{variant}'
        argument = ','.join(dict.fromkeys(['smoke', variant] if name in sys.argv else [variant, 'smoke']))
        if inspect.signature(module.get_config).parameters:
            config = module.get_config(argument)
        else:  # VARIANTS are laid over get_config() by who loads it
            config = module.get_config()
            for one in argument.split(','):
                config.data.name = module.VARIANTS[one].get('data.name', config.data.name)
        found[name] = argument, config.data.name
print(json.dumps(found))
"""


class Failed(Exception):
    """A process did not end well; the message is one line."""


def execute(*command: str, folder: pathlib.Path = ROOT, env=None, timeout: float | None = None) -> bytes:
    """stdout. Raises Failed."""
    try:
        ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f'no end after {timeout:g} seconds (--timeout)') from None
    if ended.returncode:
        said = ended.stderr.decode(errors='replace').strip() or f'exit code {ended.returncode}'
        raise Failed(said.splitlines()[-1])
    return ended.stdout


@contextlib.contextmanager
def made(folder: pathlib.Path):
    """An empty folder that becomes `folder` once it is whole, unless another process has made that meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.', dir=folder.parent, ignore_cleanup_errors=True) as staged:
        yield pathlib.Path(staged)
        with contextlib.suppress(OSError):
            pathlib.Path(staged).rename(folder)


def source(commit: str | None, out: pathlib.Path) -> pathlib.Path:
    """The folder in `out` with the code of a commit; None: of the working tree as it is now. Raises Failed."""
    if commit is None:
        with tempfile.TemporaryDirectory() as folder:
            index = os.environ | {'GIT_INDEX_FILE': f'{folder}/index'}  # the user's own stays as it is
            execute('git', 'add', '--all', '--', *CODE, env=index)
            commit = execute('git', 'write-tree', env=index).decode().strip()
    archived = execute('git', 'archive', commit, *CODE)
    digests = execute('git', 'rev-parse', *(f'{commit}:{folder}' for folder in CODE))
    folder = out / hashlib.sha256(digests).hexdigest()[:16] / 'source'
    if not folder.exists():
        with made(folder) as staged, tarfile.open(fileobj=io.BytesIO(archived)) as archive:
            archive.extractall(staged, filter='data')
    return folder


def python(code: pathlib.Path, *arguments: str, timeout: float | None = None) -> bytes:
    """stdout of Python on the CPU. All processes share a compilation cache. Raises Failed."""
    cache = dict(zip(_OURS[1:], (f'{code.parent.parent}/xla', '0'), strict=True))
    env = cache | os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(code)}
    return execute(sys.executable, *arguments, folder=code, env=env, timeout=timeout)


def variants(code: pathlib.Path) -> dict[str, list[str]]:
    """{'gan:dcgan': the arguments of its run but --workdir} of every config. Raises Failed."""
    found = {}
    for name, (argument, data) in json.loads(python(code, '-c', _LIST, *OVER_SMOKE)).items():
        found[name] = [f'--config=configs/{name.partition(":")[0]}.py:{argument}']
        stacked = 'stacked:' * data.startswith('stacked:')
        kind, colon, _ = data.removeprefix(stacked).partition(':')
        if colon and kind in STAND_INS:
            found[name].append(f'--config.data.name={stacked}{STAND_INS[kind]}')
    return found


def run(code: pathlib.Path, name: str, arguments: list[str], timeout: float) -> pathlib.Path:
    """The folder of the finished run, which may be an earlier one. Raises Failed."""
    packages = sorted({f'{found.name} {found.version}' for found in importlib.metadata.distributions()})
    settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith(('JAX_', 'XLA_')) and k not in _OURS}
    host = [platform.node(), platform.machine(), os.cpu_count(), sys.version]
    conditions = json.dumps([arguments, settings, host, packages], indent=1)
    folder = code.parent / f'{name.replace(":", ".")}-{hashlib.sha256(conditions.encode()).hexdigest()[:8]}'
    if not folder.exists():
        with made(folder) as staged:
            python(code, '-m', 'aigc_jax.main', *arguments, f'--workdir={staged}', timeout=timeout)
            (staged / 'conditions.json').write_text(conditions)
    return folder


def difference(before: pathlib.Path, after: pathlib.Path) -> str:
    """The first one between the results of two runs; '' where there is none."""
    lines = [(folder / 'metrics.jsonl').read_bytes().splitlines(keepends=True) for folder in (before, after)]
    for number, (a, b) in enumerate(itertools.zip_longest(*lines, fillvalue=b'{}'), 1):
        if a != b:
            a, b = json.loads(a), json.loads(b)
            found = in_fields(a, b, added=True) or 'the same values, written in another way'
            return f'metrics.jsonl, line {number}, step {(a or b)["step"]}, {(a or b)["split"]}: {found}'
    found = in_fields(*(json.loads((folder / 'evaluation.json').read_text()) for folder in (before, after)))
    return found and f'evaluation.json: {found}'


def in_fields(before: dict, after: dict, added: bool = False) -> str:
    """The first field of `before`, or where `added` of either, whose values differ; '' where there is none."""
    for name in before | after if added else before:
        a, b = (fields.get(name, 'absent') for fields in (before, after))
        if isinstance(a, dict) and isinstance(b, dict):
            if found := in_fields(a, b, added):
                return f'{name}.{found}'
        elif repr(a) != repr(b):  # 1 is not 1.0
            return f'{name}: {a} → {b}'
    return ''


def judge(name: str, codes: dict[str, pathlib.Path], listed: dict[str, dict], timeout: float) -> tuple[str, str]:
    """(verdict, what is said of it) of one variant."""
    if missing := [side for side in codes if name not in listed[side]]:
        return {'before': 'new', 'after': 'gone'}[missing[0]], f'not in {missing[0]}'
    folders = []
    for side, code in codes.items():
        try:
            folders.append(run(code, name, listed[side][name], timeout))
        except Failed as error:
            return 'failed', f'{side}: {error}'
    found = difference(*folders)
    return ('differs', found) if found else ('equal', '')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('before', nargs='?', default='HEAD', help='a commit')
    parser.add_argument('after', nargs='?', help='a commit; the working tree where it is left out')
    parser.add_argument('--only', default='', help='configs and their variants: gan,vae:conv')
    parser.add_argument('--out', type=pathlib.Path, default=ROOT / 'runs' / 'compare', help='where the runs are kept')
    parser.add_argument('--jobs', type=int, default=1, help='variants at a time')
    parser.add_argument('--timeout', type=float, default=600, help='seconds of one run')
    given = parser.parse_args()
    codes, listed = {}, {}
    for side, commit in (('before', given.before), ('after', given.after)):
        try:
            codes[side] = source(commit, given.out.resolve())
            listed[side] = variants(codes[side])
        except Failed as error:
            parser.error(f'{commit or "the working tree"}: {error}')
        print(f'{side}: {commit or "the working tree"}, {codes[side].parent}', flush=True)
    names, only = sorted(listed['before'] | listed['after']), set(filter(None, given.only.split(',')))
    if unknown := only - {part for name in names for part in (name, name.partition(':')[0])}:
        parser.error(f'--only: {min(unknown)!r} is none of {", ".join(names)}')
    chosen = [name for name in names if not only or only & {name, name.partition(':')[0]}]
    counts = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        for name, verdict, said in pool.map(lambda n: (n, *judge(n, codes, listed, given.timeout)), chosen):
            counts[verdict] += 1
            print(f'{name:<24} {verdict:<8} {said}'.rstrip(), flush=True)
    print(', '.join(f'{n} {verdict}' for verdict, n in counts.items()))
    return int(any(counts[verdict] for verdict in ('differs', 'failed', 'gone')))


if __name__ == '__main__':
    sys.exit(main())
