"""What a study registers before it runs, and the record of it: a study whose claims were changed after results were
seen says so in its report."""

import dataclasses
import datetime
import hashlib
import json
import pathlib

from aigc_jax.core import records
from aigc_jax.core.errors import UserError, cause
from aigc_jax.core.files import atomic_write
from aigc_jax.studies.claims import Study

RECORD = 'study.json'


def digest(study: Study, argument: str = '') -> str:
    """sha256 (hex) of all that the study claims: each claim with its metric, config, fields, seeds and what it is
    compared with. argument: that study() was given, such as where the data lie here, which is no part of it.

    Raises TypeError where a value is no plain data.
    """
    fields = dataclasses.asdict(study)
    for claim in fields['claims']:
        if not claim['start']:  # as studies were registered before claims had these fields
            del claim['start']
        if claim['into'] == 'init.run':
            del claim['into']
        if claim['expected'] and claim['expected'].get('over') == '':
            del claim['expected']['over'], claim['expected']['share']
    text = json.dumps(fields, sort_keys=True)
    if argument:
        text = text.replace(json.dumps(argument)[1:-1], '{argument}')
    return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Record:
    """study.json. registrations: (time, digest) of each change, the first when the first run began. alpha: of --until,
    which all later reports of the folder spend; None: each claim is looked at once.
    late: there were runs before the first registration, such as where the record was removed."""

    registrations: tuple[tuple[str, str], ...] = ()
    alpha: float | None = None
    late: bool = False


def read(workdir: pathlib.Path) -> Record:
    """Raises UserError."""
    path = workdir / RECORD
    try:
        found = records.read(path)
        registrations = tuple((str(time), str(digest)) for time, digest in found['registrations'])
        alpha = found['alpha']
        if alpha is not None and not 0 < alpha < 1:
            raise ValueError(f'alpha {alpha}')
        return Record(registrations, alpha, bool(found.get('late', False)))
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}: cannot be read as the record of a study: {cause(error)}; remove it, and the study registers anew'
        ) from None


def register(workdir: pathlib.Path, study_digest: str, alpha: float | None) -> Record:
    """Adds a registration where the study is another than the last time. alpha: of this command, None: as before.

    Raises UserError where runs were looked at with another alpha.
    """
    before = read(workdir)
    if alpha is not None and before.alpha not in (None, alpha):
        alpha = f'{before.alpha:g}'
        raise UserError(f'--until: {workdir} spends alpha = {alpha}; give p<{alpha}, or another folder')
    found = before.registrations
    late = before.late or (not found and any(workdir.glob('*/seed-*/config.json')))
    if not found or found[-1][1] != study_digest:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        found += ((now, study_digest),)
    record = Record(found, alpha if alpha is not None else before.alpha, late)
    if record != before:
        atomic_write(workdir / RECORD, json.dumps(dataclasses.asdict(record), indent=1) + '\n')
    return record


def note(record: Record, study_digest: str) -> str:
    """A sentence about when the study was registered, and whether it was changed since."""
    if not record.registrations:
        return ''
    first, last = record.registrations[0], record.registrations[-1]
    words = f'registered {first[0]} {"after" if record.late else "before"} its first run'
    if changes := len(record.registrations) - 1:
        words += f', and changed {"once" if changes == 1 else f"{changes} times"} since, last {last[0]}'
    if last[1] != study_digest:
        words += '; the file has been changed since that'
    return words
