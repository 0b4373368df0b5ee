"""A trained model in a form that other programs read: Hugging Face's, safetensors, StableHLO."""

import dataclasses
import datetime
import json
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import adapt
from aigc_jax.adapt import huggingface
from aigc_jax.adapt.huggingface import bert
from aigc_jax.core import files, optim, rng
from aigc_jax.core.capabilities import Samples, Seq2Seq, WritesText
from aigc_jax.core.errors import UserError, near
from aigc_jax.core.notes import note
from aigc_jax.core.types import Extra
from aigc_jax.data import Images, Tokenizer, tokenizer_files
from aigc_jax.reports.trained import Trained
from aigc_jax.runs import config as config_lib

PLATFORMS = 'cpu', 'cuda', 'tpu'
SAMPLER = 'sampler.stablehlo'
HOST = 'stop', 'suffix', 'grammar', 'draft'  # of a text, what a single program does not do
_LONG = 4096  # tokens of a prompt, which take long to read


def export(trained: Trained, folder, form: str, n: int = 64, **how) -> list[pathlib.Path]:
    """Writes the model of one replica into a new folder, and gives its files. It is the average of the parameters where
    the run keeps one.

    form: 'hf', config.json, model.safetensors and the tokenizer, which transformers loads; 'safetensors', all
    parameters by their paths here; 'stablehlo', the sampler, n samples a call, for a process that has jax and
    flatbuffers alone. The last two hold the tokenizer of a text model, too.
    how: of 'stablehlo' and a model that writes text, what Trained.generate takes, but for HOST. Raises UserError.
    """
    if form not in FORMATS:
        raise UserError(f'format: {form!r}{near(form, FORMATS)}')
    if how and form != 'stablehlo':
        raise UserError(f'{next(iter(how))}: is of a sampler, which format={form} does not hold; leave it out')
    folder = pathlib.Path(folder).expanduser()
    return FORMATS[form](trained, folder, n, **how)


def _hf(trained: Trained, folder: pathlib.Path, n: int) -> list[pathlib.Path]:
    fields = config_lib.flatten(trained.experiment.config)
    family = huggingface.family_for(fields)
    if rounded := fields['quantize.activations']:
        raise UserError(
            f'quantize.activations: {rounded}; a checkpoint of Hugging Face holds weights alone, and transformers '
            'would compute other numbers; write --format=safetensors, or the sampler as --format=stablehlo'
        )
    params = _params(trained)
    (player,) = params
    if fields.get('model.positions') == 0 and 'position' in params[player]:  # as many as the windows of the data have
        fields['model.positions'] = len(params[player]['position']['embedding']) - fields['model.position_offset']
    if left := huggingface.unwritten(family, fields, params[player]):
        note(f'format: hf has no place for {", ".join(left)}; the folder is without')
    tokenizer, rows = trained.tokenizer, trained.experiment.config.model.vocab_size or trained.tokenizer.vocab_size
    config = family.config(fields, rows) | {'dtype': 'float32', 'torch_dtype': 'float32'}
    if fields['task.name'] in ('mlm', 'classify'):
        config |= bert.more(config, trained.experiment.dataset)
    ids = {'bos_token_id': tokenizer.bos, 'eos_token_id': tokenizer.end, 'pad_token_id': tokenizer.pad}
    if written := trained.task.get(Seq2Seq):
        ids |= {'decoder_start_token_id': written.bos, 'pad_token_id': tokenizer.filler}
    config |= {name: token for name, token in ids.items() if token is not None}
    texts = tokenizer_files.files(tokenizer)
    return huggingface.write(folder, config, huggingface.tensors(family, fields, params[player]), texts)


def _safetensors(trained: Trained, folder: pathlib.Path, n: int) -> list[pathlib.Path]:
    config = trained.experiment.config
    tensors = adapt.tensors(_averaged(trained), config)
    return huggingface.write(folder, config.to_dict(), tensors, _texts(trained.tokenizer))


def _stablehlo(trained: Trained, folder: pathlib.Path, n: int, **how) -> list[pathlib.Path]:
    found = sampler(trained, n, **how)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in found.inputs.values()]
    with files.new_folder(folder) as made:
        exported = jax.export.export(jax.jit(found.draw), platforms=PLATFORMS)(*shapes)
        names = ', '.join(found.inputs)
        outputs = [[str(aval.dtype), *aval.shape] for aval in exported.out_avals]
        given = {'outputs': dict(zip(found.outputs, outputs, strict=True))} if found.outputs else {'output': outputs[0]}
        (made / SAMPLER).write_bytes(exported.serialize())
        about = {
            'made': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'jax': jax.__version__,
            'calling_convention': exported.calling_convention_version,
            'platforms': list(exported.platforms),
            'inputs': {name: ['int32', *shape] for name, shape in found.inputs.items()},
            **given,
            'step': trained.step,
            'call': f"jax.export.deserialize(bytearray(open('{SAMPLER}', 'rb').read())).call({names})",
            **found.about,
        }
        for name, text in _texts(trained.tokenizer).items():
            (made / name).write_text(text, encoding='utf-8')
        (made / 'sampler.json').write_text(json.dumps(about, indent=2) + '\n', encoding='utf-8')
    return sorted(folder.iterdir())


def _texts(tokenizer: Tokenizer | None) -> dict[str, str]:
    """The files of the tokenizer, of a model that has one; a note says where it has no such form."""
    try:
        return tokenizer_files.files(tokenizer) if tokenizer else {}
    except UserError as error:
        note(f'format: the folder is without the tokenizer: {error}')
        return {}


FORMATS: Mapping[str, Callable[..., list[pathlib.Path]]] = {
    'hf': _hf, 'safetensors': _safetensors, 'stablehlo': _stablehlo,
}  # fmt: skip


class Sampler(NamedTuple):
    """draw(*inputs) -> the samples (n, …), or what `outputs` names, with the parameters as constants.

    inputs: {name: shape}, int32 each. about: what sampler.json says of it besides.
    """

    draw: Callable[..., Any]
    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...] = ()
    about: Mapping[str, Any] = types.MappingProxyType({})


def sampler(trained: Trained, n: int, **how) -> Sampler:
    """What Trained.sample draws, or of a model that writes text what Trained.generate writes for n prompts, as `how`
    and the config's `sample` say. Raises UserError."""
    if trained.can(WritesText):
        return _writer(trained, n, **how)
    samples, task = trained.task.get(Samples), trained.config.task.name
    if samples is None:
        raise UserError(f'format: stablehlo holds a sampler, and {task} writes no text and draws no samples')
    if how:
        raise UserError(f'{next(iter(how))}: {task} writes no text; leave it out')
    params, index = _params(trained), np.arange(n, dtype=np.int32)
    extra = Extra(trained.state.stats, trained.state.carry)

    def sample(seed, labels=None):
        found = samples.draw(params, extra, rng.context(seed, 'sample', 0, index), labels)
        return jnp.clip(found, 0, 1) if isinstance(trained.experiment.dataset.spec, Images) else found

    return Sampler(sample, {'seed': ()} | ({'labels': (n,)} if samples.num_classes else {}))


def _writer(trained: Trained, n: int, **how) -> Sampler:
    if given := [name for name in how if name in HOST]:
        raise UserError(f'{given[0]}: an exported sampler has none; leave it out')
    writer = trained.writer(**how)
    columns, most = writer.sizes(trained.experiment.dataset.spec.block)
    if columns > _LONG:
        note(
            f'data.block: {trained.config.data.block}; each call of the sampler reads prompts of {columns} tokens, '
            'filled up; a smaller data.block makes one of shorter prompts'
        )
    params, extra = _params(trained), Extra(trained.state.stats, trained.state.carry)
    write = lambda seed, prompt, start: writer.traced(params, extra, seed, prompt, start, most)
    before, behind = ([int(token) for token in part] for part in writer.frame)
    # A text ends before `end`; null: where it is cut off.
    about = {
        'before': before, 'behind': behind, 'end': trained.tokenizer.end, 'special_tokens': writer.reads_special,
        'goes_on': writer.goes_on, 'before_text': [int(token) for token in writer.before_text], 'max_new_tokens': most,
        'how': dataclasses.asdict(writer.how),
    }  # fmt: skip
    return Sampler(write, {'seed': (), 'prompt': (n, columns), 'start': (n,)}, ('tokens', 'length'), about)


def _averaged(trained: Trained) -> Any:
    return optim.averaged(trained.state.params, trained.state.opt)


def _params(trained: Trained) -> Any:
    return adapt.merged(_averaged(trained), trained.experiment.config)
