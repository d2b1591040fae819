"""A quiet import of LMCache, which takes seconds, warns about deprecated packages and prints its device on the terminal."""

import contextlib
import os
import warnings
from collections.abc import Iterator

_LOG_LEVEL = "LMCACHE_LOG_LEVEL"


@contextlib.contextmanager
def importing_lmcache() -> Iterator[None]:
    """Import lmcache inside this context: the import is quiet, and the environment is restored afterwards."""
    level = os.environ.get(_LOG_LEVEL)
    os.environ.setdefault(_LOG_LEVEL, "WARNING")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 0.5.6 uses what OpenTelemetry and Google have deprecated
            yield
    finally:
        if level is None:
            os.environ.pop(_LOG_LEVEL, None)
