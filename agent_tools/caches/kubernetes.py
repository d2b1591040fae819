"""An ``LMCacheEngine`` resource (v1alpha1 of LMCache's operator): the settings it states, and the patch that changes them.

The names of the fields were read from the operator's sources. Nothing here was run on a cluster (`kubernetes_api` asks one).
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from agent_tools.deployments.server.start_flags import VALUES
from agent_tools.errors import SettingsError
from agent_tools.models import CacheConfig
from agent_tools.models.config import Frozen
from agent_tools.models.start_configuration import Drift

from .arguments import Value, pairs_of, words_of
from .kubernetes_api import read_from_cluster

KIND = "LMCacheEngine"
NOT_RUN = "the fields are those of the operator's v1alpha1, read and not run on a cluster: try with --dry-run=server first"
MOST_BYTES = 2**20

_FIELDS: Mapping[str, tuple[str, str]] = {
    "--l1-size-gb": ("l1", "sizeGB"),
    "--eviction-policy": ("eviction", "policy"),
    "--eviction-trigger-watermark": ("eviction", "triggerWatermark"),
    "--eviction-ratio": ("eviction", "evictionRatio"),
    "--chunk-size": ("server", "chunkSize"),
}
_OF_L2: Mapping[str, tuple[str, str]] = {
    "--l2-store-policy": ("l2Backend", "storePolicy"),
    "--l2-prefetch-policy": ("l2Backend", "prefetchPolicy"),
    "--l2-prefetch-max-in-flight": ("l2Backend", "prefetchMaxInFlight"),
}
_OPERATORS = frozenset({
    "--host", "--port", "--http-host", "--http-port", "--transport", "--instance-id", "--coordinator-url",
    "--coordinator-advertise-ip", "--shm-name", "--l1-devdax-path", "--no-l1-use-lazy",
})  # fmt: skip
"""Flags that LMCache's operator sets for each pod."""
_POLICIES = frozenset({"LRU", "noop"})
"""Values of ``eviction.policy``; another one goes into ``extraArgs``, which come last."""
_SETTINGS = {
    "--l1-size-gb": "max_size_mb",
    "--eviction-policy": "eviction_policy",
    "--eviction-trigger-watermark": "eviction_watermark",
    "--eviction-ratio": "eviction_ratio",
    "--chunk-size": "chunk_size",
    "--l2-store-policy": "l2_store_policy",
    "--l2-prefetch-policy": "l2_prefetch_policy",
}


_DEFAULTS = {flag: default for _, flag, default in VALUES if default not in {None, ...}}
"""LMCache's defaults, which a proposed command line leaves out."""


class KubernetesSettings(Frozen):
    """Where the resource of a cache is described: in a file, or in a cluster that is asked for it each time."""

    file: Path | None = None
    """A YAML or JSON file with the resource: the one in your repository, or the output of ``kubectl get lmc NAME -o yaml``."""
    name: str | None = None
    """Name of the resource. With `file` only needed if the file holds several; without `file` the cluster's API is asked for it,
    which needs the extra `kubernetes`."""
    namespace: str = "default"
    """Namespace of the resource in the cluster; not with `file`."""
    context: str | None = None
    """Context of the kubeconfig; not with `file`. The default is the pod's own service account inside a cluster, and the current
    context elsewhere."""

    @model_validator(mode="after")
    def _one_place(self) -> "KubernetesSettings":
        if self.file is None and self.name is None:
            raise ValueError("kubernetes needs a `file`, or the `name` of a resource in a cluster")
        if self.file is not None and self.model_fields_set & {"namespace", "context"}:
            raise ValueError("kubernetes has a `file`, which is read without a cluster: remove `namespace` and `context`")
        return self


class Resource(BaseModel):
    """One resource: its name and what its ``spec`` states."""

    model_config = ConfigDict(frozen=True)

    name: str
    namespace: str | None
    spec: dict[str, Any]

    @property
    def extra_args(self) -> list[str]:
        """The last arguments of the server."""
        given = self.spec.get("extraArgs")
        return [str(one) for one in given] if isinstance(given, list) else []


def read_resource(settings: KubernetesSettings) -> Resource:
    """Read the resource of a cache.

    Raises:
        SettingsError: The file cannot be read, is no YAML, or does not hold exactly one such resource; or the cluster's API does
            not show it.
        UnreachableError: The cluster's API does not answer.
    """
    if settings.file is None:
        documents: list[Any] = [read_from_cluster(str(settings.name), settings.namespace, settings.context)]
        where = "the Kubernetes API"
    else:
        documents, where = _in_file(settings.file), f"kubernetes.file {settings.file}"
    found = [one for one in _items(documents) if settings.name in {None, _meta(one).get("name")}]
    if len(found) != 1:
        which = f" named {settings.name}" if settings.name else ""
        raise SettingsError(f"{where} holds {len(found)} resources of kind {KIND}{which}; one is needed")
    spec = found[0].get("spec")
    meta = _meta(found[0])
    namespace = meta.get("namespace")
    return Resource(
        name=str(meta.get("name", "")), namespace=namespace and str(namespace), spec=spec if isinstance(spec, dict) else {}
    )


def _in_file(file: Path) -> list[Any]:
    try:
        if file.stat().st_size > MOST_BYTES or not file.is_file():
            raise SettingsError(f"kubernetes.file {file} is no file of at most 1 MB")
        return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"kubernetes.file {file} cannot be read: {getattr(error, 'strerror', 'it is not UTF-8')}") from error
    except (yaml.YAMLError, RecursionError):
        return []


def _items(documents: Sequence[Any]) -> list[dict[str, Any]]:
    found = []
    for one in documents:
        if isinstance(one, dict) and one.get("kind") == KIND:
            found.append(one)
        elif isinstance(one, dict) and isinstance(one.get("items"), list):
            found += _items(one["items"])
    return found


def _meta(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = resource.get("metadata")
    return meta if isinstance(meta, dict) else {}


def merge_patch(pairs: Sequence[tuple[str, Value]], resource: Resource | None) -> tuple[dict[str, Any], list[str]]:
    """Return a JSON merge patch (RFC 7386) of the resource for the flags of a server, and what to know about it.

    A patch replaces ``extraArgs`` as a whole, so the arguments that the resource has already are kept in it. What the resource
    states and the flags leave out, because it is back at LMCache's default, is stated with the default.

    Args:
        pairs: The flags of the whole server, without those that have their default value.
        resource: The resource, if it is known.
    """
    spec: dict[str, Any] = {}
    extra: list[str] = []
    fields = {**_FIELDS, **(_OF_L2 if resource is not None and resource.spec.get("l2Backend") else {})}
    for flag, value in [*_back_at_default(pairs, resource), *_without_backend(pairs, resource)]:
        if flag in _OPERATORS:
            continue
        if isinstance(value, str) and flag in fields and not (flag == "--eviction-policy" and value not in _POLICIES):
            part, name = fields[flag]
            spec.setdefault(part, {})[name] = _number(value)
        else:
            extra += words_of(flag, value)
    ours = {flag for flag, _ in pairs} | fields.keys() | _OF_L2.keys() | {"--l2-adapter"}
    stated = pairs_of(resource.extra_args if resource else [])
    kept = [word for flag, value in stated if flag not in ours for word in words_of(flag, value)]
    if kept or extra or (resource is not None and resource.extra_args):
        spec["extraArgs"] = [*kept, *extra]
    notes = [NOT_RUN]
    if resource is None:
        notes.append("extraArgs replaces the list of the resource: name its file (kubernetes = { file = ... }) to keep it")
    return {"spec": spec}, notes


def _back_at_default(pairs: Sequence[tuple[str, Value]], resource: Resource | None) -> list[tuple[str, str]]:
    """Return the flags that a field of the resource states and the server has at LMCache's default."""
    given = {flag for flag, _ in pairs}
    stated = {} if resource is None else _stated(resource)
    return [(flag, str(_DEFAULTS[flag])) for flag in stated if flag not in given and flag in _DEFAULTS]


def _without_backend(pairs: Sequence[tuple[str, Value]], resource: Resource | None) -> list[tuple[str, Value]]:
    """Leave out the L2 adapter that LMCache's operator makes of ``l2Backend``: it would be there twice."""
    backend = {} if resource is None else resource.spec.get("l2Backend")
    if not isinstance(backend, dict) or not {"resp", "raw"} & backend.keys():
        return [*pairs]
    raw = backend.get("raw")
    kind = raw.get("type") if isinstance(raw, dict) else "resp"
    kept, found = [], False
    for flag, value in pairs:
        if flag == "--l2-adapter" and not found and isinstance(value, str) and json.loads(value).get("type") == kind:
            found = True
        else:
            kept.append((flag, value))
    return kept


def _stated(resource: Resource) -> dict[str, Any]:
    """Return the values of the resource's fields by their flags."""
    stated: dict[str, Any] = {}
    for flag, (part, name) in {**_FIELDS, **_OF_L2}.items():
        group = resource.spec.get(part)
        if isinstance(group, dict) and group.get(name) is not None:
            stated[flag] = group[name]
    return stated


def patch_command(patch: Mapping[str, Any], resource: Resource) -> str:
    """Return the command that applies a patch."""
    where = ["-n", resource.namespace] if resource.namespace else []
    return shlex.join(["kubectl", "patch", "lmc", resource.name, *where, "--type", "merge", "-p", json.dumps(patch)])


def drift(resource: Resource, config: CacheConfig) -> tuple[Drift, ...]:
    """Return the settings that the resource states and that are not in force. What the resource leaves out is not compared."""
    stated = _stated(resource)
    for flag, value in pairs_of(resource.extra_args):  # last, as the server reads them
        if flag in _SETTINGS and isinstance(value, str):
            stated[flag] = _number(value)
    known = config.known()
    found = []
    for flag, value in stated.items():
        setting = _SETTINGS.get(flag)
        in_force = known.get(setting) if setting else None
        wanted = value * 1024 if flag == "--l1-size-gb" and isinstance(value, int | float) else value
        wanted = wanted.lower() if setting == "eviction_policy" and isinstance(wanted, str) else wanted
        if setting and in_force is not None and not _same(wanted, in_force):
            found.append(Drift(setting=setting, spec=wanted, in_force=in_force))
    return tuple(found)


def _number(value: str) -> Any:  # noqa: ANN401  a number or a text
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= 1e-6 * max(abs(one), abs(other), 1)
    return bool(one == other)
