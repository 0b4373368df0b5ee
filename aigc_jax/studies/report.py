"""The files of a study's report."""

from aigc_jax.core.errors import RunError, UserError
from aigc_jax.core.files import atomic_write
from aigc_jax.metrics.names import named
from aigc_jax.studies import drift, report_latex, report_page, report_text
from aigc_jax.studies.arms import Arm, RunData
from aigc_jax.studies.gathering import Gathered
from aigc_jax.studies.report_pictures import MOST_PANELS, Curves


def files(study: str) -> tuple[str, ...]:
    """Their names. The last one holds all of the report, and the others are rendered from it."""
    return 'report.md', 'report.html', 'report.tex', 'report.json', f'{study}.results.json'


def write(gathered: Gathered, command: str) -> str:
    """Writes them into the study's folder, and returns report.md as a terminal shows it. command: that made it."""
    curves, damaged = _curves(gathered)
    report = gathered.report((*drift.notes(gathered.trained), *damaged))
    text = report_text.markdown(report, command)
    page, latex = report_page.page(report, curves, command), report_latex.table(report)
    written = text, page, latex, report.rows_json(), report.to_json()
    for name, words in zip(files(report.study), written, strict=True):
        atomic_write(gathered.workdir / name, words)
    return report_text.markdown(report, command, escaped=False)


def _curves(gathered: Gathered) -> tuple[Curves, list[str]]:
    """(those of each claim's metric, where it was evaluated in training, as far as there is room for them; a line for
    each run whose curves are damaged)."""
    found: Curves = {}
    damaged: dict[str, str] = {}
    for finding in gathered.findings.values():
        if len(found) == MOST_PANELS:
            break
        runs = dict.fromkeys(seed.run for seed in finding.seeds.values())
        arm, names = Arm(finding.claim.name, []), {}
        for name in runs:
            try:
                run = RunData(gathered.workdir / name)
                names |= dict.fromkeys(name for row in run.rows if row['split'] == 'eval' for name in row)
                arm.runs.append(run)
            except (UserError, RunError) as error:
                damaged[name] = f'{name} has no curve: {error}'
        if name := named(finding.claim.metric, names):
            found[finding.claim.name] = {name: {'eval': arm.curves('eval', name)}}
    return found, [*damaged.values()]
