"""LMCache's line for each request in the log of a vLLM with in-process LMCache: tokens, and hits by tier."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent_tools.errors import WorkloadError
from agent_tools.workload.lines import Source

_LINE = re.compile(
    rb"Reqid: ([^,\s]+), Total tokens (\d+), Inference Engine computed tokens: (\d+), LMCache hit tokens: (\d+|None)"
)
"""LMCache 0.5.6, ``integration/vllm/vllm_v1_adapter.py``."""


@dataclass
class EngineCounts:
    """What the engine's log says of each request, by the engine's request id."""

    tokens: dict[str, int] = field(default_factory=dict)
    """Prompt length, tokens."""
    own: dict[str, int] = field(default_factory=dict)
    """Tokens that the engine's own prefix cache had."""
    hit: dict[str, int] = field(default_factory=dict)
    """Tokens that LMCache had, from the first token on: those that the engine has too are among them."""

    def in_words(self, names: Sequence[str]) -> str:
        """Say what was measured over these requests."""
        asked = sum(self.tokens[name] for name in names) or 1
        hit = sum(self.hit[name] for name in names)
        own = sum(self.own[name] for name in names)
        saved = sum(max(0, self.hit[name] - self.own[name]) for name in names)
        return (
            f"measured by the engine's log over {len(names):,} requests: {hit / asked:.1%} of the prompt tokens were in LMCache,"
            f" {own / asked:.1%} in the engine's own cache, and LMCache saved {saved / asked:.1%}"
        )


def read_engine_log(path: Path) -> EngineCounts:
    """Read LMCache's lines from an engine's log; other lines are passed over. The first line of a request counts.

    Raises:
        WorkloadError: The file cannot be read, or has no such line.
    """
    counts = EngineCounts()
    for block in Source(path, skip_bad_lines=True).blocks():
        for name, tokens, own, hit in _LINE.findall(block.data):
            request = name.decode("utf-8", "replace")
            if request not in counts.tokens:
                counts.tokens[request], counts.own[request] = int(tokens), int(own)
                counts.hit[request] = 0 if hit == b"None" else int(hit)
    if not counts.tokens:
        raise WorkloadError(
            f"{path} has no line of LMCache for a request (Reqid: .., Total tokens ..): it is no engine's log, or"
            " LMCACHE_LOG_LEVEL is above INFO"
        )
    return counts
