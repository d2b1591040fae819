"""What the claims about the engine demo need."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__)
sys.path += [str(HERE.parents[1] / "tuning"), str(HERE.parents[2] / "examples")]  # for what is shared with other tests


@pytest.fixture(scope="session")
def vllm() -> None:
    """Asked for by every test that starts a real vLLM."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed in this environment; `make test-engine` runs this in one that has it")
