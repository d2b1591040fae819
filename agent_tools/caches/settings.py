"""The operator's settings: which caches there are, under which names, and what may be done to them.

Read from the TOML file named by ``LMCACHE_AGENT_SETTINGS``, else from ``caches.toml`` in the working directory if there is one:

    [caches.prod]
    target = "http://127.0.0.1:8080"      # the server's --http-port
    access_log = "/var/log/lmcache"       # its --lookup-hash-log-dir, if readable from here
    arena_folder = "/dev/shm"             # on its host: makes the L1 size live
    bounds = { max_size_mb = 8192, allow_restart = false }
"""

import os
from pathlib import Path
from typing import Annotated

from platformdirs import user_state_path
from pydantic import Field, IPvAnyNetwork, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from agent_tools.deployments.server.embedded import EmbeddedOptions
from agent_tools.deployments.simulated.deployment import SimulatedOptions
from agent_tools.errors import SettingsError
from agent_tools.models import Bounds
from agent_tools.models.config import Frozen
from agent_tools.models.cost import Economics

FILE_VARIABLE = "LMCACHE_AGENT_SETTINGS"
DEFAULT_FILE = Path("caches.toml")


class CacheSettings(Frozen):
    """One cache of the directory."""

    target: str = "embedded:"
    """What it is and where:

    * ``http://host:port``: the admin API of an `lmcache server` (its ``--http-port``);
    * ``engine:http://host:port,http://host:port``: the internal API servers of all workers of an engine with LMCache inside;
    * ``fleet:http://host:port``: LMCache's coordinator and the servers it knows;
    * ``embedded:``: a private server that we start;
    * ``simulated:``: no LMCache at all but the model of a server, under generated or recorded traffic.
    """
    bounds: Bounds = Bounds()
    """What an agent may change here."""
    engine: str | None = None
    """``http://host:port`` of the vLLM in front of it, whose ``/metrics`` is read beside the cache's own; not for ``fleet:``."""
    access_log: Path | None = None
    """Folder of the server's ``--lookup-hash-log-dir``, if we can read it; not for ``embedded:``, which has its own."""
    arena_folder: Path | None = None
    """Folder on the server's own host for live L1 growth; not for ``embedded:``, which has its own."""
    networks: tuple[IPvAnyNetwork, ...] = ()
    """For ``fleet:`` alone: where its servers may be called, e.g. ``10.1.0.0/16``; one elsewhere is named and left out."""
    addresses: dict[str, str] = {}
    """For ``fleet:`` alone: where a server is reached that cannot be under the address it told its coordinator:
    ``"10.1.0.7:8080" = "127.0.0.1:9001"``."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Patience for each call to the admin API."""
    cooldown_seconds: Annotated[float, Field(ge=0)] | None = None
    """How long after a change no other change of the same cache is made in mode ``auto``; by default as long as its traffic
    takes to fill L1 once, at least a minute and at most a day."""
    economics: Economics | None = None
    """Speed of the engine and prices, to rank advice by what it saves."""
    embedded: EmbeddedOptions = EmbeddedOptions()
    """How the private server is started; only for ``embedded:``."""
    simulated: SimulatedOptions = SimulatedOptions()
    """What is simulated; only for ``simulated:``."""

    @model_validator(mode="after")
    def _one_engine(self) -> "CacheSettings":
        if self.engine is not None and self.kind == "fleet":
            raise ValueError("engine: a fleet has many; name a server of it as a cache of its own to have its engine read")
        return self

    @property
    def kind(self) -> str:
        """What it is without saying where: ``embedded``, ``http`` ..."""
        return self.target.partition(":")[0]

    @property
    def place(self) -> str:
        """Where it is, without its kind."""
        return self.target.partition(":")[2]

    @property
    def private(self) -> bool:
        """Whether each process has one of its own."""
        return self.kind in {"embedded", "simulated"}


class Settings(BaseSettings):
    """All of the operator's settings; also settable by environment variables ``LMCACHE_AGENT_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="LMCACHE_AGENT_", extra="forbid", use_attribute_docstrings=True, frozen=True)

    caches: dict[str, CacheSettings] = {}
    """Name -> cache. Without a cache named ``default``, that name is a private embedded server, or a simulated one where lmcache
    is not installed."""
    state_folder: Path = user_state_path("lmcache-agent")
    """Where the change log, the locks and the logs of embedded servers are kept."""
    model: str | None = None
    """Chat model of the ready agent, as `init_chat_model` takes it, e.g. ``openai:gpt-5.5``."""
    token: Annotated[SecretStr, Field(min_length=16)] | None = None
    """What callers of the REST service have to know; without it, only programs on this machine are answered."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the signature is Pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=_file())

    @classmethod
    def load(cls) -> "Settings":
        """The settings of this process.

        Raises:
            SettingsError: The file is missing, is not TOML, or holds a value that makes no sense; says which.
        """
        if os.environ.get(FILE_VARIABLE) and not _file().is_file():
            raise SettingsError(f"{FILE_VARIABLE} names {_file()}, which does not exist")
        try:
            return cls()
        except ValidationError as error:
            where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise SettingsError(f"the settings in {_file()} or LMCACHE_AGENT_* are wrong: {where}") from error
        except ValueError as error:
            raise SettingsError(f"{_file()} is not TOML: {error}") from error


def _file() -> Path:
    return Path(os.environ.get(FILE_VARIABLE) or DEFAULT_FILE)
