"""Whether a run can be run again here with the same bits, by what its manifest says it was made with."""

import copy
import pathlib

from ml_collections import ConfigDict

from aigc_jax.core import parallel
from aigc_jax.core.errors import UserError
from aigc_jax.runs import initial, manifest, numerics, pretrained
from aigc_jax.runs.folder import Run


class Ground:
    """What a run from `from_step` on was made with, beside what there is here.

    config: to run it again with. reasons: why its bits cannot be expected here. doubts: what may explain a difference
    and need not make one, such as other code. notes: what else is to be known. kept: the steps of its checkpoints.
    Raises UserError where the manifest cannot be read, or where the layout of the devices does not fit those here.
    """

    def __init__(self, run: Run, config: ConfigDict, from_step: int, kept: list[int]):
        self.config = copy.deepcopy(config)
        self._from_step, self._kept = from_step, kept
        self.reasons: tuple[str, ...] = ()
        self.doubts: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        if not (found := run.manifest):
            self.reasons = (f'{run.folder}: there is no manifest.json, so what the run was made with is not known',)
            return
        plan = parallel.make_plan(
            config.parallel, config.num_seeds, config.replicas, config.batch_size, config.micro_batches
        )
        here = manifest.ground(config, plan.mesh)
        spans = [(begin, end, made, start) for begin, end, made, start in _spans(found) if end > from_step]
        for _, end, made, _ in spans:
            self._compare_numerics(made, here, end)
        if self.reasons:
            return
        if spans[0][0] > from_step:
            self._doubt(f'the manifest does not say what the steps up to {spans[0][0]} were made with')
        self._take_start(spans[0][3])
        self._compare_own_files(found, here)
        for _, end, made, start in spans:
            self._compare_software(made, here)
            self._compare_length(start, end)

    def _compare_numerics(self, made: dict, here: dict, end: float) -> None:
        """Of the steps up to `end`."""
        differing, alone = numerics.differing(made, here)
        if differing:
            self.reasons += (f'another numerics key: {"; ".join(differing)}{self._later(end)}',)
        elif alone:
            self._note(f'the manifest and this version of aigc_jax do not both record {", ".join(alone)}')

    def _later(self, end: float) -> str:
        """What to do about the steps up to `end`, which cannot be run again."""
        later = [step for step in self._kept if step >= end]
        if end == float('inf'):
            return ''
        return f' (up to step {end}' + (f'; --from_step={later[0]} begins behind it)' if later else ')')

    def _take_start(self, start: dict) -> None:
        """The checkpoints that init.run and prune.run gave the run. That of distill.run is compared as it is read."""
        gone = lambda group, run: f'{group}.run: {run}, which the run began with, is no longer there; bring it back'
        is_there = lambda run: pathlib.Path(run).expanduser().is_dir()
        if (teacher := self.config.distill.run) and not is_there(teacher):
            self.reasons += (gone('distill', teacher),)
        digests = {'init': initial.digest, 'prune': lambda config, step: initial.digest_of(config.prune.run, step)}
        for group, digest_of in digests.items():
            run = self.config[group].run
            if self._from_step or not run:
                continue
            if start.get('step') or f'{group}_step' not in start:
                self._note(f'the manifest does not say which checkpoint of {group}.run the run began with')
                continue
            step = start[f'{group}_step']
            if not is_there(run):
                self.reasons += (gone(group, run),)
                continue
            if group == 'prune' or not pretrained.is_one(self.config):  # one of Hugging Face has no steps
                self.config[group].step = str(step)
            try:
                digest, said = digest_of(self.config, step), initial.said(run)
            except UserError as error:
                self.reasons += (f'{group}.run: {error}',)
                continue
            if digest != start.get(f'{group}_sha256', digest):
                self.reasons += (
                    f'{group}.run: the checkpoint of step {step} in {run} is not the one that the run began with; '
                    'bring that one back',
                )
            elif text := initial.changed(f'{group}.run', run, start.get(f'{group}_config', {}), said):
                self.reasons += (text,)

    def _compare_own_files(self, found: dict, here: dict) -> None:
        before, now = found.get('own_task'), here.get('own_task')
        if before and now and before != now:
            self.reasons += (
                f'task.name: {self.config.task.name} is no longer the file that the run was made with (sha256 '
                f'{_short(before)} there, {_short(now)} here); bring that file back',
            )

    def _compare_software(self, made: dict, here: dict) -> None:
        if (before := made.get('source')) and before != here['source']:
            there, now = (f'{_short(of["source"])} of commit {str(of.get("commit"))[:8]}' for of in (made, here))
            self._doubt(f'the code of aigc_jax is another: sha256 {there} there, {now} here')
        packages = made.get('packages') if isinstance(made.get('packages'), dict) else {}
        others = {**packages, 'Python': made.get('python')}
        for name, now in {**here['packages'], 'Python': here['python']}.items():
            if name in others and others[name] != now and name not in ('aigc_jax', *numerics.PART['packages']):
                self._doubt(f'{name} {others[name]} there, {now} here')

    def _compare_length(self, start: dict, end: float) -> None:
        before, now = start.get('total_steps'), self.config.total_steps
        if before not in (None, now):
            self._doubt(f'total_steps was {before}, {now} afterwards: schedules were others' + self._later(end))

    def _doubt(self, text: str) -> None:
        self.doubts += (text,) if text not in self.doubts else ()

    def _note(self, text: str) -> None:
        self.notes += (text,) if text not in self.notes else ()


def _spans(found: dict) -> list[tuple[int, float, dict, dict]]:
    """(first step, last step, what the steps between were made with, the start), oldest first, of a manifest."""
    starts, made, end, spans = found.get('starts', []) or [{}], dict(found), float('inf'), []
    for start in reversed(starts):
        made = {**made, **(start['made_with'] if isinstance(start.get('made_with'), dict) else {})}
        begin = start['step'] if type(start.get('step')) is int else 0
        if begin < end:  # else a later start went on from before it
            spans.insert(0, (begin, end, made, start))
            end = begin
    return spans


def _short(digest) -> str:
    return f'{str(digest)[:8]}…'
