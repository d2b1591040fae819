"""The settings in force as start-up configuration, and where a Kubernetes resource differs from them."""

from enum import Enum
from typing import Annotated, Any

from pydantic import Field

from .config import Frozen


class StartForm(str, Enum):
    """How a cache is told its settings when it starts."""

    ARGS = "args"
    """The command line of an `lmcache server`."""
    ENV = "env"
    """Environment variables of an engine with in-process LMCache."""
    YAML = "yaml"
    """The file that ``LMCACHE_CONFIG_FILE`` names, for in-process LMCache."""
    KUBERNETES = "kubernetes"
    """A merge patch for an ``LMCacheEngine`` resource (v1alpha1 of LMCache's operator)."""


class StartConfiguration(Frozen):
    """What to start a cache with, so that it has the settings that are in force now."""

    cache: str
    """Name of the cache."""
    form: StartForm
    text: Annotated[str, Field(min_length=1)]
    """The configuration, to be pasted or saved. Secrets appear as ``***``; the operator must fill them in."""
    notes: tuple[str, ...] = ()
    """What the text leaves out, or what to check before using it."""


class Drift(Frozen):
    """One setting that the resource states and that is not in force."""

    setting: str
    spec: Any
    """The value in the resource, with which the next pod starts."""
    in_force: Any
    """The value in force."""
