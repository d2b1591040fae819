"""Write the settings in force as start-up configuration. A change made live is otherwise gone with the next restart."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from agent_tools.errors import UnsupportedError
from agent_tools.models import CacheConfig
from agent_tools.models.change import VARIABLE
from agent_tools.models.config import SKIP_L1
from agent_tools.models.start_configuration import StartConfiguration, StartForm

from .arguments import arguments_of, pairs_of, words_of
from .kubernetes import Resource, merge_patch

MB_IN_A_GB = 1024
_OF_KIND = {
    "engine": (StartForm.ENV, StartForm.YAML),
    "http": (StartForm.ARGS, StartForm.KUBERNETES),
    "https": (StartForm.ARGS, StartForm.KUBERNETES),
    "embedded": (StartForm.ARGS, StartForm.KUBERNETES),
}
OF_A_PRIVATE_SERVER = frozenset({
    "--host", "--port", "--http-host", "--http-port", "--instance-id", "--l1-devdax-path", "--shm-name", "--no-l1-use-lazy",
    "--lookup-hash-log-dir", "--lookup-hash-log-max-files", "--server-module",
})  # fmt: skip
"""Flags that hold temporary folders, ports and arenas of an embedded server."""


def start_configuration(
    cache: str, kind: str, config: CacheConfig, command: str | None, form: StartForm, resource: Resource | None = None
) -> StartConfiguration:
    """Return the start-up configuration of a cache in one form.

    Args:
        cache: Name of the cache.
        kind: Kind of its target, e.g. ``http``.
        config: The settings in force.
        command: The command line that starts a server with these settings, as its deployment writes it.
        form: The form wanted.
        resource: The Kubernetes resource that the operator named, for the form ``kubernetes``.

    Raises:
        UnsupportedError: This kind of cache does not start from this form.
    """
    forms = _OF_KIND.get(kind, ())
    if not forms:
        why = "name one of its servers" if kind == "fleet" else "no LMCache runs behind it"
        raise UnsupportedError(f"the settings of {cache} cannot be exported: its target is {kind}: ({why})")
    if form not in forms:
        raise UnsupportedError(
            f"{cache} does not start from {form.value}: {_WHY[form]}; use {' or '.join(one.value for one in forms)}"
        )
    notes = _notes(config)
    if form in {StartForm.ENV, StartForm.YAML}:
        settings = in_process_settings(config)
        text = yaml.safe_dump(settings, sort_keys=False) if form is StartForm.YAML else "\n".join(variables(settings)) + "\n"
        return StartConfiguration(cache=cache, form=form, text=text, notes=(*notes, *_in_process_notes(config)))
    assert command is not None  # noqa: S101  every server's deployment writes one
    arguments = arguments_of(command)
    if kind == "embedded":
        arguments = _without(arguments, OF_A_PRIVATE_SERVER)
        notes.append("ports, folders and the module of the private server are left out")
    if any(not adapter.settings_known for adapter in config.l2_adapters or ()):
        notes.append("LMCache does not report the settings of some L2 adapters: write them in place of ***")
    elif "***" in command:
        notes.append("secrets are shown as ***: fill them in")
    if "--l1-devdax-path" in arguments:
        notes.append(f"the file of --l1-devdax-path must have {config.max_size_mb:g} MB before the server starts")
    if form is StartForm.ARGS:
        return StartConfiguration(cache=cache, form=form, text=shlex.join(["lmcache", "server", *arguments]), notes=tuple(notes))
    patch, said = merge_patch(pairs_of(arguments), resource)
    return StartConfiguration(cache=cache, form=form, text=json.dumps(patch, indent=2), notes=(*notes, *said))


_WHY = {
    StartForm.ARGS: "its settings are the engine's LMCache configuration",
    StartForm.ENV: "an `lmcache server` reads its settings from its command line",
    StartForm.YAML: "an `lmcache server` reads its settings from its command line",
    StartForm.KUBERNETES: "LMCache's operator runs servers, and this LMCache is inside an engine",
}


def in_process_settings(config: CacheConfig) -> dict[str, Any]:
    """Return the keys of in-process LMCache's configuration (0.5.6) for the settings in force. Sizes are per worker."""
    size, policy, chunk, least = config.max_size_mb, config.eviction_policy, config.chunk_size, config.min_prefix_length
    settings: dict[str, Any] = {
        "chunk_size": chunk,
        "local_cpu": None if size is None else config.l2_store_policy != SKIP_L1,
        "max_local_cpu_size": None if size is None else size / MB_IN_A_GB,
        "cache_policy": None if policy is None else policy.value.upper(),
        "min_retrieve_tokens": None if least in {None, chunk} else least,
    }
    for adapter in config.l2_adapters or ():
        if adapter.type == "local_disk":
            settings |= {"local_disk": adapter.settings["path"], "max_local_disk_size": adapter.settings["max_capacity_gb"]}
        elif adapter.type == "remote":
            settings["remote_url"] = adapter.settings["url"]
    return {key: value for key, value in settings.items() if value is not None}


def _without(arguments: Sequence[str], flags: frozenset[str]) -> list[str]:
    return [word for flag, value in pairs_of(arguments) if flag not in flags for word in words_of(flag, value)]


def variables(settings: Mapping[str, Any]) -> list[str]:
    """Return settings of in-process LMCache as assignments to the environment of an engine, quoted for a shell."""
    return [f"{VARIABLE}{key.upper()}={shlex.quote(_plain(value))}" for key, value in settings.items()]


def _plain(value: Any) -> str:  # noqa: ANN401  a text, number or truth value
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _notes(config: CacheConfig) -> list[str]:
    quotas = config.tenant_quotas_mb or {}
    return [f"the quotas of {len(quotas)} tenants are no start option: set them again after a start"] if quotas else []


def _in_process_notes(config: CacheConfig) -> list[str]:
    notes = [
        f"{name} differs between the workers, so it is left out: {', '.join(f'{m} {v}' for m, v in by.items())}"
        for name, by in config.differences.items()
    ]
    others = [one.type for one in config.l2_adapters or () if one.type not in {"local_disk", "remote"}]
    if others:
        notes.append(f"{', '.join(others)}: keep the keys of this backend from the present configuration")
    return notes
