"""Whether a model that is taken up, of a run or a checkpoint of Hugging Face, knows the classes of the data."""

from aigc_jax.adapt import huggingface
from aigc_jax.core.notes import note
from aigc_jax.runs import manifest
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run


def other(folder: str, experiment: Experiment, what: str) -> str:
    """The words of a message where the model in `folder` knows other classes than those of the data; '' where it knows
    the same. Where nothing names its classes they are taken to be the same, and a note says so.

    what: the field that names the folder.
    """
    dataset = experiment.dataset
    if not dataset.num_classes:
        return ''
    theirs = _of(folder, what, dataset.num_classes)
    if theirs is None:
        ours = ', '.join(dataset.class_names) or f'the {dataset.num_classes} of this run'
        note(f'{what}: {folder} does not name its classes; they are taken to be {ours}, in this order')
    elif not manifest.are_classes(theirs, dataset.num_classes, dataset.class_names):
        return f'{what}: {folder} knows other classes than those of {experiment.config.data.name}, or in another order'
    return ''


def _of(folder: str, what: str, count: int) -> str | None:
    """As manifest.classes gives them; None where nothing names them and there may be `count`. Raises UserError."""
    if not huggingface.is_folder(folder):
        return manifest.at(Run(folder).manifest, 'data.classes')
    theirs = huggingface.Folder(folder, what)
    known = huggingface.classes(theirs)  # refuses one that tells several classes of a text, or a number
    names = huggingface.class_names(theirs) or (known[1] if known and len(known[1]) != count else ())
    return manifest.classes(len(names), names) if names else None
