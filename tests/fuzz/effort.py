"""How hard the fuzz tests try: a little in `make test`, for minutes in `make fuzz` (``HYPOTHESIS_PROFILE=long``)."""

import os

from hypothesis import HealthCheck, settings

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def tried(short: int, long: int) -> settings:
    """So many examples. No deadline: the machine may be busy; what must not take long measures it itself."""
    slow = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.data_too_large)
    return settings(max_examples=long if LONG else short, deadline=None, suppress_health_check=slow)
