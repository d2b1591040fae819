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
from typing import Annotated

from platformdirs import user_config_path, user_state_path
from pydantic import Field, IPvAnyNetwork, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource
from pydantic_settings import SettingsError as NotParsedError

from agent_tools.deployments.start_options import EmbeddedOptions, SimulatedOptions
from agent_tools.errors import SettingsError
from agent_tools.models import Bounds, Mode
from agent_tools.models.config import Frozen
from agent_tools.models.cost import Economics

FILE_VARIABLE = "LMCACHE_AGENT_SETTINGS"
FILE_NAME = "caches.toml"
APPLICATION = "lmcache-agent"


class CacheSettings(Frozen):
    """The settings of one cache."""

    target: str = "embedded:"
    """What the cache is, and its address:

    * ``http://host:port``: the admin API of an `lmcache server` (its ``--http-port``);
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
    """``http://host:port`` of the vLLM that uses this cache. Its ``/metrics`` are read too. Not for ``fleet:``."""
    engine_cache_tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens that the engine's own prefix cache holds, if we cannot read the engine; 0 if that cache is off."""
    access_log: Path | None = None
    """Folder of the server's ``--lookup-hash-log-dir``, or for ``engine:`` of its ``chunk_statistics_file_output_dir``, if we can
    read it. Not for ``embedded:``, which has its own folder."""
    arena_folder: Path | None = None
    """Folder on the server's host for live L1 growth. Not for ``embedded:``, which has its own folder."""
    module_token: SecretStr | None = None
    """Token of the server's module (``token_env`` of its config), for ``http:`` only. ``env:NAME`` reads the token from
    that variable."""
    networks: tuple[IPvAnyNetwork, ...] = ()
    """For ``fleet:`` only: networks in which servers may be called, e.g. ``10.1.0.0/16``. Others are reported and left out."""
    addresses: dict[str, str] = {}
    """For ``fleet:`` only: address to use for a server that is not reachable at the address it registered:
    ``"10.1.0.7:8080" = "127.0.0.1:9001"``."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Longest wait for each call to the admin API, seconds."""
    cooldown_seconds: Annotated[float, Field(ge=0)] | None = None
    """Pause after a change, seconds, before mode ``auto`` makes another change of the same server. The default is the time in
    which its traffic fills L1 once, at least a minute and at most a day."""
    economics: Economics | None = None
    """Speed of the engine, and prices, by which advice is ranked."""
    embedded: EmbeddedOptions = EmbeddedOptions()
    """Options of the private server; only for ``embedded:``."""
    simulated: SimulatedOptions = SimulatedOptions()
    """What to simulate; only for ``simulated:``."""

    @model_validator(mode="after")
    def _one_engine(self) -> "CacheSettings":
        if self.engine is not None and self.kind == "fleet":
            raise ValueError("a fleet has many engines; name one of its servers as a cache of its own to have its engine read")
        return self

    def token_of_module(self) -> SecretStr | None:
        """Return the token itself.

        Raises:
            SettingsError: The environment variable that the setting names is not set.
        """
        given = None if self.module_token is None else self.module_token.get_secret_value()
        if given is None or not given.startswith("env:"):
            return self.module_token
        name = given.removeprefix("env:")
        if not os.environ.get(name):
            raise SettingsError(f"module_token of a cache names the environment variable {name}, which is not set")
        return SecretStr(os.environ[name])

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

    @field_validator("approvers")
    @classmethod
    def _names_of_people(cls, approvers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        """What a caller without a name of their own is called must not be the name of an approver."""
        if taken := {"token", "local", "a person"} & approvers.keys():
            raise ValueError(
                f"{', '.join(sorted(taken))} is what callers without a name are called; name the approvers otherwise"
            )
        return approvers

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
