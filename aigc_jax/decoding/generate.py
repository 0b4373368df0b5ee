"""Text from a model: prompts in, texts out, with their likelihood and how each ended."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import arguments, optim, parallel, rng
from aigc_jax.core import progress as progress_lib
from aigc_jax.core.capabilities import Seq2Seq, WritesText
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra, TrainState
from aigc_jax.data import Tokenizer
from aigc_jax.decoding.grammars import Grammar
from aigc_jax.decoding.language import TextDecoder
from aigc_jax.decoding.sampling import Sampling, pad_prompts
from aigc_jax.decoding.speculation import draft_table

_MOST = 200  # tokens of a text where nothing else is said
_STREAMED = 8  # tokens that are written between two looks at them
_SUMS = 'length', 'log_prob', 'ruled_out'  # of the tokens of a text

Stream = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Text:
    """What was written between prompt and suffix.

    nats: −log p of `tokens` under the model; ended: 'end' (of a document, or of what a grammar allows), 'stop' (before
    the stop text), 'closed' (led to its end by a grammar, since few tokens were left), 'length' (cut off) or 'trimmed'
    (cut off, and back to where a grammar lets it end); ruled_out: −log of the probability that a grammar left, summed
    over tokens, those that came too late to end in time ruled out too; calls: of the model; goes_on: whether the text
    goes on from the prompt, or is one of its own that was written for it (core.capabilities.Seq2Seq).
    """

    prompt: str
    text: str
    tokens: np.ndarray
    nats: float
    ended: str
    ruled_out: float
    calls: int
    suffix: str
    goes_on: bool = True

    def __str__(self) -> str:
        return self.prompt + self.text + self.suffix if self.goes_on else self.text


class Generator:
    """Writes with one model. Raises UserError for settings that do not fit it or each other, by the names of the flags.

    how: how tokens are drawn, an attribute. chunk: texts that are written at once; they do not depend on it. placement:
    of what all devices share, where there are several.
    max_new_tokens: the most that a text gets; None: _MOST, but no more than fit where a beam search or a draft goes no
    further.
    stop: the text to stop before. suffix: what stands behind the text, for a model trained to fill in.
    grammar: of prompt and text together, or of a text of its own, by name or file (grammars.Grammar). draft: tokens
    (N,), such as the training text's, whose n-grams propose tokens, so that the same text needs fewer calls of the
    model.
    """

    def __init__(
        self, model: WritesText, tokenizer: Tokenizer, how: Sampling, max_new_tokens: int | None = None, *,
        stop: str = '', suffix: str = '', grammar: str = '', draft: np.ndarray | None = None, chunk: int = 64,
        placement: jax.sharding.Sharding | None = None,
    ):  # fmt: skip
        self._model, self._tokenizer = model, tokenizer
        self._decoder = TextDecoder(self._model)
        how.check(self._model.vocab_size)
        if how.beam_size > 1 and (
            given := [n for n, v in (('stop', stop), ('grammar', grammar), ('draft', draft is not None)) if v]
        ):
            raise UserError(f'{given[0]}: a beam search has none; leave out one of the two')
        if draft is not None and grammar:
            raise UserError('draft: it proposes several tokens at once, and a grammar allows one at a time')
        self.goes_on = not isinstance(model, Seq2Seq)  # from its prompt; else it is a text of its own
        for name, value in (('draft', draft is not None), ('suffix', suffix)):
            if value and not self.goes_on:
                raise UserError(f'{name}: is of a text that goes on from its prompt; this model writes one of its own')
        if draft is not None and not self._model.columns:
            raise UserError('draft: this model cannot take back what it has read, as no recurrent one; leave it out')
        if suffix and grammar:
            raise UserError('suffix: a grammar is of prompt and text, and nothing stands behind it; leave one out')
        if suffix and self._tokenizer.fim is None:
            raise UserError('suffix: this model was not trained to fill in (data.fim_rate)')
        self.how, self._most, self._stop, self._suffix = how, max_new_tokens, stop, suffix
        stop_tokens = tuple(self._encode(stop, 'stop').tolist())
        # But of bytes and characters, other tokens may spell it, so the text itself is looked at.
        self._read_stop = bool(stop) and self._tokenizer.kind not in ('byte', 'char')
        self._stop_tokens = () if self._read_stop else stop_tokens
        if draft is not None and self._read_stop:
            raise UserError(
                f'stop: a draft writes several tokens of kind {self._tokenizer.kind} at once; leave one out'
            )
        self._grammar = Grammar(grammar, self._tokenizer) if grammar else None
        self._table = None if draft is None else draft_table(draft, self._model.vocab_size)
        self._chunk = chunk
        self._key = jax.jit(_key, out_shardings=placement)

    def generate(
        self, state: TrainState, prompts: Sequence[str], num_samples: int, seed: int, stream: Stream | None = None
    ) -> list[Text]:
        """num_samples texts for each prompt; text i of all is a function of (seed, i), whatever stands beside it.

        stream: is called with what is certain of the text while it grows, and in the end with all; of a single text.
        """
        prompts = arguments.texts('prompt', prompts)
        num_samples = arguments.checked('n', num_samples, arguments.N)
        seed = arguments.checked('seed', seed, arguments.SEED)
        if not prompts:
            raise UserError('generate: 0 prompts; give 1 or more')
        if stream is not None and not (callable(stream) and len(prompts) == num_samples == 1):
            raise UserError('stream: is a function that is called with a single text; give one prompt, and n=1')
        context, encoded = self._model.context, [self._prompt(prompt) for prompt in prompts]
        for prompt, tokens in zip(prompts, encoded, strict=True):
            if context and len(tokens) >= context:
                raise UserError(
                    f'prompt: {_shortened(prompt)} has {len(tokens)} tokens and leaves no room in the {context} of '
                    'the model; give its last part'
                )
        longest = max(map(len, encoded))
        bounded = bool(context) and (self.how.beam_size > 1 or self._table is not None)
        most = self._most or (min(_MOST, context - longest) if bounded else _MOST)
        beyond = bool(context) and longest + most > context
        if beyond and bounded:
            raise UserError(
                f'max_new_tokens={most}: and {longest} of the prompt are more than the {context} of the model; '
                f'a beam search or a draft goes no further, {context - longest} fit'
            )
        if beyond and self._suffix:
            raise UserError(
                f'max_new_tokens={most}: and {longest} of prompt and suffix are more than the {context} of the '
                f'model, which would forget what to fill in; {context - longest} fit'
            )
        if self._grammar:
            self._fits_grammar(prompts, most)
        rows = [[(prompt, tokens)] * num_samples for prompt, tokens in zip(prompts, encoded, strict=True)]
        # What a text beyond the context has forgotten depends on the length of its prompt: so that it does not depend
        # on the texts beside it, each prompt is then for itself. Else all are together, in one shape, so one program.
        groups = rows if beyond else [[row for group in rows for row in group]]
        model = optim.averaged(state.params, state.opt), Extra(state.stats, state.carry)
        key, texts = self._key(np.int32(seed)), []
        for group in groups:
            longest = max(len(tokens) for _, tokens in group)
            for begin in progress_lib.each(range(0, len(group), self._chunk), f'writing {len(group)} texts'):
                part = group[begin : begin + self._chunk]
                tokens, start = pad_prompts([*(tokens for _, tokens in part), np.zeros(longest, np.int32)])
                index = len(texts) + np.arange(len(part), dtype=np.int32)
                shown = stream and (lambda tokens, prompt=part[0][0]: stream(self._certain(prompt, tokens)))
                matchers = self._grammar and self._matchers([text for text, _ in part])
                found = self._write(*model, tokens[:-1], start[:-1], key, index, most, beyond, shown, matchers)
                for (prompt, _), *one in zip(part, *parallel.fetch(found), strict=True):
                    texts.append(self._ended(prompt, *one))
        if stream:
            stream(texts[0].text)
        return texts

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that stand before and behind those of a prompt."""
        return (self._tokenizer.before_prompt, ()) if self.goes_on else self._model.frame

    @property
    def before_text(self) -> tuple[int, ...]:
        """The tokens that a text of its own begins with and that are no part of it."""
        return () if self.goes_on else self._tokenizer.target_frame.before

    @property
    def reads_special(self) -> bool:
        """Whether a special token that is written in a prompt is that token; else it is text as any."""
        return not self.goes_on and bool(self._tokenizer.sentinels)

    def sizes(self, block: int) -> tuple[int, int]:
        """(the most tokens of a prompt, its frame included, the most of a text) of a program that `traced` makes.

        block: of a training example, which tells the first where the model reads any number. Else both together are
        what it reads, and where nothing is said a text has half of that, _MOST at most.
        """
        context = self._model.context
        most = self._most or (min(_MOST, max(1, context // 2)) if context else _MOST)
        if context and most >= context:
            raise UserError(
                f'max_new_tokens={most}: and a prompt are more than the {context} tokens of the model, and an exported '
                f'sampler goes no further; {context - 1} fit'
            )
        return (context - most if context else block), most

    def traced(self, params, extra: Extra, seed, prompt, start, max_new_tokens: int) -> tuple[jax.Array, jax.Array]:
        """What `generate` writes, as one program: tokens (n, max_new_tokens), and how many there are of each text (n,),
        its end included.

        prompt (n, P), filled on the left up to start (n,), is framed. A row without a token gets the model's `bos`.
        """
        n, columns = prompt.shape
        is_last = jnp.arange(columns) == columns - 1
        prompt = jnp.where((start >= columns)[:, None] & is_last, self._model.bos, prompt)
        start, index = jnp.clip(start, 0, columns - 1), jnp.arange(n, dtype=jnp.int32)
        found = self._decoder.written(
            params, extra, prompt, start, _key(seed), index, self.how, max_new_tokens, self._stop_tokens
        )
        return found.tokens, found.length

    def _fits_grammar(self, prompts, most) -> None:
        """Raises UserError for a prompt that begins no text of the grammar, or none that ends within so many tokens."""
        least = self._matchers(prompts).least()
        for prompt, tokens in zip(prompts, least, strict=True):
            if tokens > most:
                raise UserError(
                    f'max_new_tokens={most}: a text of grammar={self._grammar.name} that begins with '
                    f'{_shortened(prompt)} needs {tokens} more tokens to end'
                )

    def _matchers(self, prompts):
        """Of the grammar, which have read what of each text is there."""
        return self._grammar.begin([self._encode(prompt if self.goes_on else '', 'prompt') for prompt in prompts])

    def _write(self, params, extra, prompt, start, key, index, most, beyond, stream, matchers):
        """(tokens, length, log_prob, ruled_out, calls of the model, how it ended but for its tokens) of each text."""
        n = len(prompt)
        arguments = params, extra, prompt, start, key, index
        rest = self.how, most, self._stop_tokens
        if matchers or beyond or stream or self._read_stop:
            return self._in_parts(*arguments, most, stream, matchers)
        if self._table is not None:
            found, calls = self._decoder.speculate(*arguments, self._table, *rest)
        else:
            found = self._decoder.generate(*arguments, *rest)
            calls = found.length
        return *found, np.zeros(n), calls, np.full(n, 'length')

    def _in_parts(self, params, extra, prompt, start, key, index, most, stream, matchers):
        """As `_write`, some tokens at a time; between them the host looks at them, or makes room in the context."""
        text, (n, length) = self._model, prompt.shape
        columns = min(text.context or length + most, length + most)

        def read(prompt, start):
            return self._decoder.prefill(params, extra, prompt, start, self.how, most, columns - prompt.shape[1])

        progress, full = read(prompt, start), columns - length  # tokens after which no column is left
        ended, t = np.zeros(n, bool), 0
        kept = [jnp.zeros_like(getattr(progress, name)) for name in _SUMS] if matchers else []
        while t < most and not (done := parallel.fetch(progress.done)).all():
            alive = ~done
            until, allowed = min(most, full), None
            if matchers:
                allowed = matchers.allowed(alive, most - t)
                stuck = alive & ~allowed.any(axis=1)  # a whole text: nothing can follow, and no token says so
                if stuck.any():
                    ended |= stuck
                    progress = progress._replace(done=progress.done | stuck)
                    continue
            elif self._read_stop:
                until = min(until, t + 1)
            elif stream:
                until = min(until, t + _STREAMED)
            progress = self._decoder.decode(
                params, extra, progress, key, index, until, self.how, self._stop_tokens, allowed
            )
            t = int(parallel.fetch(progress.t))
            if matchers:
                matchers.consume(parallel.fetch(progress.tokens[:, t - 1]), alive)
                ended |= alive & matchers.finished()
                progress = progress._replace(done=progress.done | ended)
                whole = alive & matchers.may_end()  # of a text that is cut off the last such place counts
                kept = [jnp.where(whole, getattr(progress, name), old) for name, old in zip(_SUMS, kept, strict=True)]
            if self._read_stop:
                reach = max(0, t - len(self._stop.encode()))  # a token is a byte or more
                tokens = parallel.fetch(progress.tokens[:, reach:t])
                met = [alive[i] and self._stop in self._tokenizer.decode(tokens[i], True) for i in range(n)]
                progress = progress._replace(done=progress.done | np.array(met))
            if stream:
                stream(np.asarray(progress.tokens[0, : progress.length[0]]))
            if t == full < most:  # the second half of what the context holds is read again
                half = text.context // 2
                everything = np.concatenate([prompt, parallel.fetch(progress.tokens[:, :t])], axis=1)
                again = read(everything[:, -half:], np.zeros(n, np.int32))
                progress = progress._replace(logits=again.logits, state=again.state)
                full = t + columns - half
        calls, sums = progress.length, [getattr(progress, name) for name in _SUMS]
        if not matchers:
            return progress.tokens, *sums, calls, np.full(n, 'length')
        cut = ~parallel.fetch(progress.done)
        if text.eos is None:  # no token says that a text ends: the last place where it may is its end
            ended |= cut & matchers.may_end()
        trimmed = cut & ~ended & (parallel.fetch(kept[0]) > 0)
        sums = [jnp.where(trimmed, at_end, all_of) for at_end, all_of in zip(kept, sums, strict=True)]
        how = np.where(trimmed, 'trimmed', 'length')
        return progress.tokens, *sums, calls, np.where(ended, np.where(matchers.closed, 'closed', 'end'), how)

    def _encode(self, text: str, flag: str, special: bool = False) -> np.ndarray:
        try:
            text.encode()
            return self._tokenizer.encode(text, special)
        except UnicodeEncodeError as error:  # bytes that are no UTF-8 come as lone surrogates, as halves of letters do
            raise UserError(f'{flag}: character {error.start + 1}, {text[error.start]!r}, is no UTF-8') from None
        except UserError as error:
            raise UserError(f'{flag}: {error}') from None

    def _prompt(self, text: str) -> np.ndarray:
        """The tokens to read; a prompt that begins a text follows what stands before each document."""
        before, behind = self.frame
        if not self.goes_on:
            tokens = self._encode(text, 'prompt', special=self.reads_special)
            source = np.concatenate([before, tokens, behind]).astype(np.int32)
            if not len(source):
                raise UserError('prompt: is empty; it is the source that this model writes a text for')
            return source
        tokens = self._encode(text, 'prompt')
        if self._suffix:
            first, between, after = self._tokenizer.fim
            tokens = [[first], tokens, [between], self._encode(self._suffix, 'suffix'), [after]]
            tokens = np.concatenate(tokens)
        if not before and not len(tokens):
            before = (self._model.bos,)
        return np.concatenate([np.array(before, np.int32), tokens]).astype(np.int32)

    def _certain(self, prompt: str, tokens: np.ndarray) -> str:
        """The text of a part of the tokens, as it stands behind the prompt, without what later ones may change."""
        text = self._decode(prompt, tokens[tokens != self._tokenizer.end])
        if self._stop in text and self._stop:
            return self._behind(prompt, text[: text.index(self._stop)])
        kept = text.rstrip('\ufffd')  # a letter of which some bytes are still to come
        begun = (n for n in range(len(self._stop) - 1, 0, -1) if kept.endswith(self._stop[:n]))
        return self._behind(prompt, kept[: len(kept) - next(begun, 0)])

    def _decode(self, prompt: str, tokens: np.ndarray) -> str:
        """Without the tokens that a tokenizer of Hugging Face has before each text, where that is one of its own."""
        before = self.before_text
        is_framed = len(before) and tuple(tokens[: len(before)].tolist()) == before
        tokens = tokens[len(before) :] if is_framed else tokens
        return self._tokenizer.decode(tokens, behind=self.goes_on and bool(prompt))

    def _behind(self, prompt: str, text: str) -> str:
        """The text as it stands behind the prompt: words with a space between."""
        apart = self.goes_on and self._tokenizer.kind == 'word' and prompt[-1:].strip() and text[:1].strip()
        return ' ' * bool(apart) + text

    def _ended(self, prompt: str, tokens, length, log_prob, ruled_out, calls, ended) -> Text:
        tokens, ended = tokens[:length], str(ended)
        kept = tokens
        if len(tokens) and tokens[-1] == self._tokenizer.end:
            kept, ended = tokens[:-1], 'closed' if ended == 'closed' else 'end'
        text = self._decode(prompt, kept)
        if self._stop and self._stop in text:
            text, ended = text[: text.index(self._stop)], 'stop'
        text = self._behind(prompt, text)
        return Text(
            prompt, text, tokens, -float(log_prob), ended, float(ruled_out), int(calls), self._suffix, self.goes_on
        )


def summary(texts: list[Text]) -> str:
    """How the texts ended and what they cost, in one line."""
    written = sum(len(text.tokens) for text in texts)
    counts = Counter(text.ended for text in texts)
    words = {
        'end': 'ended', 'closed': 'led to an end by the grammar where few tokens were left',
        'stop': 'reached the stop text', 'length': 'cut off by length',
        'trimmed': 'cut off by length, back to where the grammar allows an end',
    }  # fmt: skip
    ends = ', '.join(f'{counts[ended]} {words[ended]}' for ended in words if counts[ended])
    a_token = lambda name: sum(getattr(text, name) for text in texts) / max(written, 1)
    nats, ruled_out = a_token('nats'), a_token('ruled_out')
    cost = f', {ruled_out:.4g} nats a token ruled out by the grammar' if ruled_out else ''
    calls = sum(text.calls for text in texts)
    drafted = f', {written / calls:.3g} tokens a call of the model' if calls < written else ''
    sizes = f'{_several(len(texts), "text")} ({ends}), {_several(written, "token")}'
    return f'{sizes}, {nats:.4g} nats a token{cost}{drafted}'


def _key(seed) -> jax.Array:
    return rng.context(seed, 'generate', 0, jnp.arange(1)).key


def _several(n: int, noun: str) -> str:
    return f'{n} {noun}{"s" * (n != 1)}'


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:27] + '…')
