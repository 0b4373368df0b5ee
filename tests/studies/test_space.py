"""Sweeps as data: the combinators."""

import pytest

from aigc_jax.studies.space import Range, chain, product, random, values, zipped


def test_product_zip_and_chain_nest():
    rates, losses = values('rate', [1, 2]), values('loss', ['a', 'b'])
    assert product(rates, losses) == [
        {'rate': 1, 'loss': 'a'}, {'rate': 1, 'loss': 'b'}, {'rate': 2, 'loss': 'a'}, {'rate': 2, 'loss': 'b'},
    ]  # fmt: skip
    assert zipped(rates, losses) == [{'rate': 1, 'loss': 'a'}, {'rate': 2, 'loss': 'b'}]
    nested = product(chain(zipped(rates, losses), [{'loss': 'c'}]), values('depth', [3]))
    assert nested == [
        {'rate': 1, 'loss': 'a', 'depth': 3}, {'rate': 2, 'loss': 'b', 'depth': 3}, {'loss': 'c', 'depth': 3},
    ]  # fmt: skip
    assert product() == [{}] and chain() == []


def test_two_sweeps_of_one_field_are_refused():
    with pytest.raises(ValueError, match='two sweeps set rate'):
        product(values('rate', [1]), values('rate', [2]))
    with pytest.raises(ValueError, match='2 and 3 rows'):
        zipped(values('a', [1, 2]), values('b', [1, 2, 3]))
    with pytest.raises(ValueError, match='one text'):
        values('loss', 'hinge')


def test_ranges():
    assert Range(1e-4, 1e-2, log=True).points(3) == [1e-4, 1e-3, 1e-2]
    assert Range(0.0, 1.0).points(5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert Range(1, 8, integer=True, log=True).points(4) == [1, 2, 4, 8]
    assert Range(1, 2, integer=True).points(5) == [1, 2]
    die = [Range(1, 6, integer=True).at(k / 600) for k in range(600)]
    assert [die.count(k) for k in range(1, 7)] == [100] * 6
    for wrong in ((2, 1), (0, float('inf'))):
        with pytest.raises(ValueError, match='holds nothing'):
            Range(*wrong)
    with pytest.raises(ValueError, match='logarithm'):
        Range(0, 1, log=True)


def test_random_rows_keep_their_draws_where_the_search_grows():
    space = {'rate': Range(1e-5, 1e-1, log=True), 'loss': ['a', 'b', 'c']}
    few, many = random(10, space, seed=1), random(3000, {'depth': Range(1, 4, integer=True), **space}, seed=1)
    assert few == [{name: row[name] for name in space} for row in many[:10]]
    assert few != random(10, space, seed=2)
    assert all(1e-5 <= row['rate'] <= 1e-1 for row in many)
    assert abs(sum(row['rate'] < 1e-3 for row in many) / 3000 - 0.5) < 0.03  # even in the logarithm
    assert len(random(6, {'loss': 'ab', 'depth': Range(1, 3, integer=True)})) == 6
    with pytest.raises(ValueError, match='140 draws gave 6 different rows, not 7'):
        random(7, {'loss': 'ab', 'depth': Range(1, 3, integer=True)})
    assert all(abs(sum(row['loss'] == loss for row in many) / 3000 - 1 / 3) < 0.03 for loss in 'abc')
