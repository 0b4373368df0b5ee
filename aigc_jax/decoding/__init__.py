"""Text from a language model with a cache: sampling, beam search, speculative decoding, as compiled programs."""

from aigc_jax.decoding.beam import beam_search
from aigc_jax.decoding.language import TextDecoder
from aigc_jax.decoding.sampling import Generated, Sampling, from_config, pad_prompts, sample
from aigc_jax.decoding.speculation import draft_table

__all__ = [
    'Generated', 'Sampling', 'TextDecoder', 'beam_search', 'draft_table', 'from_config', 'pad_prompts', 'sample',
]  # fmt: skip
