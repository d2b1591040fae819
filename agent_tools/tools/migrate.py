"""The tool that leads from in-process LMCache to an `lmcache server`. It only reads."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agent_tools.models.cost import Positive

from .spec import READ, CacheArguments, Operations, ToolSpec

if TYPE_CHECKING:
    from agent_tools.recommender.migration import Migration, ServerSize


class MigrateArguments(CacheArguments):
    """A cache inside an engine, its model, and its configuration where the cache does not tell all of it."""

    model_settings: dict[str, Any]
    """The model's config.json, as an object; at least its numbers of layers, heads and head size."""
    ranks: Annotated[int, Field(ge=1, le=255)] = 1
    """Tensor-parallel ranks of the engine."""
    kv_dtype: str = "auto"
    """Data type of the KV cache (vLLM's --kv-cache-dtype)."""
    lmcache_settings: dict[str, Any] | None = None
    """LMCache's configuration of the engine (the content of LMCACHE_CONFIG_FILE). Leave out to take the settings in force."""
    gpu_free_gb: Positive | None = None
    """GB that each GPU has for KV, to say what LMCache saves beyond the engine's own cache."""
    port: Annotated[int, Field(ge=1, le=65535)] = 5555
    """RPC port for the server."""


async def migrate(operations: Operations, arguments: MigrateArguments) -> tuple[str, dict[str, Any]]:
    """Run `lmcache_migrate`. The artifact is a `Migration`."""
    from agent_tools.prediction.model_kv import model_kv  # noqa: PLC0415  imported when called, like `Operations`

    model = model_kv(arguments.model_settings, ranks=arguments.ranks, kv_dtype=arguments.kv_dtype)
    found = await operations.migration(
        arguments.cache, model, arguments.lmcache_settings, gpu_free_gb=arguments.gpu_free_gb, port=arguments.port
    )
    return describe_migration(found), found.model_dump(mode="json")


def describe_migration(found: "Migration") -> str:
    """Return a migration as text: what it gives, how to start it, what has no counterpart, what changes."""
    saved = "" if found.present_saved is None else f", {found.present_saved:.1%} beyond the engine's own cache"
    lines = [
        f"today: {found.present_mb:,.0f} MB of all workers, {found.present_policy}: hit rate {found.present_hit_rate:.1%}{saved}"
        + _of_tier(found),
        "a server, L1 for all ranks:",
        *(_line(size) + ("  <- chosen" if size == found.chosen else "") for size in found.sizes),
        "",
        "start the server:",
        f"  {found.command}",
        "and the engine with:",
        f"  --kv-transfer-config '{found.kv_transfer_config}'",
        "",
        "what stands for the settings:",
        *(f"  {name}: {text}" for name, text in found.kept.items()),
        *(["what has no counterpart:"] if found.without_counterpart else ["every setting has a counterpart"]),
        *(f"  {name}: {text}" for name, text in found.without_counterpart.items()),
        "what changes:",
        *(f"  {text}" for text in found.changes),
    ]
    return "\n".join([*lines, *found.notes])


def _of_tier(found: "Migration") -> str:
    if found.present_with_tier is None or found.present_from_tier is None:
        return ""
    return f"; {found.present_with_tier:.1%} with the tier behind it, of which {found.present_from_tier:.1%} come from it"


def _line(size: "ServerSize") -> str:
    text = f"  {size.l1_mb:,.0f} MB: {size.hit_rate:.1%} ({size.lower:.1%} to {size.upper:.1%})"
    text += "" if size.saved is None else f", {size.saved:.1%} beyond the engine's own cache"
    if (size.watermark, size.ratio) != (0.8, 0.2):
        text += f" with watermark {size.watermark:g}, ratio {size.ratio:g} (defaults: {size.hit_rate_defaults:.1%})"
    text += f", {size.dropped:.1%} of the chunks dropped"
    return text + ("" if size.with_l2 is None else f", {size.with_l2:.1%} with the L2")


MIGRATE = (
    ToolSpec(
        name="migrate",
        title="From in-process LMCache to a server",
        description="For LMCache inside an engine: say what an `lmcache server` would give on the same requests at which size and"
        " settings, with the server's command line, the engine's --kv-transfer-config, what has no counterpart and what changes."
        " Needs the record of lookups (chunk statistics) as access log.",
        arguments=MigrateArguments,
        run=migrate,
        hints=READ,
    ),
)
