"""The files of a study's report."""

from aigc_jax.core.files import atomic_write
from aigc_jax.studies import drift, report_text
from aigc_jax.studies.gathering import Gathered

FILES = 'report.md', 'report.json'


def write(gathered: Gathered, command: str) -> str:
    """Writes them, and returns report.md. command: that made the report."""
    report = gathered.report(tuple(drift.notes(gathered.trained)))
    text = report_text.markdown(report, command)
    for name, words in {'report.md': text, 'report.json': report.to_json()}.items():
        atomic_write(gathered.workdir / name, words)
    return text
