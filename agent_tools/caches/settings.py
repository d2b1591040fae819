"""The operator's settings: the caches, their names, and what agents may do to them.

The settings come from the TOML file that ``LMCACHE_AGENT_SETTINGS`` names. Without this variable they come from ``caches.toml``
in the user's configuration folder (``~/.config/lmcache-agent`` on Linux), if that file exists. A ``caches.toml`` in the working
directory is not read unless it is named, because somebody else may have written that folder.

    [caches.prod]
    target = "http://127.0.0.1:8080"      # the server's --http-port
    access_log = "/var/log/lmcache"       # its --lookup-hash-log-dir, if readable from here
    arena_folder = "/dev/shm"             # on its host: makes the L1 size live
    bounds = { max_size_mb = 8192, allow_restart = false }
"""

import os
from pathlib import Path
from typing import Annotated, Any

from platformdirs import user_config_path, user_state_path
from pydantic import Field, IPvAnyNetwork, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource
from pydantic_settings import SettingsError as NotParsedError

from agent_tools.deployments.start_options import EmbeddedOptions, SimulatedOptions
from agent_tools.errors import SettingsError
from agent_tools.models import Bounds, Mode
from agent_tools.models.config import Frozen
from agent_tools.models.cost import Economics
from agent_tools.models.rights import EVERYTHING, Right
from agent_tools.wire.access import Access

from .kubernetes import KubernetesSettings
from .named_tokens import NamedToken, check_names

FILE_VARIABLE = "LMCACHE_AGENT_SETTINGS"
FILE_NAME = "caches.toml"
APPLICATION = "lmcache-agent"
IN_PROCESS = "engine"
"""Kind of the target of LMCache inside an engine."""


Tokens = Annotated[int, Field(ge=0)]
EngineCacheTokens = Tokens | Annotated[tuple[Tokens, ...], Field(min_length=1)]


class CacheSettings(Frozen):
    """The settings of one cache."""

    target: str = "embedded:"
    """What the cache is, and its address:

    * ``http://host:port``: the admin API of an `lmcache server` (its ``--http-port``), or ``https://host/prefix`` behind a proxy;
    * ``engine:http://host:port,http://host:port``: in-process LMCache, by the internal API servers of all its workers;
    * ``fleet:http://host:port``: LMCache's coordinator and the servers it knows;
    * ``embedded:``: a private `lmcache server` that we start;
    * ``simulated:``: a model of a server under generated or recorded traffic, without any LMCache.
    """
    bounds: Bounds = Bounds()
    """What an agent may change in this cache. If the operator states none, a private cache (``embedded:``, ``simulated:``) may
    grow to half of the machine's free memory and be restarted; any other cache may not."""
    max_mode: Mode = Mode.AUTO
    """How much anybody may do here, through any door: ``observe`` and ``recommend`` refuse every change, ``approve`` refuses each
    change that no person approved."""
    engine: str | None = None
    """``http://host:port`` of the vLLM or SGLang that uses this cache. Its ``/metrics`` are read too. Not for ``fleet:``."""
    engines: tuple[str, ...] = ()
    """The same for several engines that use this cache: name all of them. Not together with `engine`."""
    engine_cache_tokens: EngineCacheTokens | None = None
    """Tokens that the engine's own prefix cache holds, if its metrics do not tell; 0 if that cache is off. For several engines a
    list in the order of `engines`."""
    access_log: Path | None = None
    """Folder of the server's ``--lookup-hash-log-dir``, or for ``engine:`` of its ``chunk_statistics_file_output_dir``, if we can
    read it. Not for ``embedded:``, which has its own folder."""
    arena_folder: Path | None = None
    """Folder on the server's host for live L1 growth. Not for ``embedded:``, which has its own folder."""
    module_token: SecretStr | None = None
    """Token of the server's module (``token_env`` of its config), for ``http:`` and ``fleet:``. ``env:NAME`` reads the token from
    that variable. Of a fleet's servers only those get it whose host and port `addresses` gives."""
    headers: dict[str, SecretStr] = {}
    """Headers that a proxy in front of the target asks for, e.g. ``{ Authorization = "env:NAME" }``: each value, or the
    environment variable that holds it. For ``fleet:`` they go to the coordinator, and to servers that `addresses`
    maps to a URL."""
    engine_headers: dict[str, SecretStr] = {}
    """The same for `engine`."""
    ca_file: Path | None = None
    """Certificates (PEM) of the authority that signed the certificate of the target and of `engine`, if it is your own."""
    networks: tuple[IPvAnyNetwork, ...] = ()
    """For ``fleet:`` only: networks in which servers may be called, e.g. ``10.1.0.0/16``. Others are reported and left out."""
    addresses: dict[str, str] = {}
    """For ``fleet:`` only: address to use for a server that is not reachable at the address it registered, or the URL of a proxy:
    ``"10.1.0.7:8080" = "127.0.0.1:9001"``."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Longest wait for each call to the admin API, seconds."""
    cooldown_seconds: Annotated[float, Field(ge=0)] | None = None
    """Pause after a change, seconds, before mode ``auto`` makes another change of the same server. The default is the time in
    which its traffic fills L1 once, at least a minute and at most a day."""
    kubernetes: KubernetesSettings | None = None
    """The ``LMCacheEngine`` resource of this server, in a file (``{ file = ... }``) or in a cluster
    (``{ name = ..., namespace = ... }``, with the extra `kubernetes`). Where it differs from what is in force, `status` says so,
    and a change that needs a restart is offered as a patch of it."""
    economics: Economics | None = None
    """Speed of the engine, and prices, by which advice is ranked."""
    embedded: EmbeddedOptions = EmbeddedOptions()
    """Options of the private server; only for ``embedded:``."""
    simulated: SimulatedOptions = SimulatedOptions()
    """What to simulate; only for ``simulated:``."""

    @model_validator(mode="after")
    def _its_engines(self) -> "CacheSettings":
        if self.all_engines and self.kind == "fleet":
            raise ValueError("a fleet has many engines; name one of its servers as a cache of its own to have its engine read")
        if self.engine is not None and self.engines:
            raise ValueError("name one engine in `engine`, or several in `engines`, not both")
        if len(set(self.engines)) < len(self.engines):
            raise ValueError("`engines` names an engine twice")
        return self

    @model_validator(mode="after")
    def _goes_somewhere(self) -> "CacheSettings":
        if self.module_token is not None and self.kind not in {"http", "https", "fleet"}:
            raise ValueError(f"module_token is for http: and fleet: only; {self.kind}: has no module to ask for it: remove it")
        return self

    @property
    def all_engines(self) -> tuple[str, ...]:
        """Addresses of all engines that use this cache and that are read."""
        return self.engines if self.engine is None else (self.engine,)

    def token_of_module(self) -> SecretStr | None:
        """Return the token itself.

        Raises:
            SettingsError: The environment variable that the setting names is not set.
        """
        return None if self.module_token is None else resolved(self.module_token, "module_token")

    def access(self) -> Access:
        """Return what the proxy in front of the target asks for.

        Raises:
            SettingsError: A variable is not set, or a header is none that a proxy asks for.
        """
        return Access({name: resolved(value, "headers") for name, value in self.headers.items()}, self.ca_file)

    def engine_access(self) -> Access:
        """Return the same for the engine."""
        return Access({name: resolved(value, "engine_headers") for name, value in self.engine_headers.items()}, self.ca_file)

    @property
    def kind(self) -> str:
        """Kind of the target: ``embedded``, ``http`` ..."""
        return self.target.partition(":")[0]

    @property
    def place(self) -> str:
        """Address of the target, without its kind."""
        return self.target.partition(":")[2]

    @property
    def private(self) -> bool:
        """Whether each process has a cache of its own under this name."""
        return self.kind in {"embedded", "simulated"}


def resolved(value: SecretStr, setting: str, where: str = " of a cache") -> SecretStr:
    """Return a secret, from the environment variable if the value is ``env:NAME``.

    Raises:
        SettingsError: The variable is not set. The message names the setting and `where` it is.
    """
    given = value.get_secret_value()
    if not given.startswith("env:"):
        return value
    name = given.removeprefix("env:")
    if not os.environ.get(name):
        raise SettingsError(f"{setting}{where} names the environment variable {name}, which is not set")
    return SecretStr(os.environ[name])


class WatchSettings(Frozen):
    """Where ``lmcache-agent watch`` tells what it found and did."""

    webhook: SecretStr | None = None
    """URL that each event is sent to, by POST as JSON. ``env:NAME`` reads the URL from that variable."""
    headers: dict[str, SecretStr] = {}
    """Headers that the webhook asks for, e.g. ``{ Authorization = "env:NAME" }``."""


class Settings(BaseSettings):
    """All of the operator's settings. Environment variables ``LMCACHE_AGENT_<NAME>`` override the file."""

    model_config = SettingsConfigDict(
        env_prefix="LMCACHE_AGENT_", extra="forbid", use_attribute_docstrings=True, frozen=True, hide_input_in_errors=True
    )

    caches: dict[str, CacheSettings] = {}
    """Name -> cache. If no cache is named ``default``, that name is a private embedded server, or a simulated one where
    lmcache is not installed."""
    state_folder: Path = user_state_path(APPLICATION)
    """Folder for the change log, the locks and the logs of embedded servers."""
    model: str | None = None
    """Chat model of the ready agent in the form that `init_chat_model` takes, e.g. ``openai:gpt-5.5``."""
    token: Annotated[SecretStr, Field(min_length=16)] | None = None
    """Token that callers of the REST service must send. Without a token, the service answers only programs on this machine."""
    approvers: dict[str, Annotated[SecretStr, Field(min_length=16)]] = {}
    """Name -> token of each person who may approve changes on LangGraph's server. If any are named, nobody else may, and an
    approver may answer the questions of a run but not start one."""

    tokens: dict[str, NamedToken] = {}
    """Name -> token of a caller with rights of their own. ``ci = "env:CI_TOKEN"`` may only read;
    ``ops = { token = "env:OPS_TOKEN", rights = ["read", "change"] }`` may change settings too. The change log
    keeps the name."""

    watch: WatchSettings = WatchSettings()
    """Where ``lmcache-agent watch`` tells what it found and did."""

    @field_validator("approvers", "tokens")
    @classmethod
    def _names_of_callers(cls, named: dict[str, Any]) -> dict[str, Any]:
        check_names(named)
        return named

    @model_validator(mode="after")
    def _one_owner_for_a_name(self) -> "Settings":
        if twice := self.approvers.keys() & self.tokens.keys():
            raise ValueError(f"{', '.join(sorted(twice))} is named in approvers and in tokens; name each caller once")
        return self

    @property
    def approver_names(self) -> frozenset[str]:
        """The people who may approve changes; if there are none, anybody may."""
        return frozenset(self.approvers) | {name for name, one in self.tokens.items() if Right.APPROVE in one.rights}

    def rights_of(self, caller: str | None) -> frozenset[Right]:
        """Return what a caller may ask for. A caller without a named token may ask for everything but approval."""
        return self.tokens[caller].rights if caller in self.tokens else EVERYTHING

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the signature is Pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=cls.file())

    @staticmethod
    def file() -> Path:
        """Return the path of the settings file of this process, whether or not the file exists."""
        named = os.environ.get(FILE_VARIABLE)
        return Path(named) if named else user_config_path(APPLICATION) / FILE_NAME

    @classmethod
    def load(cls) -> "Settings":
        """Return the settings of this process.

        Raises:
            SettingsError: The named file does not exist, is not TOML, or holds a value that makes no sense. The message says
                which. It holds no value of the file, and neither does its chain of exceptions: values can be secrets.
        """
        if os.environ.get(FILE_VARIABLE) and not cls.file().is_file():
            raise SettingsError(f"{FILE_VARIABLE} names {cls.file()}, which does not exist; correct it or create the file")
        try:
            return cls()
        except ValidationError as error:
            where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            wrong = f"the settings in {cls.file()} or LMCACHE_AGENT_* are wrong: {where}"
        except NotParsedError as error:
            wrong = f"an environment variable LMCACHE_AGENT_* is wrong: {error}"
        except ValueError as error:
            wrong = f"{cls.file()} is not TOML: {error}"
        except OSError as error:
            wrong = f"{cls.file()} cannot be read: {error.strerror}"
        raise SettingsError(wrong)  # outside of `except`, so that it does not hold the first error
