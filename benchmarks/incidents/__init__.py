"""The incident bench: what can go wrong with an LMCache, provoked on real processes, and whether the product does right by it.

`incident` is the vocabulary, `scenarios` holds one file per incident, `stages` starts the processes, `bench` runs an incident
through the product's own path, `rules` judges what came of it, `report` writes it down. Run from the repository root::

    python -m benchmarks.incidents [--only NAME ...]
"""

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[2] / "tests"
sys.path += [str(_TESTS), str(_TESTS / "deployments")]  # logs made by hand, and engines in processes of their own, are theirs
