"""Two engines name chunks by Python's own hash with different seeds: what one stores, the other never finds."""

from agent_tools.models import SymptomCode
from benchmarks.incidents.incident import Action, Engines, Expected, Incident

NONE_HASH = """
import os

def init_none_hash(hash_function):
    global NONE_HASH
    seed = os.getenv("PYTHONHASHSEED")
    NONE_HASH = os.urandom(32) if seed is None else hash_function(seed)
"""
"""As in vLLM's module of that name, which LMCache 0.5.6 asks for the hash that every prompt begins with."""

SHARED = {
    "pre_caching_hash_algorithm": "builtin",
    "remote_url": "fs://host:0/FOLDER/",
    "remote_serde": "naive",
}

INCIDENT = Incident(
    name="hash_seeds_differ",
    story="two engines share an L2 and name chunks by Python's hash, each with another PYTHONHASHSEED",
    stage=Engines(
        configs=[SHARED, SHARED],
        prompts=[(seed, 8) for seed in range(12)],
        hash_seeds=("1", "2"),
        stand_ins={"vllm/v1/core/kv_cache_utils.py": NONE_HASH},
    ),
    expected=Expected(symptoms=frozenset({SymptomCode.HASHES_UNSTABLE}), action=Action.OPERATOR, told="PYTHONHASHSEED"),
    remark="vLLM is not installed here, and without it LMCache hashes numbers alone, which no seed changes: engines with seeds 1"
    " and 2 found all of each other's chunks. A stand-in for vLLM's init_none_hash (seven lines) makes the mismatch real: the"
    " second engine then finds none of the 96 chunks that the first stored in their common L2.",
)
