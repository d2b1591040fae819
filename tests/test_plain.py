"""Text from outside, and figures in words."""

import pytest

from agent_tools.plain import points


@pytest.mark.parametrize(
    ("share", "text"), [(0.15, "+15.0 points"), (-0.004, "-0.4 points"), (0.0, "+0.0 points"), (1, "+100.0 points")]
)
def test_a_difference_of_rates_is_in_points(share: float, text: str) -> None:
    assert points(share) == text
