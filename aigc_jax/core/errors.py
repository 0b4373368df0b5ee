"""The two ways in which a command ends badly, each with its exit code."""

import unicodedata

_MOST_LETTERS = 4000  # of a line on stderr


class UserError(Exception):
    """The user's mistake: a flag, a config field, a file, a checkpoint. Exit code 2.

    The message is one to three lines that name the thing and the mend; it is printed without a traceback. It names a
    flag without its dashes, since Python has the same thing as an argument.
    """

    exit_code = 2


class RunError(Exception):
    """The run failed through no mistake in its command: NaN, full disk, unreadable data. Exit code 1."""

    exit_code = 1


def printable(message: str) -> str:
    """A message that is safe to show on a terminal: a name in it may be very long, or hold characters that control the
    terminal or reverse the order of others."""
    lines = []
    for line in message.split('\n'):
        if not line.isprintable():
            line = ''.join(c if c.isprintable() or unicodedata.category(c) == 'Zs' else ascii(c)[1:-1] for c in line)
        lines.append(line if len(line) <= _MOST_LETTERS else line[:_MOST_LETTERS] + '…')
    return '\n'.join(lines)


def one_line(error: BaseException) -> str:
    """The kind and the first words of an error that another library raised."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]


def unreadable(error: OSError) -> str:
    """Why a file or a folder cannot be read, and the mend where it is a permission."""
    why = f'cannot be read: {error.strerror or error}'
    return f'{why}; make it readable for this user, as with chmod' if isinstance(error, PermissionError) else why


def cause(error: BaseException) -> str:
    """What the system says of an OSError, without its number and path; what any other error says."""
    return str(getattr(error, 'strerror', None) or error)


def first_line(error: BaseException | str) -> str:
    """Of what an error says; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).partition('\n')[0]


def check_type(name: str, value, kind: type) -> None:
    """Raises UserError unless `value`, of the field `name`, is a `kind`; a whole number serves as a float."""
    if kind is dict:
        fits = hasattr(value, 'items')  # a ConfigDict is no Mapping
    else:
        fits = isinstance(value, {float: (float, int), tuple: (tuple, list)}.get(kind, kind))
    if not fits or (isinstance(value, bool) and kind in (int, float)):
        raise UserError(f'{name}: {value!r} is {_words(type(value))}; it holds {_words(kind)}')


def _words(kind: type) -> str:
    words = {
        int: 'a whole number', float: 'a number', str: 'a text', bool: 'True or False', tuple: 'a tuple',
        dict: 'a group of fields',
    }  # fmt: skip
    return words.get(kind, kind.__name__)


def near(word, known, also=()) -> str:
    """'; did you mean a, b?' for `also` and the known names near to `word`, which may be no text, else '; known: …'."""
    import difflib

    known = sorted(map(str, known))
    close = [*also, *difflib.get_close_matches(str(word)[:100], known, n=3, cutoff=0.5)]
    if not known and not close:
        return '; there is none'
    if close:
        return f'; did you mean {", ".join(close)}?'
    return f'; known: {", ".join(one or repr(one) for one in known)}'
