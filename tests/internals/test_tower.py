"""Shapes and types in annotations are checked under pytest: of arguments, results and functions inside of others."""

from typing import Any

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float

from lightning_neuroimp import statistics
from tests.support.tower import checked, jaxtyped

check = jaxtyped(typechecker=checked)


@check
def doubled(
    one: Float[np.ndarray, " x"], other: Float[np.ndarray, " x"], wrong: bool = False
) -> Float[np.ndarray, "2 x"]:
    return np.stack([one, other])[:, int(wrong) :]


def adding(number):
    @check
    def added(values: Float[np.ndarray, " x"]) -> Float[np.ndarray, " x"]:
        return values + number

    return added


def test_names_of_axes_mean_one_number_in_a_call_and_another_in_the_next():
    assert [doubled(np.zeros(n), np.zeros(n)).shape for n in (3, 4)] == [(2, 3), (2, 4)]
    with pytest.raises(BeartypeCallHintParamViolation):
        doubled(np.zeros(3), np.zeros(2))
    with pytest.raises(BeartypeCallHintReturnViolation):
        doubled(np.zeros(3), np.zeros(3), wrong=True)


def test_a_function_inside_of_another_is_checked_each_time_and_keeps_what_it_encloses():
    for number in (1, 2, 3):
        added = adding(number)
        assert added(np.zeros(2)).tolist() == [number] * 2
        with pytest.raises(BeartypeCallHintParamViolation):
            added(np.zeros((2, 2)))


def keeping(number):
    @check
    def kept(value: Any) -> Any:
        return value, number

    return kept


def test_a_function_with_nothing_to_check_keeps_what_it_encloses():
    for number in (1, 2, 3):
        assert keeping(number)("value") == ("value", number)


def test_the_package_is_checked():
    with pytest.raises(BeartypeCallHintParamViolation):
        statistics.weighted_correlations(np.ones((2, 3)), np.zeros(3), np.zeros(4))


def test_checks_can_be_put_off(unchecked):
    assert doubled(np.zeros(3), np.zeros(3), wrong=True).shape == (2, 2)
