"""Where schemathesis is not installed, which the group `test-base` leaves out, the routes are not fuzzed."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("schemathesis") else ["test_rest_routes.py"]
