"""The tool that sizes the tiers of a cache for a model, from the cache's own requests. It only reads."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agent_tools.models.cost import Positive

from .spec import READ, CacheArguments, Operations, ToolSpec

if TYPE_CHECKING:
    from agent_tools.prediction.size_pricing import SizeRow
    from agent_tools.prediction.sizing import Sizing


class SizeArguments(CacheArguments):
    """A cache, a model, and what is known about speed and prices."""

    model_settings: dict[str, Any]
    """The model's config.json, as an object; at least its numbers of layers, heads and head size."""
    ranks: Annotated[int, Field(ge=1, le=255)] = 1
    """Tensor-parallel ranks."""
    kv_dtype: str = "auto"
    """Data type of the KV cache (vLLM's --kv-cache-dtype)."""
    gpu_free_gb: Positive | None = None
    """GB that each GPU has for KV. Leave out to count the engine's own cache as empty."""
    prefill_tokens_per_second: Positive | None = None
    """Prompt tokens that the engine computes per second. Without it, times and GPU hours are null."""
    gpus: Annotated[int, Field(ge=1)] = 1
    """GPUs of the engine."""
    l1_load_gb_per_second: Positive | None = None
    """Bandwidth of loading from L1, GB/s."""
    l2_load_gb_per_second: Positive | None = None
    """Bandwidth of loading from L2, GB/s."""
    l1_gb_month: Positive | None = None
    """Price of a GB of L1 for a month. Never guess a price: leave it out."""
    l2_gb_month: Positive | None = None
    """Price of a GB of L2 for a month."""
    gpu_hour: Positive | None = None
    """Price of a GPU for an hour."""


async def size(operations: Operations, arguments: SizeArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_size`. The artifact is a `Sizing`."""
    from agent_tools.prediction.model_kv import model_kv  # noqa: PLC0415  imported when called, like `Operations`
    from agent_tools.prediction.size_pricing import Terms  # noqa: PLC0415

    model = model_kv(arguments.model_settings, ranks=arguments.ranks, kv_dtype=arguments.kv_dtype)
    terms = Terms(**{name: getattr(arguments, name) for name in Terms.model_fields})
    found = await operations.size(arguments.cache, model, arguments.gpu_free_gb, terms)
    return describe_sizing(found), found.model_dump(mode="json")


def describe_sizing(sizing: "Sizing") -> str:
    """Return the sizes as a table in text, the knees named."""
    seen = sizing.forecast
    lines = [
        f"{sizing.model}: {sizing.bytes_per_token:,.0f} KV bytes a token ({sizing.formula})",
        "the engine's own cache (L0) holds " + ("?" if sizing.l0_tokens is None else f"{sizing.l0_tokens:,}") + " tokens",
        f"{seen.requests:,} requests, {seen.footprint_chunks:,} distinct chunks of {seen.chunk_size} tokens; ceiling"
        f" {seen.ceiling:.1%}",
        "tier             size  L0 serves  hit rate   saved  TTFT, ms  price/month  GPU h/month  net/month",
    ]
    knees = {"L1": sizing.l1_knee, "L2": sizing.l2_knee}
    lines += [_line(row) + (f"  <- knee of {row.tier}" if row == knees.get(row.tier) else "") for row in sizing.rows]
    for tier, row in knees.items():
        if row is not None:
            lines.append(f"knee of {tier}: {_memory(row.size_mb)}, LMCache saves {row.saved:.1%} of the prompt tokens")
    lines += [f"knee: {sizing.knee_rule}"] if sizing.l1_knee else []
    lines += [f"{name} is unknown: it {why}" for name, why in sizing.unknown.items()]
    return "\n".join([*lines, *sizing.notes])


def _memory(size_mb: float) -> str:
    if size_mb < 1024:
        return f"{size_mb:,.3g} MB"
    return f"{size_mb / 1024:,.3g} GB" if size_mb < 100 * 1024 else f"{size_mb / 1024:,.0f} GB"


def _line(row: "SizeRow") -> str:
    size = f"{row.l0_tokens or 0:,} tokens" if row.tier == "L0" else _memory(row.size_mb)
    figures = (row.ttft_ms, row.price_month, row.gpu_hours_month, row.net_month)
    told = ("-" if value is None else f"{value:,.4g}" for value in figures)
    return f"{row.tier:<5}{size:>16}{row.engine_share:>11.1%}{row.hit_rate:>10.1%}{row.saved:>8.1%}" + "".join(
        f"{text:>{width}}" for text, width in zip(told, (10, 13, 13, 11), strict=True)
    )


SIZES = (
    ToolSpec(
        name="size",
        title="Sizes of the tiers for a model",
        description="Before buying memory: say what sizes of the engine's own cache, L1 and L2 would save for a model (its"
        " config.json) on the cache's own requests, with time to first token and cost where speed and prices are given, and name"
        " the knee. Needs an access log.",
        arguments=SizeArguments,
        run=size,
        hints=READ,
    ),
)
