"""The two ways in which a command ends badly, each with its exit code."""


class UserError(Exception):
    """The user's mistake: a flag, a config field, a file, a checkpoint. Exit code 2.

    The message is one to three lines that name the thing and the mend; it is printed without a traceback.
    """

    exit_code = 2


class RunError(Exception):
    """The run failed through no mistake in its command: NaN, full disk, unreadable data. Exit code 1."""

    exit_code = 1


def check_fields(config, known, what: str, owner: str = '') -> None:
    """Raises UserError unless the group `config` holds the fields `known`, each of them and no others.

    what: the group's name; owner: what has the fields, where it is not the group (a module's name).
    """
    owner = owner or what
    for name in config:
        if name not in known:
            raise UserError(f'{what}.{name}: {owner} has no such field{near(name, known)}')
    for name in known:
        if name not in config:
            raise UserError(f'{what}.{name}: this field is missing; {owner} has {", ".join(known)}')


def near(word: str, known) -> str:
    """'; did you mean a, b?' for the known names near to `word`, else '; known: …'."""
    import difflib

    known = sorted(map(str, known))
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f'; did you mean {", ".join(close)}?' if close else f'; known: {", ".join(known)}'
