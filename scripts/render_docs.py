"""Renders the tables of the READMEs that come from the code, between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

    python scripts/render_docs.py            # writes them
    python scripts/render_docs.py --check    # exit code 1 where one is not what the code says

To add a table: a function that returns it, and a line in TABLES. The results of a study, in the folder configs/studies
as STUDY.results.json, stand in any document between `<!-- study:STUDY:begin -->` and `<!-- study:STUDY:end -->`, and
some of its rows between `<!-- study:STUDY:ROW,ROW:begin -->` and `<!-- study:STUDY:ROW,ROW:end -->`.
"""

import argparse
import functools
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
STUDY = re.compile(r'<!-- (study:([^\s:]+)(?::([^\s:]+))?):begin -->')
sys.path.insert(0, str(ROOT))  # what stands beside this file is documented, installed or not


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, each row on a line of its own."""
    lines = [head, ('---',) * len(head), *rows]
    return ''.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |\n' for line in lines)


def flags_table() -> str:
    """The flags of `python -m aigc_jax.main`, in the order in which they are defined."""
    from absl import flags

    import aigc_jax.main  # noqa: F401 (defines them)

    return _flags(flags.FLAGS)


def sweep_flags_table() -> str:
    """The same of `python -m aigc_jax.sweep`."""
    from aigc_jax import sweep

    return _flags(sweep.FLAGS)


def _flags(values) -> str:
    by_module = values.flags_by_module_dict()
    own = [flag for module, defined in by_module.items() if module.startswith('aigc_jax') for flag in defined]
    default = lambda flag: '' if flag.default in (None, '') else f'`{flag.default}`'
    return table(('flag', 'default', 'meaning'), [(f'`--{flag.name}`', default(flag), flag.help) for flag in own])


def fields_tables() -> str:
    """The fields of all groups of a config, a table each."""
    from aigc_jax.runs import fields

    return fields.markdown()


TABLES = {  # (file, name between the marks) -> what renders it
    ('aigc_jax/runs/README.md', 'flags'): flags_table,
    ('aigc_jax/studies/README.md', 'flags'): sweep_flags_table,
    ('configs/fields.md', 'fields'): fields_tables,
}


def study_table(study: str, rows: list[str] | None) -> str:
    """The results of a study that are in the repository, of these rows or all. Raises ValueError."""
    from aigc_jax.core.errors import UserError
    from aigc_jax.studies import findings, report_text

    try:
        return report_text.table(findings.read(ROOT / 'configs' / 'studies' / f'{study}.results.json'), rows)
    except UserError as error:
        raise ValueError(str(error)) from None


def tables() -> dict:
    """TABLES, and the studies that the documents name."""
    found = dict(TABLES)
    for pattern in ('*.md', 'aigc_jax/**/*.md', 'configs/**/*.md'):
        for path in sorted(ROOT.glob(pattern)):
            for mark, study, rows in STUDY.findall(path.read_text(encoding='utf-8')):
                render = functools.partial(study_table, study, rows.split(',') if rows else None)
                found[path.relative_to(ROOT).as_posix(), mark] = render
    return found


def rendered(file: str, text: str) -> str:
    """The text of a README with its tables as the code has them. Raises ValueError where a mark is missing."""
    for (of, name), render in tables().items():
        if of == file:
            begin, end = f'<!-- {name}:begin -->\n', f'<!-- {name}:end -->'
            if text.count(begin) != 1 or text.count(end) != 1:
                raise ValueError(f'{file}: the marks {begin.strip()} and {end} must stand there once')
            before, after = text.partition(begin)[0], text.partition(end)[2]
            text = before + begin + render() + end + after
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; fail where a table is not as rendered')
    check = parser.parse_args().check
    stale = []
    for file in sorted({file for file, _ in tables()}):
        text = (ROOT / file).read_text(encoding='utf-8')
        if (new := rendered(file, text)) != text:
            stale.append(file)
            if not check:
                (ROOT / file).write_text(new, encoding='utf-8')
    for file in stale:
        print(f'{file}: ' + ('is not as rendered; run python scripts/render_docs.py' if check else 'written'))
    return 1 if check and stale else 0


if __name__ == '__main__':
    sys.exit(main())
