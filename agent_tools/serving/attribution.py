"""Whether the engines' figures are of this cache: what they loaded, and what they asked for, must be what LMCache counted."""

from agent_tools.models.engine import EngineMetrics

LEAST_TOKENS = 20_000
"""Fewer prompt tokens show nothing: requests that run at either end of a window count on one side only."""
MORE_LOADED = 1.1
"""Loaded tokens as a multiple of LMCache's hits, from which they cannot all come from LMCache."""
MORE_ASKED = 1.3
"""Tokens asked of LMCache as a multiple of the engines' prompt tokens, from which other engines must ask too."""
LEAST_ASKED = 0.05
"""Tokens asked of LMCache as a share of the engines' prompt tokens, below which the engines hardly use this cache."""
OTHER_SPAN = 0.2
"""Difference of the two windows, as a share of the cache's, from which their totals are not compared."""


def other_span(engine: EngineMetrics, seconds: float) -> str | None:
    """Return why the totals of the engines and of the cache cannot be compared: they are of different times.

    Return ``None`` if they can. An engine that restarted in the window has totals since then only.
    """
    if not engine.lifetime or abs(engine.seconds - seconds) <= OTHER_SPAN * seconds:
        return None
    return (
        f"the engine's figures are of the {engine.seconds:,.0f} s since it started, the cache's of {seconds:,.0f} s: observe both"
        " for a while"
    )


def doubt(engine: EngineMetrics, *, asked: int, hit: int, seconds: float) -> str | None:
    """Return why the engines' figures say nothing about what this cache saves; ``None`` if nothing speaks against it.

    Args:
        engine: The figures of all engines in a window.
        asked: Tokens that LMCache was asked for in its window.
        hit: Tokens that LMCache found.
        seconds: Length of the cache's window, seconds.
    """
    if other_span(engine, seconds):
        return None
    slack = max(LEAST_TOKENS, 0.1 * engine.prompt_tokens)
    loaded = engine.lmcache_tokens
    if loaded is not None and loaded > MORE_LOADED * hit + slack:
        return (
            f"the engine loaded {loaded:,} prompt tokens from outside, and LMCache found only {hit:,}: they come from another"
            " connector (as in the decoder of a prefill-decode pair), or `engine` in caches.toml is another cache's engine"
        )
    if asked > MORE_ASKED * engine.prompt_tokens + slack:
        return (
            f"LMCache was asked for {asked:,} tokens, and the engines that caches.toml names had {engine.prompt_tokens:,} prompt"
            " tokens: name all engines of this cache in `engines`"
        )
    if engine.prompt_tokens > slack and asked < LEAST_ASKED * engine.prompt_tokens:
        return (
            f"the engine had {engine.prompt_tokens:,} prompt tokens, and LMCache was asked for only {asked:,}: it is another"
            " cache's engine, its connector is off, or nearly all prompts are shorter than one chunk"
        )
    return None
