"""Texts that were written for a source, against those that were to be written; BLEU and ROUGE by kept libraries.

Both libraries come with pip install 'aigc_jax[text]'. Without one of them its metric is left out, with a note.
"""

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np

from aigc_jax.core.notes import note
from aigc_jax.metrics import code_bleu
from aigc_jax.metrics.intervals import Measurement, ratio, wilson


def scores(written: Sequence[str], wanted: Sequence[str], are_code: Sequence[bool] = ()) -> dict[str, Measurement]:
    """exact_match, the share of texts that are as wanted, but for white space at both ends; bleu, 0 to 100, of all
    together (Papineni et al. 2002, as sacrebleu has it: BLEU-4, its tokens of 13a, exponential smoothing); rouge_l, the
    F measure of the longest common subsequence of words (Lin 2004), as a mean over texts. are_code: of each,
    whether it is to be Python (none where it is empty); over these are those of code_bleu.scores."""
    pairs = list(zip(written, wanted, strict=True))
    found = {'exact_match': wilson(sum(a.strip() == b.strip() for a, b in pairs), len(pairs))}
    measured = names()
    for metric, (library, score) in _SCORES.items():
        if metric in measured:
            found[metric] = score(pairs)
        else:
            note(f"{metric}: not measured, for {library} is not installed; pip install 'aigc_jax[text]'")
    code = [pair for pair, is_code in zip(pairs, are_code, strict=bool(are_code)) if is_code]
    return found | (code_bleu.scores(*zip(*code, strict=True)) if code else {})


def names(are_code: bool = False) -> list[str]:
    """The metrics of `scores`, with the libraries that there are."""
    kept = [metric for metric, (library, _) in _SCORES.items() if importlib.util.find_spec(library)]
    return ['exact_match', *kept, *(code_bleu.NAMES if are_code else ())]


def _bleu(pairs: Sequence[tuple[str, str]]) -> Measurement:
    import sacrebleu

    written, wanted = zip(*pairs, strict=True)
    return {'value': sacrebleu.corpus_bleu(written, [wanted]).score, 'n': len(pairs)}


def _rouge_l(pairs: Sequence[tuple[str, str]]) -> Measurement:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(['rougeL'])
    return ratio(np.array([scorer.score(wanted, written)['rougeL'].fmeasure for written, wanted in pairs]))


_SCORES: dict[str, tuple[str, Callable[..., Measurement]]] = {
    'bleu': ('sacrebleu', _bleu), 'rouge_l': ('rouge_score', _rouge_l),
}  # fmt: skip
