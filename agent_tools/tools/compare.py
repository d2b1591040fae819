"""The tool that compares caches of one machine: where a megabyte earns most."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agent_tools.plain import plain

from .spec import READ, Arguments, Operations, ToolSpec

if TYPE_CHECKING:
    from agent_tools.recommender.compare import CacheComparison, CacheShare

Name = Annotated[str, Field(min_length=1)]


class CompareArguments(Arguments):
    """The caches to compare, and the memory to divide among them."""

    caches: Annotated[list[Name], Field(min_length=2, max_length=32, examples=[["chat", "batch"]])]
    """Names of at least two caches that share one machine's memory."""
    window_seconds: Annotated[float, Field(gt=0, le=600)] | None = None
    """Length of the window in seconds, ending now. Leave out: since the last change, else since the start."""
    budget_mb: Annotated[float, Field(gt=0)] | None = None
    """Memory to divide, MB. Leave out for what these caches have now."""


async def compare_caches(operations: Operations, arguments: CompareArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_compare_caches`. The artifact is a `CacheComparison`."""
    found = await operations.compare_caches(arguments.caches, arguments.window_seconds, arguments.budget_mb)
    return describe_comparison(found), found.model_dump(mode="json")


def describe_comparison(found: "CacheComparison") -> str:
    """Return the comparison as text: the verdict, a line for each cache, and what is unknown."""
    lines = [f"{found.verdict.value}: {found.why}", f"{found.budget_mb:g} MB divided; the next MB earns, in hit tokens per hour:"]
    lines += map(_line, found.caches)
    lines += [f"{plain(name)} keeps what it has, since nothing can be said of it: {why}" for name, why in found.unknown.items()]
    return "\n".join(lines)


def _line(one: "CacheShare") -> str:
    sizes = (
        f"{one.size_mb:g} MB"
        if one.proposed_mb == one.size_mb
        else f"{one.size_mb:g} -> {one.proposed_mb:g} MB ({one.how.value})"
    )
    gain = "" if one.gain is None else f"; token hit rate {100 * one.gain.estimate:+.1f} points"
    bounds = f"bounds {one.least_mb:g} to {one.most_mb:g} MB"
    return f"{plain(one.cache)}: {one.tokens_per_hour_per_mb:,.0f}; {sizes}{gain}; {bounds}; window: {one.window.span}"


COMPARE = (
    ToolSpec(
        name="compare_caches",
        title="Compare caches",
        description="Across caches that share one machine's memory, show where a megabyte earns most, and the L1 sizes within"
        " their bounds that give the most hits together. Caches without an access log are named and keep what they have. Changes"
        " nothing.",
        arguments=CompareArguments,
        run=compare_caches,
        hints=READ,
    ),
)
