"""The command line: python -m aigc_jax.main --config=FILE.py[:variant,…] --workdir=DIR [--mode=…] [--config.a.b=v]"""

import pathlib
import sys
import time

_STARTED = time.perf_counter()

from absl import app, flags  # noqa: E402

from aigc_jax.core import arguments, command, processes  # noqa: E402
from aigc_jax.core.errors import RunError, UserError, near  # noqa: E402
from aigc_jax.core.output import show, show_paths  # noqa: E402
from aigc_jax.runs import config as config_lib  # noqa: E402

MODES = ('train', 'evaluate', 'sample', 'export', 'fields')
FLAGS = flags.FLAGS
flags.DEFINE_string(
    'mode', 'train', f'one of {", ".join(MODES)}; evaluate, sample and export read the config of the workdir, and '
    'fields lists all that --config has: what each can hold and what it means'
)  # fmt: skip
flags.DEFINE_string('workdir', None, "the run's folder; the same command again resumes the run in it")
flags.DEFINE_string('step', None, 'not while training: of which checkpoint, a number or best (default: the newest)')
flags.DEFINE_integer('num_samples', 64, 'sample, export as stablehlo: how many', arguments.N.least, arguments.N.most)
flags.DEFINE_integer('seed', 0, 'sample: of the random draws', arguments.SEED.least, arguments.SEED.most)
flags.DEFINE_string('labels', '', 'sample, class-conditional models: classes, as 3 or cat,dog (repeated in turn)')
flags.DEFINE_string('format', 'hf', 'export: hf, which transformers loads; safetensors; stablehlo, the sampler')
flags.DEFINE_string('output', '', 'export: the new folder to write')
flags.DEFINE_string(
    'prompt', '', 'sample, language models: the text to go on from; encoder-decoders: the source; masked language '
    'models: a text whose <mask> to fill in; classifiers of texts: the text to tell the class of, or two of them, with '
    'a tab between'
)  # fmt: skip
flags.DEFINE_string(
    'prompt_file', '', 'sample, in place of --prompt: a file whose lines are prompts, each in JSON quotes or bare; '
    'models trained on rows: also a .jsonl or .tsv with the columns of the training file'
)
flags.DEFINE_integer(
    'max_new_tokens', None,
    'sample, export, language models: the most tokens (default: 200; for a draft or a beam search no more than '
    'fit, for an export no more than half of what the model reads)',
    arguments.MAX_NEW_TOKENS.least, arguments.MAX_NEW_TOKENS.most,
)  # fmt: skip
flags.DEFINE_string('stop', '', 'sample, language models: the text to stop before')
flags.DEFINE_string('suffix', '', 'sample, models trained with data.fim_rate: the text behind the one to be filled in')
flags.DEFINE_string('grammar', '', 'sample, language models: json, arithmetic, python or FILE.lark, to keep to')
flags.DEFINE_string('draft', '', 'sample, transformers: ngram proposes tokens, for the same texts with fewer calls')
flags.DEFINE_bool('stream', False, 'sample, language models: show a single text while it is written')
# These five go before `sample` of the config, which has their defaults.
flags.DEFINE_float('temperature', None, 'sample, export, language models: in place of sample.temperature')
flags.DEFINE_integer('top_k', None, 'sample, export, language models: in place of sample.top_k')
flags.DEFINE_float('top_p', None, 'sample, export, language models: in place of sample.top_p')
flags.DEFINE_float('min_p', None, 'sample, export, language models: in place of sample.min_p')
flags.DEFINE_float('repetition_penalty', None, 'sample, export, language models: in place of sample.repetition_penalty')
flags.DEFINE_integer('beam_size', None, 'sample, export, language models: more than 1 searches for the likeliest text')
flags.DEFINE_float('length_penalty', None, "sample, export, language models: a beam search's exponent of the length")
# Documentation alone: `config_lib.split_arguments` takes these off the command line before absl reads it.
flags.DEFINE_string('config', None, 'FILE.py[:variant,…]; --config.FIELD=VALUE sets a single field (configs/fields.md)')

WRITER_FLAGS = (  # which api.generate takes
    'max_new_tokens', 'stop', 'suffix', 'grammar', 'draft', 'temperature', 'top_k', 'top_p', 'min_p',
    'repetition_penalty', 'beam_size', 'length_penalty',
)  # fmt: skip
TEXT_FLAGS = ('prompt', 'prompt_file', 'stream', *WRITER_FLAGS)
# What each mode reads besides --mode, --workdir and --config.
READ_FLAGS = {
    'train': (), 'fields': (), 'evaluate': ('step',),
    'sample': ('step', 'num_samples', 'seed', 'labels', *TEXT_FLAGS),
    'export': ('step', 'num_samples', 'format', 'output', *WRITER_FLAGS),
}  # fmt: skip

_given: dict = {}


def parse(argv: list[str]) -> list[str]:
    """absl's flags_parser: our --config flags, then absl's."""
    with command.mistakes():
        rest, _given['config'], _given['overrides'] = config_lib.split_arguments(argv)
    return command.parse(rest, _check_flags)


def _check_flags() -> None:
    if FLAGS.mode not in MODES:
        raise UserError(f'--mode: {FLAGS.mode!r}{near(FLAGS.mode, MODES)}')
    if not FLAGS.workdir and FLAGS.mode != 'fields':
        raise UserError('--workdir: missing; name the folder of the run')
    if FLAGS.mode in ('train', 'fields') and not _given['config']:
        raise UserError('--config: missing; name a config, such as configs/gan.py')
    if FLAGS.mode == 'export' and not FLAGS.output:
        raise UserError('--output: missing; name the new folder to write')
    if FLAGS.mode in ('evaluate', 'sample', 'export') and _given['config']:
        raise UserError(f'--config: {FLAGS.mode} reads the config of the workdir; leave it out')
    _check_read()


def _check_read() -> None:
    """Raises UserError for a flag that the mode does not read: what it asks for would not be done, in silence."""
    mode, known = FLAGS.mode, dict.fromkeys(name for names in READ_FLAGS.values() for name in names)
    for name in known:
        if not FLAGS[name].present or name in READ_FLAGS[mode]:
            continue
        if mode == 'export' and name in TEXT_FLAGS:
            raise UserError(f'--{name}: an export writes no text; leave it out')
        if mode == 'export':
            raise UserError(f'--{name}: an export draws nothing, its sampler is called with it; leave it out')
        mend = 'set --config.seed' if name == 'seed' and mode == 'train' else 'leave it out'
        raise UserError(f'--{name}: --mode={mode} does not read it; {mend}')
    if mode == 'export' and FLAGS['num_samples'].present and FLAGS.format in ('hf', 'safetensors'):
        raise UserError(
            f'--num_samples: is of a sampler, which format={FLAGS.format} does not hold; leave it out, or add '
            '--format=stablehlo'
        )


def main(_: list[str]) -> None:
    command.run(_run)


def _run() -> None:
    if FLAGS.mode == 'fields':
        from aigc_jax.runs import fields

        return show('\n'.join(fields.listed(config_lib.load(_given['config'], _given['overrides']))) + '\n')
    command.check_start()
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    if several := processes.expected():  # first, so that the others hear of a mistake of this one
        command.set_up_jax()
    began = time.perf_counter()
    if FLAGS.mode == 'train':
        with processes.together('config'):
            config = config_lib.load(_given['config'], _given['overrides'])
    if not several:
        command.set_up_jax()
    if FLAGS.mode == 'train':
        return _train(config, workdir, began)
    from aigc_jax import api
    from aigc_jax.core.capabilities import Classifies, FillsIn, WritesText

    if FLAGS.mode == 'evaluate':
        from aigc_jax.training import announce

        found = api.evaluate(workdir, FLAGS.step, _given['overrides'], progress=sys.stderr)
        return announce.table(found.config, found.step, found.results)
    trained = api.open(workdir, FLAGS.step, _given['overrides'])
    if FLAGS.mode == 'export':
        return show_paths(api.export(trained, FLAGS.output, FLAGS.format, FLAGS.num_samples, **_writer_flags()))
    if trained.can(FillsIn):
        return _fill(trained)
    if trained.can(Classifies) and trained.tokenizer:
        return _classify(trained)
    _generate(trained) if trained.can(WritesText) else _sample(trained)


def _train(config, workdir: pathlib.Path, began: float) -> None:
    from aigc_jax.runs.folder import Run
    from aigc_jax.training import announce, trainer
    from aigc_jax.training.signals import Interrupted

    clock = {'python': began - _STARTED, 'imports': time.perf_counter() - began}
    outcome = trainer.train(config, Run(workdir), signals=True, progress=sys.stderr, clock=clock)
    if outcome.interrupted:
        processes.gather('interrupted', None)
        command.end(Interrupted(outcome.interrupted, outcome.step))
    announce.table(config, outcome.step, outcome.results)


def _sample(trained) -> None:
    from aigc_jax import api
    from aigc_jax.data import labels as class_labels

    if given := [name for name in TEXT_FLAGS if FLAGS[name].present]:
        raise UserError(f'--{given[0]}: {trained.config.task.name} writes no text')
    names = trained.experiment.dataset.class_names
    labels = class_labels.parse(FLAGS.labels, FLAGS.num_samples, trained.num_classes, names)
    found = api.sample(trained, FLAGS.num_samples, FLAGS.seed, labels)
    if processes.first():
        show_paths(found)


def _fill(trained) -> None:
    """The prompts with their masks filled in, and what else could stand there."""
    task = trained.config.task.name
    words = f'{task} draws nothing; it fills each <mask> of a --prompt'
    prompts = _read(trained, words, 'the <mask> statement')
    found = trained.fill([text for (text,) in prompts])
    if processes.first():
        show('\n'.join(one.lines() for one in found))


def _classify(trained) -> None:
    """A line for each prompt, or of a tagger for each word of it, with a blank line between prompts."""
    from aigc_jax.core.capabilities import Classifies

    by_token = trained.task.get(Classifies).by_token
    words = f'{trained.config.task.name} draws nothing; it tells the class of each --prompt'
    columns = () if by_token else trained.experiment.dataset.spec.columns
    found = trained.classify(_read(trained, words, 'a text of your own', columns))
    if not processes.first():
        return
    if by_token:
        return show('\n'.join(''.join(f'{one.line(named=True)}\n' for one in of_text) for of_text in found))
    show(''.join(f'{one.line()}\n' for one in found))


def _read(trained, draws_nothing: str, example: str, columns: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The prompts of a model that reads them and draws nothing, see texts.read_examples. Raises UserError."""
    from aigc_jax import data
    from aigc_jax.reports import texts

    if given := [name for name in (*TEXT_FLAGS[2:], 'num_samples', 'seed', 'labels') if FLAGS[name].present]:
        raise UserError(f'--{given[0]}: {draws_nothing}')
    if not (FLAGS.prompt or FLAGS.prompt_file):
        raise UserError(f"--prompt: missing; give a text, such as --prompt='{example}'")
    return texts.read_examples(FLAGS.prompt, FLAGS.prompt_file, columns, data.row_columns(trained.config.data))


def _generate(trained) -> None:
    """The texts on stdout, their likelihood and how they ended on stderr, both in samples/."""
    from aigc_jax import api, data
    from aigc_jax.core.capabilities import CausalText
    from aigc_jax.core.notes import note
    from aigc_jax.decoding.generate import summary
    from aigc_jax.reports import filling, pictures, texts

    if FLAGS.labels:
        raise UserError('--labels: a language model has no classes; give it a --prompt')
    prompts = texts.read_prompts(FLAGS.prompt, FLAGS.prompt_file, data.row_columns(trained.config.data))
    reads_marks = trained.tokenizer.sentinels and not trained.can(CausalText)  # another mark is refused there
    if not reads_marks and any(filling.MASK in prompt for prompt in prompts):
        name = trained.config.task.name
        note(f'--prompt: {filling.MASK} is text as any other to {name}; a model of task.name=mlm fills it in')
    given = _writer_flags()
    how, num_samples = trained.sampling(**given), FLAGS.num_samples
    if how.beam_size > 1 or how.temperature == 0:
        if FLAGS['num_samples'].present and num_samples > 1:
            raise UserError(
                f'--num_samples={num_samples}: nothing is drawn, so that all would be the same; set it to 1'
            )
        num_samples = 1
    if FLAGS.stream and len(prompts) * num_samples * len(trained.experiment.seeds) > 1:
        raise UserError('--stream: shows a single text; add --num_samples=1, one prompt, a run of one seed')
    if FLAGS.stream and (FLAGS.draft or how.beam_size > 1):
        raise UserError('--stream: a text of a draft or a beam search is whole at once; leave out one of the two')
    stream = None
    if FLAGS.stream:  # all processes generate, and the first one shows the text
        shown = prompts[0] if trained.can(CausalText) else ''  # in front of a text that goes on from it
        stream = _Terminal(shown) if processes.first() else lambda text: None
    found = api.generate(trained, prompts, num_samples, FLAGS.seed, stream=stream, **given)
    written = [text for of_replica in found.values() for text in of_replica]
    if not processes.first():
        return
    if FLAGS.stream:
        stream.close(written[0].suffix)
    else:
        show(pictures.join_texts([str(text) for text in written]))
    print(summary(written), file=sys.stderr)


def _writer_flags() -> dict:
    return {name: FLAGS[name].value for name in WRITER_FLAGS if FLAGS[name].present}


class _Terminal:
    """Shows a text while it grows. Where nobody can read it the text is still written to its end, and saved."""

    def __init__(self, prompt: str):
        self._prompt, self._shown, self._failed = prompt, '', None

    def __call__(self, text: str) -> None:
        self._add(self._prompt)
        self._prompt = ''
        new, self._shown = text[len(self._shown) :], text
        self._add(new)

    def _add(self, text: str) -> None:
        if not self._failed:
            try:
                show(text)
            except RunError as error:
                self._failed = error

    def close(self, suffix: str) -> None:
        """Raises RunError where not all could be shown."""
        self._add(suffix + '\n')
        if self._failed:
            raise self._failed


if __name__ == '__main__':  # as `aigc_jax.command()` runs it, too
    app.run(main, flags_parser=parse)
