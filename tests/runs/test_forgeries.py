"""Programs that would pass without being right: in the process of their tests, where each did, and across the pipe."""

import pytest

from aigc_jax.sandbox.sandbox import Program, Sandbox

SECONDS = 300  # for what ends by itself
EQUAL = 'f(0)\nassert f(2) == 4\ndone = True\n'
CLOSE = 'import math\nassert abs(f(2) - 4) < 1e-6 and math.isclose(f(2), 4)\n'
SHOWN = 'assert repr(f(2)) == "4"\n'
EVERY = 'want = 4\nassert f(2) == want\nassert all(f(x) == 2 * x for x in range(1, 9))\n'
BODY = 'import sys\ndef f(x):\n    """Twice x."""\n'  # of which what follows is the rest
UP = '    frame = sys._getframe()\n    while "end" not in frame.f_locals:\n        frame = frame.f_back\n'
ALWAYS = (
    'class Text(str):\n    __eq__ = lambda self, other: True\n    __hash__ = str.__hash__\n'
    'class Always:\n    __eq__ = __lt__ = __gt__ = lambda self, other: True\n'
    '    __sub__ = __rsub__ = __abs__ = lambda *_: 0\n'
    '    __float__ = lambda self: 4.0\n    __repr__ = lambda self: Text("always")\n'
)

# Program, and tests that it does not deserve to pass. In one process all seventeen passed.
KNOWN = {
    'the verdict, called': ('import sys; sys._getframe(1).f_locals["end"]("passed")', EQUAL),
    'the verdict, from an indented body': (f'{BODY}{UP}    frame.f_locals["end"]("passed")', EQUAL),
    'the verdict, by a traceback': (
        'try: 1 / 0\nexcept Exception as error: error.__traceback__.tb_frame.f_back.f_locals["end"]("passed")', EQUAL),
    'the verdict, by the frames of all threads': (
        'import sys\nfor frame in sys._current_frames().values():\n    while frame:\n'
        '        if "end" in frame.f_locals: frame.f_locals["end"]("passed")\n        frame = frame.f_back', EQUAL),
    'the verdict, by inspect': (
        'import inspect\nfor info in inspect.stack(0):\n'
        '    if "end" in info.frame.f_locals: info.frame.f_locals["end"]("passed")', EQUAL),
    'the verdict, written with its token': (
        f'{BODY}{UP}    import os\n    os.write(3, frame.f_locals["token"].encode() + b"\\npassed\\n")\n'
        '    os._exit(0)', EQUAL),
    'the verdict, seen by a profiler': (
        'import os, sys\ndef seen(frame, *_):\n    if frame.f_code.co_name == "end":\n'
        '        os.write(3, frame.f_locals["token"].encode() + b"\\npassed\\n")\n        os._exit(0)\n'
        'sys.setprofile(seen)\nf = int', EQUAL),
    'the verdict, reworded as it is written': (
        'import os, sys\nend = sys._getframe(1).f_locals["end"]\n'
        'end.__defaults__ = ("", lambda fd, data: os.write(fd, data.replace(b"failed", b"passed")), os._exit)\nf = int',
        EQUAL),
    'always equal': (f'{ALWAYS}f = lambda x: Always()', EQUAL),
    'always close': (f'{ALWAYS}f = lambda x: Always()', CLOSE),
    'a repr that is always equal': (f'{ALWAYS}f = lambda x: Always()', SHOWN),
    'repr replaced': (f'{ALWAYS}import builtins\nbuiltins.repr = lambda x: Text("any")\nf = lambda x: x', SHOWN),
    'abs and a module replaced': (
        'import builtins, math\nbuiltins.abs = lambda x: 0\nmath.isclose = lambda *_: True\nf = lambda x: x', CLOSE),
    'all replaced': ('import builtins\nbuiltins.all = lambda x: True\nf = lambda x: 4', EVERY),
    'what is expected, read from the tests': (
        f'{BODY}    consts = [*sys._getframe(1).f_code.co_consts, x, 0]\n    return consts[consts.index(x) + 1]',
        EQUAL),
    'what is expected, changed in the tests': (
        f'{BODY}    sys._getframe(1).f_globals.update(want=0, all=lambda x: True)\n    return 0', EVERY),
    'the tests jumped over': (
        f'{BODY}    def jump(frame, event, arg):\n'
        '        if event == "line" and frame is tests: frame.f_lineno = last\n        return jump\n'
        '    tests = sys._getframe(1)\n    last = max(n for *_, n in tests.f_code.co_lines() if n)\n'
        '    tests.f_trace = jump\n    sys.settrace(jump)', EQUAL),
}  # fmt: skip


# Across the pipe: `say` sends a frame that nobody asked for, to which the next question gets its answer.
SAY = (
    'import json, os\ndef say(x, data=None):\n    data = data or json.dumps(x).encode()\n'
    '    os.write(4, len(data).to_bytes(4, "big") + data)\n'
)
SECRET = f'f(0)\nassert f(2) == "a-{"secret"}-of-the-tests"\n'
HELD = 'assert f(2).startswith("four")\n'
MAPPED = 'assert all(map(lambda x: f(x) == 2 * x, [1, 2]))\n'
TWICE = 'r = f([2, 1])\nassert {*r} == {1, 2}\nassert all(a <= b for a, b in zip([*r], [*r][1:]))\n'
LENT = 'kept = []\nf(kept.append)\nassert f(2) == 4\n'

# Program, tests, and the statuses of which one is right.
NEW = {
    'answers before it is asked': (f'{SAY}for _ in range(99): say([True, [], 4.5])', EQUAL, 'failed'),
    'answers true to everything': (f'{SAY}for _ in range(99): say([True, [], True])', EQUAL, 'failed'),
    'passed, written to all that is open': (
        'import os\nfor fd in range(64):\n    try: os.write(fd, b"passed\\n")\n    except OSError: pass\nos._exit(0)',
        EQUAL, 'failed exited'),
    'passed, told of itself': ('import os\nos.write(5, b"passed\\n")\nos._exit(0)', EQUAL, 'exited'),
    'a status of its own': ('import os\nos.write(5, b"solved\\nwell done")\nos._exit(0)', EQUAL, 'exited'),
    'an end, by the frame above': (f'{BODY}{UP.replace("f_locals", "f_globals")}    frame.f_globals["end"]("passed")',
        EQUAL, 'exited'),
    'no JSON': (f'{SAY}say(0, b"\\xff" * 9)', EQUAL, 'failed'),
    'no list': (f'{SAY}say({{"a": 1}})', EQUAL, 'failed'),
    'an object within': (f'{SAY}say([True, [], {{"__class__": "x"}}])', EQUAL, 'failed'),
    'an unknown tag': (f'{SAY}say([True, [], ["eval", "4"]])', EQUAL, 'failed'),
    'a builtin of the tests': (f'{SAY}say([True, [], 1]); say([True, [], ["builtin", "exec"]])', EQUAL, 'failed'),
    'an object of the tests': (f'{SAY}say([True, [], ["yours", 0]])', EQUAL, 'failed'),
    'a number of nothing': (f'{SAY}say([True, [], ["r", -1]])', EQUAL, 'failed'),
    'changes of nothing': (f'{SAY}say([True, [[7, ["l"]]], 4])', EQUAL, 'failed'),
    'a change into another kind': (
        f'{SAY}f = lambda x: say([True, [[0, ["d"]]], 4])', 'assert f([1]) == 4\n', 'failed'),
    'questions': (f'{SAY}say(["call", 0, ["t", ["t"], ["d"]]])', EQUAL, 'failed'),
    'questions about attributes': (
        f'{SAY}def f(x):\n    if callable(x): say(["get", 0, ["t", "__globals__"]])\n    return 0', LENT, 'failed'),
    'what was lent, called again': (
        f'{SAY}held = []\ndef f(x):\n    held.append(x)\n    for _ in range(9): held[0](4)\n    return 0', LENT,
        'failed'),
    'a frame that is too long': ('import os\nos.write(4, b"\\xff" * 9)', EQUAL, 'failed'),
    'a frame without an end': (
        'import os\nos.write(4, b"\\0\\0\\1\\0" + b"[" * 9)\nwhile True: pass', EQUAL, 'timeout'),
    'a flood': (f'{SAY}while True: say([True, [], 4])', EQUAL, 'failed timeout'),
    'nested too deep': (f'{SAY}say(0, b"[" * 100_000)', EQUAL, 'failed'),
    'nested deep': ('x = 4\nfor _ in range(1000): x = [x]\nf = lambda _: x', EQUAL, 'failed'),
    'a list within itself': ('x = []\nx.append(x)\nf = lambda _: x', 'assert f(0) == f(1) == [f(2)]', 'failed'),
    'a huge number': ('f = lambda x: 1 << (1 << 24)', EQUAL, 'failed'),
    'a number of many digits': (f'{SAY}say(0, b"[true,[]," + b"4" * 9999 + b"]")', EQUAL, 'failed'),
    'a list without an end': ('f = lambda x: [4] * (1 << 23)', EQUAL, 'failed memory'),
    'keys of one hash': ('f = lambda x: dict.fromkeys(i * (2**61 - 1) for i in range(1 << 15))', EQUAL, 'timeout'),
    'a lone surrogate': ('f = lambda x: "\\udc804"', SHOWN, 'failed'),
    'a text of its own kind': (f'{ALWAYS}f = lambda x: Text("4!")', EQUAL + SHOWN, 'failed'),
    'an error that speaks': (
        'class Error(Exception):\n    def __str__(self): return "passed\\n" * 9\n    __repr__ = __str__\n'
        'def f(x): raise Error([])', EQUAL, 'failed'),
    'an error of any name': (f'{SAY}say([False, [], ["t", "KeyboardInterrupt", ["t"]]])', EQUAL, 'failed'),
    'no number': ('f = lambda x: float("nan")', CLOSE, 'failed'),
    'an end of the loop over calls': ('def f(x): raise StopIteration', MAPPED, 'failed'),
    'an end of the loop, said': (
        f'{SAY}for _ in range(2): say([True, [], ["mine", 0, True, False]])\n'
        'for _ in range(9): say([False, [], ["t", "StopIteration", ["t"]]])', MAPPED, 'failed'),
    'other values at the next look': ('f = lambda x: iter(x)', TWICE, 'failed'),
    'a text that agrees with everything': (
        'class T:\n    startswith = lambda *_: True\nf = lambda x: T()', HELD, 'failed'),
    'a search for the tests': (
        f'{BODY}    frame, seen, it = sys._getframe(), [], "".join(["a-sec", "ret"])\n    while frame:\n'
        '        seen += [*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts]\n'
        '        frame = frame.f_back\n    for module in [*sys.modules.values()]: seen += vars(module).values()\n'
        '    while seen:\n        x = seen.pop()\n'
        '        if type(x) is str and it in x: return x[x.index(it) :].split(\'"\')[0]\n'
        '        seen += x.values() if type(x) is dict else x if type(x) in (list, tuple) else []\n', SECRET, 'failed'),
    'an end in the middle of a call': ('import os\nf = lambda x: os._exit(0)', EQUAL, 'exited'),
    'the pipe closed in a call': (
        'import os\ndef f(x):\n    os.closerange(0, 64)\n    while True: pass', EQUAL, 'timeout'),
    'prints without an end in a call': ('def f(x):\n    while True: print(x)', EQUAL, 'output'),
    'prints too much and is right': ('f = lambda x: print("x" * 99_999) or 2 * x', EQUAL, 'output'),
    'forks in a call': ('import os\nf = lambda x: os.fork() and 4', EQUAL, 'forbidden'),
}  # fmt: skip


@pytest.fixture(scope='module')
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


def test_the_seventeen_known_forgeries_do_not_pass(sandbox):
    assert len(KNOWN) == 17
    found = sandbox.run([Program(text, tests, ('f',)) for text, tests in KNOWN.values()], SECONDS)
    assert not {name: result for name, result in zip(KNOWN, found, strict=True) if result.passed}
    # Nor because nothing passes.
    right = [Program('f = lambda x: 2 * x', tests, ('f',)) for tests in (EQUAL, CLOSE, SHOWN, EVERY)]
    assert all(result.passed for result in sandbox.run(right, SECONDS))


def test_forgeries_across_the_pipe_do_not_pass(sandbox):
    found = {}
    for seconds in (2, SECONDS):  # those that never end by themselves, and the others, however slow the machine is
        some = {name: how for name, how in NEW.items() if ('timeout' in how[2]) == (seconds == 2)}
        results = sandbox.run([Program(text, tests, ('f',)) for text, tests, _ in some.values()], seconds)
        found |= dict(zip(some, results, strict=True))
    assert len(found) == len(NEW)
    assert not {name: result for name, result in found.items() if result.status not in NEW[name][2].split()}
    right = {
        '4 if x == 2 else "four"': HELD.replace('f(2)', 'f(3)'), '2 * x': MAPPED, 'sorted(x)': TWICE,
        '"a-secret-of-the-tests"': SECRET, 'x(4) if callable(x) else 4': LENT,
    }  # fmt: skip
    results = sandbox.run([Program(f'f = lambda x: {text}', tests, ('f',)) for text, tests in right.items()], SECONDS)
    assert all(result.passed for result in results), results
