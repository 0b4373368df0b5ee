"""All fields of a config: those that every run has, and those that its data, its task and its evaluations declare.

A config file states what differs from these declarations. `fill` gives the rest its defaults, and `check` refuses what
is misspelt, missing or out of its range. A run's config.json holds all of it, with the number SCHEMA.
"""

from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from aigc_jax import adapt, data, tasks
from aigc_jax.core import optim, parallel, schema
from aigc_jax.core.schema import Field, Group
from aigc_jax.data import declarations
from aigc_jax.metrics import images, latent_codes, ngram, text, transport
from aigc_jax.nn import build, encoder, networks, quantizers, recurrent, transformer
from aigc_jax.runs.migrations import SCHEMA
from aigc_jax.sandbox import problems

EVAL = {
    'split': Field(
        str, 'auto',
        doc='the split that is evaluated while training; `auto`: valid, or test where there is no valid split',
    ),
    'final_split': Field(str, 'test', doc='the split of the final evaluation'),
    'batch_size': Field(int, 500, least=1, doc='examples that are evaluated at once; of text, windows'),
    'num_shown': Field(int, 64, least=1, doc='samples in a picture; of text, samples that are written'),
    'also_each': Field(
        tuple, (), items=Field(str), doc='reports of the final evaluation that are made at each evaluation, too'
    ),
    'model_bytes': Field(bool, False, doc='whether the final evaluation tells the bytes of the model'),
    'best_metric': Field(str, '', doc='the checkpoint with its best value is kept; empty: none is'),
    'best_mode': Field(str, 'min', choices=('min', 'max'), doc='whether the least or the greatest value is the best'),
    'patience': Field(int, 0, least=0, doc='evaluations without a better value before the run stops; 0: it does not'),
}  # fmt: skip
INIT = {
    'run': Field(str, '', doc="a run's folder whose parameters, statistics and tokenizer to start from; empty: none"),
    'step': Field(str, '', doc='of which checkpoint, a number or `best`; empty: the newest'),
    'average': Field(
        bool, True, doc='whether to take the average of the parameters, where that run keeps and evaluates one'
    ),
    'rename': Field(
        tuple, (),
        doc="((regex, replacement), …), applied one after the other to the names of that run's parameters, PLAYER/…, "
        'which makes them those of this model; (): they are',
    ),
    'drawn': Field(
        str, '', doc='regex of the parameters, PLAYER/…, that are drawn all the same, such as a head; empty: none'
    ),
    'unused': Field(
        str, '', doc="regex of that run's parameters that this model does not have, and that are left; empty: none"
    ),
}  # fmt: skip
# What the reports of samples read.
EVAL_OF_TEXT = {**text.FIELDS, **ngram.FIELDS, **problems.FIELDS}
EVAL_OF_IMAGES_AND_POINTS = {**images.FIELDS, **latent_codes.FIELDS, **transport.FIELDS}


def _players(config: ConfigDict, around) -> Group:
    return {player: Field(dict, fields=optim.FIELDS, doc='its optimizer') for player in config}


def _data(config: ConfigDict, around) -> Group:
    return data.fields(config)


def _of_task(group: str) -> Callable[[ConfigDict, ConfigDict], Group | None]:
    return lambda config, around: tasks.fields(group, config, around)


def _sample(config: ConfigDict, around: ConfigDict) -> Group:
    return tasks.fields('sample', config, around) or {}


def _eval(config: ConfigDict, around: ConfigDict) -> Group:
    own = EVAL_OF_IMAGES_AND_POINTS
    if schema.named(around.get('data'), 'name') is not None:
        own = EVAL_OF_TEXT if data.reads_text(around.data) else {} if data.reads_examples(around.data) else own
    return {**EVAL, **own, **(tasks.fields('eval', config, around) or {})}


FIELDS = {
    'schema': Field(int, SCHEMA, choices=(SCHEMA,), doc='version of the fields; older runs are brought up to it'),
    'seed': Field(int, 0, doc='of all draws; each is a function of it, of the step, of a name and of the example'),
    'total_steps': Field(int, least=0, doc='optimizer steps; 0: the model of init.run is evaluated as it is'),
    'batch_size': Field(int, 128, least=1, doc='examples of each round, over all devices; of text, windows or rows'),
    'micro_batches': Field(int, 1, least=1, doc='parts that a batch is cut into, to save memory'),
    'steps_per_call': Field(int, 10, least=1, doc='steps fused into one compiled call'),
    'log_every_steps': Field(int, 50, least=1, doc='a multiple of steps_per_call, as the next two are'),
    'eval_every_steps': Field(int, 1000, least=1, doc='steps from one evaluation to the next'),
    'checkpoint_every_steps': Field(int, 1000, least=1, doc='steps from one checkpoint to the next'),
    'keep_checkpoints': Field(int, 3, least=1, doc='the newest ones; the best one is kept beside them'),
    'num_seeds': Field(int, 1, least=1, doc='replicas, of seeds seed, seed + 1, …, trained as one program'),
    'replicas': parallel.EXECUTION,
    'init': Field(dict, fields=INIT, doc='the model that training starts from'),
    'precision': Field(
        str, 'float32', choices=tuple(build.PRECISIONS), doc='of the products; the parameters are float32'
    ),
    'parallel': Field(dict, fields=parallel.FIELDS),
    **adapt.FIELDS,
    'optim': Field(dict, fields=_players, doc='a group for each player'),
    'data': Field(dict, fields=_data),
    'task': Field(dict, fields=_of_task('task')),
    'model': Field(dict, fields=_of_task('model')),
    'sample': Field(dict, fields=_sample),
    'eval': Field(dict, fields=_eval),
}  # fmt: skip


def fill(config: ConfigDict) -> None:
    """Gives each field that `config` leaves out its default. Raises UserError for data or a task that there are not."""
    schema.fill(config, FIELDS)


def check_names(config: ConfigDict) -> None:
    """Raises UserError where `config` holds a field that there is not."""
    schema.check_names(config, FIELDS)


def check(config: ConfigDict) -> None:
    """Raises UserError unless `config` holds its fields, each within its range, and no others."""
    schema.check(config, FIELDS)


def listed(config: ConfigDict) -> Iterator[str]:
    """Each field of a whole `config` in two lines: its value, what it can hold and its default; what it means."""
    return schema.listed(config, FIELDS)


def tables() -> Iterator[tuple[str, str]]:
    """(title, table in Markdown) of each group of fields, the shared ones first."""
    shared = {name: field for name, field in FIELDS.items() if not callable(field.fields)}
    yield 'Every config', schema.markdown(shared)
    yield '`optim.PLAYER`', schema.markdown(optim.FIELDS, 'optim.PLAYER')
    yield '`data`, images and points', schema.markdown(declarations.IMAGES_AND_POINTS, 'data')
    yield '`data`, text', schema.markdown(declarations.TEXT, 'data')
    yield '`data`, pairs and labelled texts', schema.markdown(declarations.EXAMPLES, 'data')
    yield '`eval`', schema.markdown(EVAL, 'eval')
    yield '`eval`, images and points', schema.markdown(EVAL_OF_IMAGES_AND_POINTS, 'eval')
    yield '`eval`, text', schema.markdown(EVAL_OF_TEXT, 'eval')
    for task in tasks.TASKS:
        for group, fields in tasks.declared(task).items():
            if not callable(fields):
                yield f'`{group}`, with `task.name={task}`', schema.markdown(fields, group)
    for kind, file in networks.KINDS.items():
        of_any = build.fields(file.Encoder) | build.fields(file.Discriminator) | build.fields(file.Classifier)
        yield f'Networks of `model.kind={kind}`', schema.markdown(of_any)
    for kind, fields in quantizers.QUANTIZER_FIELDS.items():
        yield f'`model.quantizer`, with `name={kind}`', schema.markdown(fields, 'model.quantizer')
    yield 'Transformer', schema.markdown(build.fields(transformer.Transformer))
    yield 'Encoder', schema.markdown(build.fields(encoder.Encoder))
    yield 'Recurrent network', schema.markdown(build.fields(recurrent.Recurrent))


def markdown() -> str:
    """All tables, each under its title."""
    return '\n'.join(f'**{title}**\n\n{table}' for title, table in tables())
