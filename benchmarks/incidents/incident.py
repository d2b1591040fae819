"""What an incident is: the processes, the traffic, what the operator allows, and what a good operator would do about it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from agent_tools.demo.engine.chat_traffic import ChatTraffic
from agent_tools.models import Bounds, SymptomCode
from agent_tools.models.cost import Economics
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.schedule import ReplayedModel


class Action(str, Enum):
    """What is to be done about an incident."""

    CHANGE = "change settings"
    OPERATOR = "tell the operator"
    """Nothing is changed, since only people can, and they are told what."""
    NOTHING = "do nothing"


@dataclass(frozen=True)
class Expected:
    """What a senior operator of LMCache would say. Written before the first run, not after what the product says."""

    symptoms: frozenset[SymptomCode]
    """All of these are named."""
    action: Action
    settings: frozenset[str] = frozenset()
    """For `Action.CHANGE`: at least one of these is changed."""
    may: frozenset[str] = frozenset()
    """For `Action.CHANGE`: these may be changed as well, and no other."""
    told: str = ""
    """For `Action.OPERATOR`: words that the symptoms or the report say."""
    never: frozenset[SymptomCode] = frozenset()
    """None of these is named: they would send people the wrong way."""
    differences: frozenset[str] = frozenset()
    """For several processes: the settings in which they are said to differ (`CacheConfig.differences`)."""
    gain: float | None = None
    """Least rise of the token hit rate after a change; ``None``: it must not fall."""


@dataclass(frozen=True)
class Server:
    """One ``lmcache server`` of the operator's, on a devdax file in shared memory, with our module."""

    l1_mb: float = 16
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Flags of `lmcache server` besides."""
    l2: Mapping[str, Any] | None = None
    """An L2 adapter, as for ``--l2-adapter``; ``FOLDER`` in it becomes a folder of its own."""
    quotas_mb: Mapping[str, float] = field(default_factory=dict)
    """Quotas that the operator set on the server, by cache salt."""
    module: bool = True
    """Without it the server is plain, and L1 is plain memory."""
    log: bool = True
    """Whether a plain server's lookup-hash log can be read."""
    economics: Economics | None = None
    engines: Mapping[str, ReplayedModel] = field(default_factory=dict)
    """How the engines of single models store their KV, by model name in the log; ``replay`` if the log names none."""
    silent_ranks: int = 0
    """So many of the last ranks of each engine store nothing."""
    two_groups: bool = False
    """Whether models named ``hybrid*`` have two object groups (`benchmarks.hybrid_module`)."""
    behind_a_proxy: bool = False
    """Whether the product reaches the server under a path prefix, with a token."""
    loaded_elsewhere: float = 0.0
    """Tokens a second that the engine loads over another connector, by its own counters. 0: no engine is named."""


@dataclass(frozen=True)
class Oldest:
    """A real server of the oldest LMCache that we read (`make test-oldest` installs it), and an engine of its time.

    The engine asks for new prompts of ten chunks of 64 tokens without end, each twice in a row.
    """

    l1_mb: float = 16
    log: bool = True
    """Whether its lookup-hash log can be read."""


@dataclass(frozen=True)
class Vllm(Server):
    """Such a server, and in front of it a real vLLM with its own prefix cache (L0) on, to which agents talk."""

    own_cache_tokens: int = 0
    """Size of L0, tokens."""
    chats: ChatTraffic = field(default_factory=ChatTraffic)
    """The conversations of one round; each further round has other documents."""
    connector: Mapping[str, float | str | bool] = field(default_factory=dict)
    """Settings of LMCache's connector in vLLM."""


@dataclass(frozen=True)
class Engines:
    """Real `LMCacheEngine` workers in processes of their own, reached over their internal API servers."""

    configs: Sequence[Mapping[str, Any]]
    """LMCache's own configuration of each; ``FOLDER`` in it becomes a folder that all share."""
    prompts: Sequence[tuple[int, int]]
    """(seed, chunks) of the prompts that all serve, over and over."""
    hash_seeds: Sequence[str] = ()
    """``PYTHONHASHSEED`` of each."""
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    """Modules that are not installed here and stand in for parts of vLLM: path -> source."""


@dataclass(frozen=True)
class Incident:
    """One thing that can go wrong, or that only looks like it."""

    name: str
    story: str
    """What happened, in a sentence."""
    expected: Expected
    stage: Server | Engines | Oldest
    traffic: Callable[[], AccessLog | None] = lambda: None
    """Makes the requests, sent over `bench.SECONDS`; ``None`` where nobody asks (or `Engines` and `Vllm` have their own)."""
    clients: int = 2
    bounds: Bounds = field(default_factory=Bounds)
    """What the operator lets the product change on its own."""
    provoke: Callable[[Any], None] | None = None
    """What is done to the running stage (see `stages`) in the middle of the observed window."""
    by: str = "graph"
    """What acts: ``graph`` is `tune_cache` in mode auto, ``quotas`` what the tenants' tools call, ``delete`` deletes the first
    prompt of the traffic."""
    healthy: bool = False
    """Whether nothing is wrong, so that any change would be a mistake."""
    remark: str = ""
    """What could not be had as it is in production, and why."""
