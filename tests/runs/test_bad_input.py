"""A user's mistake in a flag or a config: exit code 2, one to three lines that name the thing and the mend, nothing
written. The command lines share one process, which runs them one after another (`refusals.Runner`).
"""

import numpy as np
import pytest
from refusals import GAN, VAE, assert_refused, own_config, snapshot

# Of the command line and the config alone: (the arguments beside --workdir, the words in the message).
COMMAND_LINES = {
    'no config': (['--mode=train'], ['--config: missing', 'configs/gan.py']),
    'fields of no config': (['--mode=fields'], ['--config: missing']),
    'config without value': (['--config'], ['--config: a value is missing']),
    'config not there': (['--config=configs/vea.py'],
                         ['no file configs/vea.py', 'did you mean configs/vae.py']),
    'config in no folder': (['--config=nowhere/vae.py'], ['no file nowhere/vae.py']),
    'config is a folder': (['--config=configs'], ['no file configs']),
    'config is no Python': (['--config=setup.cfg'], ['setup.cfg']),
    'unknown variant': (['--config=configs/vae.py:smok'], ["no variant 'smok'", 'did you mean smoke?']),
    'second variant': (['--config=configs/vae.py:smoke,pionts'],
                       ["no variant 'pionts'", 'did you mean points?']),
    'unknown group': ([VAE, '--config.modle.latent_dim=3'], ["no field 'modle'", 'did you mean model']),
    'unknown field': ([VAE, '--config.model.latnt_dim=3'], ["model has no field 'latnt_dim'", 'latent_dim?']),
    'field below a leaf': ([VAE, '--config.seed.a=3'], ['seed.a: seed is no group', 'set by seed=']),
    'empty field': ([VAE, '--config.=3'], ["has no field ''"]),
    'a word for a number': ([VAE, '--config.seed=three'], ["seed: 'three' is no int", 'holds 0']),
    'a fraction for a whole': ([VAE, '--config.total_steps=1.5'], ["'1.5' is no int", '40']),
    'a number for a tuple': ([VAE, '--config.model.encoder.features=3'], ["'3' is no tuple", '(16,)']),
    'a word for a bool': ([VAE, '--config.data.stream=yes'], ["'yes' is no bool", 'False']),
    'an int for a bool': ([VAE, '--config.data.stream=1'], ["'1' is no bool"]),
    'a bool for an int': ([VAE, '--config.seed=True'], ["'True' is no int"]),
    'group set': ([VAE, '--config.model=3'], ['model: this is a group', 'latent_dim', 'encoder']),
    'field without value': ([VAE, '--config.seed'], ['--config.seed: a value is missing']),
    'field before a flag': ([VAE, '--config.seed', '--mode=train'], ['--config.seed: a value is missing']),
    'unknown flag': ([VAE, '--wrokdir=x'], ["Unknown command line flag 'wrokdir'", 'workdir', '--help']),
    'stray word': ([VAE, 'config.seed=1'], ["'config.seed=1' is no flag", '--']),
    'unknown mode': ([VAE, '--mode=evalute'], ["--mode: 'evalute'", 'did you mean evaluate?']),
    'flag of the wrong type': (['--mode=sample', '--num_samples=x'], ['num_samples', 'x']),
    'no samples': (['--mode=sample', '--num_samples=0'], ['num_samples', '0']),
    'config with sample': ([VAE, '--mode=sample'],
                           ['--config: sample reads the config of the workdir; leave it out']),
    'config with evaluate': ([VAE, '--mode=evaluate'],
                             ['--config: evaluate reads the config of the workdir']),
    'no steps': ([VAE, '--config.total_steps=0'], ['total_steps: 0, but init.run names no model']),
    'negative batch': ([VAE, '--config.batch_size=-32'], ['batch_size: -32']),
    'uneven logs': ([VAE, '--config.log_every_steps=15'],
                    ['log_every_steps: 15', 'multiple of steps_per_call, 10']),
    'uneven evaluations': ([VAE, '--config.eval_every_steps=15'],
                           ['eval_every_steps: 15', 'steps_per_call, 10']),
    'uneven checkpoints': ([VAE, '--config.checkpoint_every_steps=15'], ['checkpoint_every_steps: 15', '10']),
    'uneven steps': ([VAE, '--config.total_steps=45'], ['total_steps: 45', 'multiple of steps_per_call, 10']),
    'best_mode': ([VAE, '--config.eval.best_mode=least'], ['eval.best_mode', "'least'", 'max, min']),
    'patience without metric': ([GAN, '--config.eval.patience=3'], ['eval.patience', 'eval.best_metric']),
}  # fmt: skip

# Of what the config asks for.
CONFIGS = {
    'optimizer': ([VAE, '--config.optim.model.name=adma'], ['optim.model.name', "'adma'", 'adam']),
    'no optimizer': ([VAE, '--config.optim.model.name=apply_updates'], ['optim.model.name', 'apply_updates']),
    'schedule': ([VAE, '--config.optim.model.schedule.name=cosine_decay'],
                 ['optim.model.schedule.name', 'cosine_decay_schedule']),
    'schedule without its argument': ([VAE, '--config.optim.model.schedule.name=exponential_decay'],
                                      ['optim.model.schedule', 'transition_steps']),
    'clip_norm': ([VAE, '--config.optim.model.clip_norm=-1'], ['optim.model.clip_norm', '-1']),
    'ema_decay': ([VAE, '--config.optim.model.ema_decay=1.5'], ['optim.model.ema_decay', '1.5']),
    'dataset': ([VAE, '--config.data.name=digit'], ['data.name', 'digit', 'did you mean digits']),
    'dataset without colon': ([VAE, '--config.data.name=npz'], ['data.name', 'npz:']),
    'dataset without place': ([VAE, '--config.data.name=npz:'], ['data.name', 'missing']),
    'task': ([VAE, '--config.task.name=vea'], ['task.name', "'vea'", 'did you mean vae?']),
    'loss': ([GAN, '--config.task.loss=hing'], ['task.loss', "'hing'", 'did you mean hinge?']),
    'likelihood': ([VAE, '--config.task.likelihood=gausian'], ['task.likelihood', 'did you mean gaussian']),
    'activation': ([VAE, '--config.model.encoder.activation=relo'], ['model.encoder.activation', "'relo'", 'relu']),
    'bias': ([GAN, '--config.model.generator.bias_init=zero'], ['model.generator.bias_init', "'zero'", 'zeros']),
    'precision': ([VAE, '--config.precision=float16'], ['precision', "'float16'", 'bfloat16']),
    'no width': ([VAE, '--config.model.encoder.features=(0,)'], ['model.encoder.features', '0']),
    'width of words': ([VAE, "--config.model.encoder.features=('a',)"], ['model.encoder.features', "'a'"]),
    'no latent': ([VAE, '--config.model.latent_dim=0'], ['model.latent_dim', '0']),
    'penalty schedule': ([GAN, '--config.task.penalty_schedule.name=exp_decay'],
                         ['task.penalty_schedule.name', 'did you mean exponential_decay']),
    'n_critic': ([GAN, '--config.task.n_critic=0'], ['task.n_critic']),
    'binarize': ([VAE, '--config.data.binarize=dynamc'], ['data.binarize', 'dynamic']),
    'binarize points': ([VAE, '--config.data.name=ring8', '--config.data.binarize=static',
                         '--config.task.likelihood=gaussian'], ['data.binarize', 'images', 'none']),
    'scale': ([VAE, '--config.data.scale=units'], ['data.scale', 'unit']),
    'standard images': ([GAN, '--config.data.scale=standard'], ['data.scale', 'symmetric']),
    'no valid split': ([VAE, '--config.data.valid_examples=0', '--config.eval.split=valid'],
                       ['eval.split', "'valid'", 'train, test', 'data.valid_examples to -1']),
    'generator on unit': ([GAN, '--config.data.scale=unit'], ['data.scale', 'symmetric']),
    'bernoulli on points': ([VAE, '--config.data.name=ring8'], ['task.likelihood: bernoulli', 'gaussian']),
    'conditional without labels': ([VAE, '--config.data.name=gaussian2d', '--config.task.likelihood=gaussian',
                                    '--config.model.conditional=True'],
                                   ['model.conditional', 'gaussian2d', 'False']),
    'no k': ([VAE, '--config.eval.k=0'], ['eval.k: 0', '1 or more']),
    'no k_chunk': ([VAE, '--config.eval.k_chunk=0'], ['eval.k_chunk']),
    'split': ([VAE, '--config.eval.split=validation'], ['eval', "'validation'", 'valid']),
    'mode': ([VAE, '--config.parallel.mode=pmapp'], ['parallel.mode', 'pmap']),
    'replicas': ([VAE, '--config.replicas=vmpa'], ['replicas', 'vmap']),
    'mesh': ([VAE, '--config.parallel.mesh.data=3'], ['parallel.mesh', "'data': 3", '1 device']),
    'micro_batches': ([VAE, '--config.micro_batches=3'], ['batch_size: 32', 'micro_batches', '33']),
    'micro_batches of replicas': ([VAE, '--config.micro_batches=3', '--config.num_seeds=2'],
                                  ['batch_size: 32', 'micro_batches', '33']),
    'parallel.rules of replicas': ([VAE, "--config.parallel.rules=(('kernel', 'fsdp'),)", '--config.num_seeds=2'],
                                   ['parallel.rules', 'num_seeds to 1']),
    'freeze': ([VAE, '--config.optim.model.freeze=enkoder'], ['optim.model.freeze', "'enkoder'", 'encoder']),
    'freeze, no regex': ([VAE, '--config.optim.model.freeze=('],
                         ['optim.model.freeze', 'regular expression']),
    'learning_rate_rules': ([VAE, "--config.optim.model.learning_rate_rules=(('bais', 2.0),)"],
                            ['optim.model.learning_rate_rules', "'bais'", 'bias']),
    'learning_rate_rules, flat': ([VAE, "--config.optim.model.learning_rate_rules=('bias', 2.0)"],
                                  ['optim.model.learning_rate_rules']),
    'learning_rate_rules, a word': ([VAE, "--config.optim.model.learning_rate_rules=(('bias', 'x'),)"],
                                    ['optim.model.learning_rate_rules', "'x'"]),
    'parallel.rules': ([VAE, "--config.parallel.rules=(('kernle', 'fsdp'),)"],
                       ['parallel.rules', "'kernle'", 'kernel']),
    'parallel.rules, placement': ([VAE, "--config.parallel.rules=(('kernel', 'fdsp'),)"],
                                  ['parallel.rules', "'fdsp'"]),
    'parallel.rules, a number': ([VAE, "--config.parallel.rules=(('kernel', 3),)"], ['parallel.rules: 3 for']),
    'parallel.rules, an axis twice': ([VAE, "--config.parallel.rules=(('kernel', ('data', 'data')),)"],
                                      ['parallel.rules', 'twice']),
    'best_metric': ([VAE, '--config.eval.best_metric=model/nil'],
                    ['eval.best_metric', "'model/nil'", 'model/nll']),
    'best_metric, of samples': ([VAE, '--config.eval.best_metric=samples/coverage'],
                                ['eval.best_metric', 'set eval.extractor, and eval.also_each to']),
    'init.run': ([VAE, '--config.init.run=nowhere'], ['init.run', 'nowhere']),
    'init.rename alone': ([VAE, "--config.init.rename=(('a', 'b'),)"], ['init.rename: ', 'init.run names no run']),
    'init.step alone': ([VAE, '--config.init.step=10'], ['init.step: 10', 'init.run names no run']),
    'TFDS not prepared': ([VAE, '--config.data.name=tfds:mnist', '--config.data.dir={tmp}'],
                          ['data.name=tfds:mnist', 'not prepared', 'tfds build mnist', '{tmp}']),
    'idx folder': ([VAE, '--config.data.name=idx:{tmp}/nowhere'], ['nowhere', 'idx:DIR']),
    'npz file': ([VAE, '--config.data.name=npz:{tmp}/nothing.npz'], ['nothing.npz']),
    'npz truncated': ([VAE, '--config.data.name=npz:{tmp}/cut.npz'], ['cut.npz', 'cannot be read']),
    'npz without train': ([VAE, '--config.data.name=npz:{tmp}/test.npz'], ['test.npz', 'for training', 'x_train=']),
    'amat folder': ([VAE, '--config.data.name=amat:{tmp}/nowhere'], ['nowhere', 'amat']),
    'amat truncated': ([VAE, '--config.data.name=amat:{tmp}/amat'], ['some_train.amat']),
    'idx truncated': ([VAE, '--config.data.name=idx:{tmp}/idx'], ['train-images-idx3-ubyte', 'truncated']),
}  # fmt: skip


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """A folder of damaged data."""
    folder = tmp_path_factory.mktemp('data')
    x = np.zeros((20, 4, 4), np.uint8)
    np.savez(folder / 'whole.npz', train=x, test=x)
    folder.joinpath('cut.npz').write_bytes(folder.joinpath('whole.npz').read_bytes()[:-100])
    np.savez(folder / 'test.npz', valid=x, test=x)
    (folder / 'amat').mkdir()
    for split in ('train', 'valid', 'test'):
        (folder / 'amat' / f'some_{split}.amat').write_text('0 1 1 0\n' * 5 + ('0 1' if split == 'train' else ''))
    (folder / 'idx').mkdir()
    head = bytes([0, 0, 8, 3]) + np.array([20, 4, 4], '>u4').tobytes()
    for part in ('train', 't10k'):
        (folder / 'idx' / f'{part}-images-idx3-ubyte').write_bytes(head + bytes(100))
    return folder


@pytest.mark.parametrize('arguments, words', COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_command_line(runner, tmp_path, arguments, words):
    assert_refused(runner(f'--workdir={tmp_path}/run', *arguments), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('arguments, words', CONFIGS.values(), ids=CONFIGS)
def test_config(runner, tmp_path, places, arguments, words):
    filled = [text.replace('{tmp}', str(places)) for text in [*arguments, *words]]
    before = snapshot(places)
    answer = runner(f'--workdir={tmp_path}/run', *filled[: len(arguments)])
    assert_refused(answer, *filled[len(arguments) :])
    assert not list(tmp_path.iterdir())
    assert snapshot(places) == before


OWN = {
    'syntax error': ('def get_config():\n    return (\n', ['own.py, line 2: SyntaxError']),
    'exception while read': ('x = 1\ny = x / 0\n', ['own.py, line 2: ZeroDivisionError']),
    'import': ('import no_such_module\n', ['own.py, line 1: ModuleNotFoundError', 'no_such_module']),
    'exception in get_config': ('def get_config():\n    return {}["a"]\n', ["own.py, line 2: KeyError: 'a'"]),
    'no get_config': ('def get_confg():\n    return {}\n', ['own.py', 'get_config']),
    'no ConfigDict': ('def get_config():\n    return {"seed": 0}\n', ['own.py', 'dict', 'ConfigDict']),
    'nothing returned': ('def get_config():\n    pass\n', ['own.py', 'NoneType', 'ConfigDict']),
    'no fields': ('import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n',
                  ['task.name: this field is missing']),
    'bytes': ('\x00\x01', ['own.py', 'null bytes']),
}  # fmt: skip


@pytest.mark.parametrize('text, words', OWN.values(), ids=OWN)
def test_own_config_file(runner, tmp_path, text, words):
    (tmp_path / 'own.py').write_text(text)
    before = snapshot(tmp_path)
    assert_refused(runner(f'--config={tmp_path}/own.py', f'--workdir={tmp_path}/run'), *words)
    assert {path: held for path, held in snapshot(tmp_path).items() if '__pycache__' not in path.parts} == before


# Of a researcher's own config: (of which, what is replaced, by what, the words in the message).
FIELDS = {
    'model, misspelt': ('vae', 'encoder=dict(features', 'encoder=dict(featurs',
                        ['model.encoder.featurs: model.encoder has no such field', 'did you mean features?']),
    'model, missing': ('vae', "encoder=dict(features=(256, 128), activation='relu', bias_init='zeros')",
                       'encoder=dict(features=(8,))',
                       ['model.encoder.activation: this field is missing', 'features, activation, bias_init']),
    'model, unknown': ('vae', 'latent_dim=16,', 'latent_dim=16, latent_din=3,',
                       ['model.latent_din', 'did you mean latent_dim?']),
    'model, of no kind': ('gpt', "kind='transformer',", '', ['model.kind: this field is missing']),
    'quantizer, of no name': ('vq', "name='vq', codes", 'codes', ['model.quantizer.name: this field is missing']),
    'task, misspelt': ('gan', 'r1=1.0,', 'r3=1.0,', ['task.r3', 'r1']),
    'task, missing': ('gan', "loss='relativistic',", '', ['task.loss', 'missing']),
    'task, without a name': ('gan', "name='gan',", '', ['task.name: this field is missing']),
    'optim, misspelt': ('vae', "name='adam',", "name='adam', ema=0.0,",
                        ['optim.model.ema', 'did you mean ema_decay']),
    'optim, missing': ('vae', "name='adam',", '', ['optim.model.name', 'missing']),
    'optim, no group': ('vae', 'optim=dict(', 'optim=dict(modal=3, ', ['optim.modal: 3', 'a group of fields']),
    'option, misspelt': ('vae', 'options=dict(b1=0.9', 'options=dict(beta1=0.9',
                          ['optim.model.options.beta1', 'b1']),
    'option, of another type': ('vae', "name='adam'", "name='adafactor'",
                                ['optim.model.options.b1', 'adafactor']),
    'schedule, misspelt': ('vae', 'alpha=0.01', 'alfa=0.01', ['optim.model.schedule', 'alfa', 'alpha']),
    'schedule, without steps': ('vae', 'decay_percent=100.0, ', '', ['optim.model.schedule', 'decay_steps']),
    'players': ('gan', 'generator=dict(**adam', 'genrator=dict(**adam', ['optim', 'genrator', 'generator']),
    'loop, missing': ('vae', 'total_steps=10_000,', '', ['total_steps', 'missing']),
    'loop, misspelt': ('vae', 'steps_per_call=100,', 'steps_pre_call=100,',
                       ['own.py', 'steps_pre_call', 'did you mean steps_per_call']),
    'data, missing': ('vae', "data=dict(name='digits')", 'data=dict()', ['data.name', 'missing']),
    'data, of text': ('vae', "data=dict(name='digits')", "data=dict(name='digits', tokenizer='char')",
                      ['data.name=digits', 'of text']),
    'eval, misspelt': ('vae', 'best_metric=', 'best_metrc=', ['eval.best_metrc', 'did you mean best_metric']),
    'eval of another task': ('gan', 'task=dict(', 'eval=dict(k=3), task=dict(', ['eval.k', 'no such field']),
    'task, a text for a number': ('gan', 'r1=1.0,', "r1='x',", ["task.r1: 'x'", 'a number']),
    'task, no number': ('gan', 'r1=1.0,', "r1=float('nan'),", ['task.r1: nan is no finite number']),
    'model, a number for a text': ('gan', "activation='leaky_relu', bias_init='zeros'),\n                disc",
                                   "activation=3, bias_init='zeros'),\n                disc",
                                   ['model.generator.activation: 3', 'a text']),
    'model, one number for a tuple': ('vae', 'features=(256, 128)', 'features=256',
                                      ['model.encoder.features: 256', 'a tuple']),
    'optim, a text for a number': ('vae', "name='adam',", "name='adam', clip_norm='1',",
                                   ['optim.model.clip_norm', 'a number']),
    'loop, a number for a whole one': ('vae', 'steps_per_call', 'seed=0.5, steps_per_call',
                                       ['seed: 0.5', 'a whole number']),
    'loop, a number for True or False': ('vae', "name='digits'", "name='digits', stream=0",
                                         ['data.stream: 0', 'True or False']),
    'group, a number': ('vae', "data=dict(name='digits')", "data=dict(name='digits'), parallel=dict(mode=1)",
                        ['parallel.mode: 1', 'a text']),
    'no group': ('vae', "data=dict(name='digits')", "data=dict(name='digits'), parallel=3",
                 ['parallel: 3 is a whole number; it holds a group of fields']),
    'no group of data': ('vae', "data=dict(name='digits')", 'data=3', ['data: 3', 'a group of fields']),
    'no group of the task': ('vae', "task=dict(name='vae', likelihood='bernoulli')", 'task=3',
                             ['task: 3', 'a group of fields']),
    'schema': ('vae', 'steps_per_call', 'schema=7, steps_per_call', ['schema: 7']),
    'variant, misspelt': ('vae', "'eval.k': 4", "'eval.kk': 4", ['own.py', 'eval.kk', 'eval has no such field']),
}  # fmt: skip


@pytest.mark.parametrize('name, old, new, words', FIELDS.values(), ids=FIELDS)
def test_own_config_field(runner, tmp_path, name, old, new, words):
    config = own_config(tmp_path, old, new, name).removesuffix(':smoke')
    # The misspelt variant alone needs a variant.
    config += ':smoke' if 'eval.k' in old else ''
    assert_refused(runner(config, f'--workdir={tmp_path}/run'), *words)
    assert not (tmp_path / 'run').exists()


DEVICES = {
    'batch_size': (['--config.batch_size=36'], ['batch_size: 36', '8 devices', '40']),
    'micro_batches': (['--config.micro_batches=3'], ['batch_size: 32', '3 micro_batches', '48']),
    'mesh': (['--config.parallel.mesh.data=3'], ['parallel.mesh', "'data': 3", '8 devices']),
    'two rests': (['--config.parallel.mesh.fsdp=-1'], ['parallel.mesh', '-1']),
    'replicas': (['--config.num_seeds=3'], ['num_seeds: 3', '8 devices', 'that do are 8']),
    'pmap with fsdp': (['--config.parallel.mode=pmap', '--config.parallel.mesh.fsdp=2'],
                       ['parallel.mode', 'pmap']),
    'rule that does not divide': (['--config.parallel.mesh.tensor=8',
                                   "--config.parallel.rules=(('Dense_1/kernel', (None, 'tensor')),)"],
                                  ['parallel.rules', 'Dense_1/kernel']),
}  # fmt: skip


@pytest.mark.parametrize('arguments, words', DEVICES.values(), ids=DEVICES)
def test_devices(runner8, tmp_path, arguments, words):
    assert_refused(runner8(VAE, f'--workdir={tmp_path}/run', *arguments), *words)
    assert not list(tmp_path.iterdir())
