"""What a wanted configuration still asks for: without the settings that the cache has already, or satisfies anyway."""

from pydantic import ValidationError

from agent_tools.errors import NothingToChangeError, UnsupportedError
from agent_tools.models import SETTINGS, Bounds, CacheConfig, ConfigUpdate

READ_ONLY = sorted(CacheConfig.model_fields.keys() - set(SETTINGS))
"""What a configuration reports, and no update can set."""


def still_to_change(wanted: CacheConfig | ConfigUpdate, config: CacheConfig, bounds: Bounds, cache: str) -> ConfigUpdate:
    """Return the update that is left of a wanted configuration.

    A caller may read a configuration, change one setting and hand back the whole: settings that equal the ones in force ask for
    nothing, even where they contradict the changed one (``auto_eviction`` beside a new ``eviction_policy``).

    Args:
        wanted: Any subset of the settings.
        config: The settings in force.
        bounds: What the operator allows.
        cache: Name of the cache, for messages.

    Raises:
        NothingToChangeError: The cache satisfies all of it.
        UnsupportedError: What is left cannot be set, or contradicts itself.
    """
    for name in READ_ONLY:
        value = getattr(wanted, name, None)
        if value and value != getattr(config, name):
            raise UnsupportedError(
                f"{name} cannot be changed: it is read from {cache}, where it is {getattr(config, name)!r}. Nothing was changed"
            )
    now = config.known()
    left = [
        name for name, value in wanted.known().items() if now.get(name) != value and not _satisfied(name, wanted, config, bounds)
    ]
    if not left:
        raise NothingToChangeError(f"{cache} already has these settings: there is nothing to change")
    try:
        return ConfigUpdate.model_validate({name: getattr(wanted, name) for name in left})
    except ValidationError as error:
        raise UnsupportedError(f"{error.errors()[0]['msg'].removeprefix('Value error, ')}. Nothing was changed") from error


def _satisfied(name: str, wanted: CacheConfig | ConfigUpdate, config: CacheConfig, bounds: Bounds) -> bool:
    """Return whether LMCache satisfies a value that it does not report as its own."""
    if name == "min_prefix_length":  # nothing shorter than a chunk is cached
        return (wanted.min_prefix_length or 0) <= (config.chunk_size or 0) and config.min_prefix_length == config.chunk_size
    if name == "max_concurrent_users":  # LMCache serves any number
        return bounds.max_concurrent_users is None or (wanted.max_concurrent_users or 0) <= bounds.max_concurrent_users
    return False
