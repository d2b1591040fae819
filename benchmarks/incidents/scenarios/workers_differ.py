"""Two workers of one engine were started with different settings: they cannot be tuned as one; name the differences."""

from agent_tools.models import SymptomCode
from benchmarks.incidents.incident import Action, Engines, Expected, Incident

INCIDENT = Incident(
    name="workers_differ",
    story="two workers of one engine were started with another L1 size and another policy each",
    stage=Engines(
        configs=[{}, {"cache_policy": "LFU", "max_local_cpu_size": 4 / 1024}],
        prompts=[(seed, 8) for seed in range(6)],
    ),
    expected=Expected(
        symptoms=frozenset(),
        action=Action.NOTHING,
        differences=frozenset({"eviction_policy", "max_size_mb"}),
        never=frozenset({SymptomCode.COUNTERS_INCOMPLETE}),
    ),
    remark="no SymptomCode is about differences: `CacheConfig.differences` names each setting with its value by worker. That"
    " counters_incomplete must not be named was added after a run in which it was, wrongly, for every engine.",
)
