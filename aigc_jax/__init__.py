"""aigc_jax: a pure-functional JAX research codebase for generative models.

`train`, `evaluate`, `sample`, `generate` and `export` do what the command line does. `open` gives a trained model that
works on raw arrays and text. `from_pretrained` gives that of a checkpoint of Hugging Face. `load` gives the task and
the state of a run. All of them lie in aigc_jax/api.py, which is imported when one of them is first used.
"""

__version__ = '0.1.0'
__all__ = ['evaluate', 'export', 'from_pretrained', 'generate', 'load', 'open', 'sample', 'train']


def __getattr__(name: str):
    if name in __all__:
        from aigc_jax import api

        return getattr(api, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def command() -> None:
    """The installed command `aigc-jax`. It does what `python -m aigc_jax.main` does. But -m also lets Python import
    modules of the folder that it is started in, such as an absl.py that somebody put there."""
    import runpy

    runpy.run_module('aigc_jax.main', run_name='__main__', alter_sys=True)
