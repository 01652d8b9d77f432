"""Numbers that the generators accept, and what they say to others."""

import math

import pytest

from neuralop_sae.data.arguments import at_least, distinct, positive, whole_steps


def test_accepted_numbers_come_back_plain() -> None:
    assert at_least("n", 3, 3) == 3
    assert positive("x", 2) == 2.0
    assert positive("x", 0, zero=True) == 0.0
    assert whole_steps("t", 0.0, 0.1, 0) == 0
    # 0.3 / 0.1 and 0.7 / 0.1 are not whole in floating point.
    assert [whole_steps("t", k / 10, 0.1, 1) for k in (3, 7, 12)] == [3, 7, 12]


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
def test_other_numbers_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="x is .*; it must be finite and above 0"):
        positive("x", value)
    if value != 0:
        with pytest.raises(ValueError, match="at least 0"):
            positive("x", value, zero=True)


def test_steps_that_are_not_whole_or_too_few_are_refused_with_one_that_is() -> None:
    with pytest.raises(ValueError, match=r"lead_time is 0.37; .* whole multiple of time_step=0.1, .* \(such as 0.4\)"):
        whole_steps("lead_time", 0.37, 0.1, 1)
    with pytest.raises(ValueError, match=r"at least 1 of them \(such as 0.1\)"):
        whole_steps("lead_time", 0.0, 0.1, 1)
    with pytest.raises(ValueError, match="n is 2; it must be an integer of at least 3"):
        at_least("n", 2, 3)
    with pytest.raises(TypeError):
        at_least("n", 3.0, 3)  # type: ignore[arg-type]


def test_distinct_values_ascend_and_there_is_one() -> None:
    assert distinct("resolutions", (n for n in (32, 16, 32)), "(16, 32)") == [16, 32]
    assert distinct("resolutions", [(9, 16), (5, 8)], "((5, 8),)") == [(5, 8), (9, 16)]
    with pytest.raises(ValueError, match=r"resolutions is empty; name at least one, such as \(16, 32\)"):
        distinct("resolutions", [], "(16, 32)")
