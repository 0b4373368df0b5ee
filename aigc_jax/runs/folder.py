"""A run's folder: what lies in it, who trains in it, and the trained model that it holds."""

import contextlib
import fcntl
import os
import pathlib
import threading
from collections.abc import Callable, Collection, Iterator

import jax
from ml_collections import ConfigDict

from aigc_jax import data, tasks
from aigc_jax.core import parallel, processes, records, user_code
from aigc_jax.core.errors import UserError, unreadable
from aigc_jax.core.files import disk_errors, open_append
from aigc_jax.core.notes import note
from aigc_jax.core.types import TrainState
from aigc_jax.data import Tokenizer, tokenizers
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import manifest
from aigc_jax.runs.checkpoint import Checkpoints
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.logs import NullWriter, Writer, read_rows
from aigc_jax.runs.paths import Paths

_locked: set[tuple[int, int]] = set()  # (device, inode) of the folders that threads of this process train in
_locking = threading.Lock()


class Run:
    """The run in `folder`, which may be still to be made. Nothing is read or written before it is asked for.

    Every property reads its file anew. All raise UserError where a file is damaged.
    """

    draws = True  # whether pictures are drawn in it

    def __init__(self, folder):
        if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
            raise UserError(f'workdir: {folder!r} names no folder')
        self.folder = pathlib.Path(folder).expanduser()
        self.paths = Paths(self.folder)

    @property
    def config(self) -> ConfigDict:
        """The resolved config. Raises UserError where there is no run."""
        return config_lib.from_json(self.paths.config)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None where the run has none."""
        path = self.paths.tokenizer
        try:
            return tokenizers.from_json(records.read(path)) if path.exists() else None
        except OSError as error:
            raise UserError(f'{path}: {unreadable(error)}') from None
        except ValueError as error:
            raise UserError(f'{path}: cannot be read as a tokenizer: {error}; bring it back from a copy') from None

    @property
    def manifest(self) -> dict:
        """What the run was made with; {} where there is no manifest."""
        return manifest.read(self.paths.manifest)

    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl, oldest first; a value that was not finite is None. Raises RunError."""
        return read_rows(self.paths.metrics) if self.paths.metrics.exists() else []

    def evaluations(self) -> dict[str, dict]:
        """{'evaluation', or the name in evaluations/: what the file holds (reports/evaluation.py)}."""
        files = [self.paths.evaluation, *sorted(self.paths.evaluations.glob('*.json'))]
        try:
            return {path.stem: records.read(path) for path in files if path.exists()}
        except (OSError, ValueError) as error:
            raise UserError(f'{self.folder}: an evaluation cannot be read: {error}; remove the file') from None

    def checkpoints(self, config: ConfigDict | None = None, read_only: bool = True) -> Checkpoints:
        """config: says which are kept; None: that of the run. To be closed."""
        config = config or self.config
        return Checkpoints(
            self.paths.checkpoints, config.keep_checkpoints, config.eval.best_metric, config.eval.best_mode, read_only
        )

    def log(self, step: int) -> Writer | NullWriter:
        """Opens the logs to go on from `step`; every process but the first writes none. To be closed."""
        return Writer(self.folder, step) if processes.first() else NullWriter()

    def trusted_config(self, given: Collection[str] = ()) -> ConfigDict:
        """`config`. Raises UserError where it names a Python file that is not to be executed unseen (core.user_code).
        given: the fields that the user has named it by."""
        config = self.config
        for field, own_file in (('task.name', tasks.own_file), ('data.name', data.own_file)):
            group = config.get(field.partition('.')[0])
            name = group.get('name') if isinstance(group, ConfigDict) else None
            if field not in given and isinstance(name, str) and (found := own_file(name)):
                user_code.want_trusted(found, field, name)
        return config

    def open(self, step: str | int | None = None, overrides=()) -> tuple[Experiment, TrainState]:
        """step: a number, 'best', or None for the newest checkpoint.

        overrides: [('data.x', 'eval.x', 'parallel.x' or 'sample.x', text), …], and ('task.name', where the file of an
        own task lies now). A run whose parameters are in shards, by
        parallel.rules, is opened in shards over the devices that are here, any other on one; a parallel.x says where.
        Raises UserError.
        """
        overrides = list(overrides)
        config = self.trusted_config({name for name, _ in overrides})
        if isinstance(config.get('task'), ConfigDict) and str(config.task.get('name')).endswith('.py'):
            moved = [(name, path) for name, path in overrides if name == 'task.name' and path.endswith('.py')]
            config_lib.override(config, moved)
            overrides = [pair for pair in overrides if pair not in moved]
        config_lib.check(config)
        config_lib.override(config, overrides, only=config_lib.FREE)
        config_lib.check(config)
        config_lib.locate(config)
        devices = jax.devices()
        if not any(name.startswith('parallel.') for name, _ in overrides):
            devices = _laid_out_again(config, devices)
        with naming_new_place(config, overrides):
            experiment = Experiment(config, devices, self.tokenizer)
        self._check_classes(experiment)
        with contextlib.closing(self.checkpoints(config)) as checkpoints:
            if checkpoints.latest() is None:
                raise UserError(f'{self.folder}: there is no checkpoint yet; train it first')
            return experiment, checkpoints.restore(checkpoints.resolve(step), experiment.abstract_state)

    def _check_classes(self, experiment: Experiment) -> None:
        """Raises UserError where the model learned other classes than those of the data: its accuracy, or what it draws
        for a class, would be that of others."""
        dataset, config = experiment.dataset, experiment.config
        theirs = manifest.at(self.manifest, 'data.classes')
        if theirs is None or not dataset.num_classes or not config_lib.depends_on_classes(config):
            return
        if not manifest.are_classes(theirs, dataset.num_classes, dataset.class_names):
            names = ', '.join(dataset.class_names) or dataset.num_classes
            raise UserError(
                f'data.name: {config.data.name} has other classes ({names}) than those that {self.folder} was trained '
                'on, or in another order; give data with the same names of classes'
            )

    def check(self, config: ConfigDict, moved: Callable[[], Collection[str]] = tuple) -> bool:
        """True where a run of this very config is there. Raises UserError where another is, or no run may be made.

        moved() -> the fields that name another place of the same (runs/moved.py).
        """
        for place in (self.folder, *self.folder.parents):
            if place.is_symlink() and not place.exists():
                raise UserError(
                    f'workdir: {place} is a link to {place.readlink()}, which is not there; '
                    'make that folder, or name another'
                )
            if place.exists() and not place.is_dir():
                raise UserError(f'workdir: {place} is a file')
        self.paths.check()
        if not self.paths.config.exists():
            if self.paths.checkpoints.exists():
                raise UserError(f'workdir: {self.folder} holds checkpoints but no config.json; name another folder')
            return False
        differing = config_lib.differing(config, self.config, moved())
        if differing:
            gone = config.init.run and not os.path.isdir(os.path.expanduser(config.init.run))
            mend = f' There is no folder {config.init.run}: where it lies elsewhere now, set init.run.' if gone else ''
            raise UserError(
                f'workdir: {self.folder} holds a run of another config; differing: {"; ".join(differing)}\n'
                'Name another folder, or give the config that is there (total_steps may grow, parallel.* may differ).'
                f'{mend}'
            )
        return True

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder, and keeps others from training in it: other processes, and other threads of this one.

        The system takes the lock away however a process ends. Raises UserError where another trains there.
        """
        with disk_errors(self.paths.lock):
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._held(open_append, fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keeps others from training in the folder while it is read, and writes nothing. Raises UserError."""
        opened = lambda path: open(path, 'rb', opener=records.regular_itself)
        with self._held(opened if self.paths.lock.exists() else lambda _: contextlib.nullcontext(), fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def _held(self, opened: Callable, kind: int) -> Iterator[None]:
        path = self.paths.lock
        busy = lambda who: UserError(
            f'workdir: another {who} trains in {self.folder}{" or verifies it" * (kind == fcntl.LOCK_EX)}; wait for '
            'it, stop it, or name another folder'
        )
        with disk_errors(path):
            found = os.stat(self.folder)
        place = found.st_dev, found.st_ino
        with _locking:  # the system's lock is one of the process, and closing the file in any thread gives it up
            if place in _locked:
                raise busy('thread')
            _locked.add(place)
        try:
            with disk_errors(path):
                file = opened(path)
            with file as held:
                try:
                    if held is not None:  # not flock, which anybody who may read the file could hold
                        fcntl.lockf(held, kind | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    raise busy('process') from None
                except OSError as error:  # some network file systems have no locks
                    note(f'{self.folder}: cannot be locked ({error}); let no other process train in it')
                yield
        finally:
            _locked.discard(place)

    def make(self, config: ConfigDict, held: contextlib.ExitStack, locked: bool) -> None:
        """Makes the folder of a new run, and keeps its lock in `held` unless it is `locked` already.

        Removes what it made if not all processes see it. Raises UserError.
        """
        made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        with processes.together('workdir'):
            if processes.first():
                if not locked:
                    held.enter_context(self.lock())
                if self.check(config):
                    raise UserError(
                        f'workdir: another process began {self.folder} meanwhile; the same command goes on from it'
                    )
        try:
            processes.check_shared(self.folder)
        except UserError:
            if processes.first() and made:
                self.paths.lock.unlink()
                for path in made:
                    path.rmdir()
            raise


@contextlib.contextmanager
def naming_new_place(config: ConfigDict, given: Collection[tuple[str, str]] = ()) -> Iterator[None]:
    """Where the data that the config of a run names are not there, an error also says how to name their new place.
    given: the fields that the user has named, with their values."""
    try:
        yield
    except UserError as error:
        new = '' if 'data.name' in dict(given) else data.new_place(config.data.name)
        if not new:
            raise
        raise UserError(f'{error}; where these data lie elsewhere now, add --config.data.name={new}') from None


def _laid_out_again(config: ConfigDict, devices: list) -> list:
    """The `devices` on which a finished run is evaluated. Sets config.parallel to fit them.

    One device is enough where the parameters are not in shards, except that several processes need one of each.
    """
    if not config.parallel.rules:
        config.parallel = ConfigDict({'mode': 'jit', 'mesh': parallel.WHOLE_MESH, 'rules': ()})
        return devices[:1] if jax.process_count() == 1 else devices
    with contextlib.suppress(UserError):
        parallel.make_plan(config.parallel, 1, config.replicas, config.batch_size, config.micro_batches, devices)
        return devices
    count = len(devices)  # over which a batch must divide
    while jax.process_count() == 1 and config.batch_size % (count * config.micro_batches):
        count -= 1
    config.parallel.mesh = ConfigDict({'data': 1, 'fsdp': count, 'tensor': 1})
    note(f'parallel.mesh: that of the run does not fit the {len(devices)} devices here; fsdp={count} instead')
    return devices[:count]
