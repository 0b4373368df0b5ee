"""Claims: a mistake in a study file is found when the file is read."""

import pytest

from aigc_jax import study, sweep
from aigc_jax.core.errors import UserError
from aigc_jax.studies import planning, registration

HEAD = 'from aigc_jax.studies.claims import Claim, Published, Study, Versus\n'


@pytest.mark.parametrize(
    'own, words',
    [
        ("Claim('a', 'x', 'c.py', 'm', 'max', reach='5')", "Claim a: reach='5' is a str, not float or nothing"),
        ("Claim('a', 'x', 'c.py', 'm', 'max', 'b')", "Claim a: expected='b' is a str, not Published or Versus"),
        ("Claim('a', 'x', 'c.py', 'm', 'max', tune='b')", "Claim a: tune='b' is a str, not Sequence"),
        ("Claim('a', 'x', 'c.py', 'm', 'max', Published('5', 'table 1', 1.0))", "Published: value='5' is a str"),
        ("Claim('a', 'x', 'c.py', 'm', 'max', seeds=True)", "Claim a: seeds='True' is a bool, not int or nothing"),
        ("Claim('a', 'x', 'c.py', 'm', 'max')], seeds=2.5, pareto=[", "Study: seeds='2.5' is a float, not int"),
        ("'a'", "Study: claims has 'a', which is no Claim"),
        ("Claim('a', 'x', 'c.py', 'm', 'max', seeds=5)], most_seeds=4, pareto=[", 'most_seeds=4, but a claim has 5'),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_before_the_first_run(tmp_path, own, words):
    path = tmp_path / 'own.py'
    path.write_text(f"{HEAD}def study(): return Study('t', [{own}])")
    with pytest.raises(UserError) as caught:
        planning.load(str(path))
    assert words in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'door, record, words',
    [
        (study, 'config.json', 'is the folder of a run; name another for the study'),
        (study, 'sweep.json', 'is the folder of a sweep; name another for the study'),
        (sweep, 'study.json', 'is the folder of a study; name another for the sweep'),
    ],
)
def test_the_folder_of_something_else_is_refused(tmp_path, capsys, door, record, words):
    (tmp_path / record).write_text('{}')
    with pytest.raises(SystemExit) as ended:
        door.main([door.__name__, '--config=own.py', '--dry_run', f'--workdir={tmp_path}'])
    assert ended.value.code == 2 and words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [record]


def test_a_registration_after_the_first_run_says_so(tmp_path):
    record = registration.register(tmp_path, 'abc', None)
    assert registration.note(record, 'abc').endswith(' before its first run')
    (tmp_path / 'flow-1' / 'seed-0').mkdir(parents=True)
    (tmp_path / 'flow-1' / 'seed-0' / 'config.json').write_text('{}')
    assert registration.register(tmp_path, 'abc', None) == record
    (tmp_path / 'study.json').unlink()
    for _ in range(2):
        record = registration.register(tmp_path, 'def', None)
        assert registration.note(record, 'def').endswith(' after its first run')
