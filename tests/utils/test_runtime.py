"""Work that is done ahead."""

from __future__ import annotations

import pytest

from utils.runtime import prefetch


def test_results_come_in_order_and_few_are_prefetched():
    started = []

    def double(n):
        started.append(n)
        return 2 * n

    results = prefetch(double, iter(range(100)), threads=3)
    assert next(results) == 0
    assert len(started) <= 5
    assert list(results) == [2 * n for n in range(1, 100)]


def test_an_error_is_raised_in_its_results_place():
    results = prefetch(lambda n: 1 // (2 - n), range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_results_that_nobody_asks_for_are_not_computed():
    started = []
    results = prefetch(started.append, range(100))
    next(results)
    results.close()
    assert len(started) < 10
