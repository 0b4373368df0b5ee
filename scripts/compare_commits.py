"""Whether two commits give the same runs: every variant of every config, with smoke on top.

    python scripts/compare_commits.py [BEFORE] [AFTER] [--only=gan,vae:conv] [--out=DIR] [--jobs=1] [--timeout=600]

BEFORE is HEAD where it is left out, and AFTER is the working tree, with the files that git does not track yet. Each
commit trains its own configs through the command line on the CPU, one process a variant. metrics.jsonl must be equal
to the byte. Each field of BEFORE's evaluation.json must have the same value in AFTER's, which may have more fields.
One line is printed for each variant: equal, differs (the first difference, BEFORE → AFTER), failed (the last line of
stderr), new (AFTER alone has it), gone (BEFORE alone has it). The exit code is 0 where all variants are equal or new,
and 1 otherwise.

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
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = ('aigc_jax', 'configs')
# {kind of data.name, with a place behind its colon: what is trained on instead}
STAND_INS = {
    'amat': 'digits', 'idx': 'digits', 'npz': 'digits', 'tfds': 'digits', 'text': 'pydoc', 'code': 'python-stdlib'
}  # fmt: skip
# Variables that this script sets, and that change no result.
_OURS = ('JAX_PLATFORMS', 'JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
_LIST = """
import importlib, json, pathlib, sys
sys.path.insert(0, 'configs')
found = {}
for path in sorted(pathlib.Path('configs').glob('*.py')):
    module = importlib.import_module(path.stem)
    for variant in getattr(module, 'VARIANTS', ()):
        argument = 'smoke' if variant == 'smoke' else f'{variant},smoke'
        found[f'{path.stem}:{variant}'] = argument, module.get_config(argument).data.name
print(json.dumps(found))
"""


class Failed(Exception):
    """A process did not end well; the message is one line."""


def git(*arguments: str, index: str | None = None) -> bytes:
    env = os.environ | ({'GIT_INDEX_FILE': index} if index else {})
    return subprocess.run(['git', *arguments], cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE).stdout


@contextlib.contextmanager
def made(folder: pathlib.Path):
    """An empty folder that becomes `folder` once it is whole, unless another process has made that meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = pathlib.Path(tempfile.mkdtemp(prefix='.', dir=folder.parent))
    try:
        yield staged
        with contextlib.suppress(OSError):
            staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def source(commit: str | None, out: pathlib.Path) -> pathlib.Path:
    """The folder in `out` with the code of a commit; None: of the working tree as it is now."""
    if commit is None:
        with tempfile.TemporaryDirectory() as folder:
            git('add', '--all', '--', *CODE, index=f'{folder}/index')
            commit = git('write-tree', index=f'{folder}/index').decode().strip()
    digests = git('rev-parse', '--verify', f'{commit}^{{tree}}') and git('rev-parse', *(f'{commit}:{c}' for c in CODE))
    folder = out / hashlib.sha256(digests).hexdigest()[:16] / 'source'
    if not folder.exists():
        with made(folder) as staged, tarfile.open(fileobj=io.BytesIO(git('archive', commit, *CODE))) as archive:
            archive.extractall(staged, filter='data')
    return folder


def python(code: pathlib.Path, *arguments: str, timeout: float | None = None) -> str:
    """stdout of Python, on the CPU, with a compilation cache that all processes share. Raises Failed."""
    cache = dict(zip(_OURS[1:], (str(code.parent.parent / 'xla'), '0'), strict=True))
    env = cache | os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(code)}
    command = [sys.executable, *arguments]
    try:
        ended = subprocess.run(command, cwd=code, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f'no end after {timeout:g} seconds (--timeout)') from None
    if ended.returncode:
        raise Failed((ended.stderr.strip() or f'exit code {ended.returncode}').splitlines()[-1])
    return ended.stdout


def variants(code: pathlib.Path) -> dict[str, list[str]]:
    """{'gan:dcgan': the arguments of its run but --workdir} of every config. Raises Failed."""
    found = {}
    for name, (argument, data) in json.loads(python(code, '-c', _LIST)).items():
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
        elif repr(a) != repr(b):
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
    codes = {}
    for side, commit in (('before', given.before), ('after', given.after)):
        try:
            codes[side] = source(commit, given.out.resolve())
        except subprocess.CalledProcessError:
            parser.error(f'{commit or "the working tree"}: no commit with the folders {" and ".join(CODE)}')
        print(f'{side}: {commit or "the working tree"}, {codes[side].parent}', flush=True)
    listed = {side: variants(code) for side, code in codes.items()}
    names = {name: (name, name.partition(':')[0]) for name in sorted(listed['before'] | listed['after'])}
    only = [asked for asked in given.only.split(',') if asked]
    if unknown := [asked for asked in only if not any(asked in name for name in names.values())]:
        parser.error(f'--only: {unknown[0]!r} is none of {", ".join(names)}')
    chosen = [name for name, both in names.items() if not only or set(only) & set(both)]
    counts = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        judged = pool.map(lambda name: judge(name, codes, listed, given.timeout), chosen)
        for name, (verdict, said) in zip(chosen, judged, strict=True):
            counts[verdict] += 1
            print(f'{name:<24} {verdict:<8} {said}'.rstrip(), flush=True)
    print(', '.join(f'{n} {verdict}' for verdict, n in counts.items()))
    return int(any(counts[verdict] for verdict in ('differs', 'failed', 'gone')))


if __name__ == '__main__':
    try:
        sys.exit(main())
    except Failed as error:  # the configs cannot be listed
        sys.exit(f'error: {error}')
