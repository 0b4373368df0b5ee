"""aigc_jax: a pure-functional JAX research codebase for generative models."""

__version__ = '0.1.0'


def load(workdir, step=None):
    """(config, task, state) of a run's folder, for a notebook.

    workdir: the folder; step: a number, 'best', or None for the newest checkpoint. The task's functions read raw data,
    and give them in the same units (aigc_jax.runs.raw). The state's leaves have a leading axis of replicas where
    num_seeds > 1. Raises aigc_jax.core.errors.UserError where there is none.
    """
    from aigc_jax.runs import raw
    from aigc_jax.runs.folder import Run

    experiment, state = Run(workdir).open(step)
    return experiment.config, raw.task_of(experiment), state
