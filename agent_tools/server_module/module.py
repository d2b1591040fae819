"""The module as `lmcache server` knows it, and its installation."""

import json
import logging
import secrets
import sys
from typing import Any, get_args

from pydantic import ValidationError

from . import INTERFACE
from .fit import TESTED
from .guard import Guard, taken
from .options import Options, Part
from .parts import Parts, assembled
from .routes import router_of

_HTTP_SERVER = "lmcache.v1.multiprocess.http_server"


class AgentTools:
    """LMCache's `EngineModule`: it is asked for its status, and closed before the storage is."""

    def __init__(self, context: Any, options: Options, parts: Parts, config_error: str | None) -> None:  # noqa: ANN401
        self.context = context
        self._options, self._parts, self._config_error = options, parts, config_error
        self._instance = secrets.token_hex(8)

    @classmethod
    def install(cls, build_context: Any) -> "AgentTools":  # noqa: ANN401  LMCache's ExtServerModuleBuildContext
        """Make the parts that fit and add their routes to the server's admin HTTP.

        With a config that is not understood all parts are off, so that no bound is overlooked; the status says so.
        """
        context, error = build_context.server_context, None
        try:
            options = Options.model_validate(build_context.config)
        except ValidationError as invalid:
            error = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in invalid.errors())
            logging.getLogger(__name__).error("the config of --server-module is not understood, all parts are off: %s", error)  # noqa: TRY400
            options = Options(off=frozenset(get_args(Part)))
        try:
            guard = Guard(options)
            options = with_adapters_of_environment(options)
        except ValueError as unset:
            error = str(unset)
            logging.getLogger(__name__).error("all parts of agent_tools.server_module are off: %s", error)  # noqa: TRY400
            options = Options(off=frozenset(get_args(Part)))
            guard = Guard(options)
        module = cls(context, options, assembled(context, options), error)
        identity = {"version": INTERFACE, "instance": module._instance, "chunk_size": int(context.chunk_size)}
        _http_app().include_router(router_of(module._parts, guard, module.status, identity))
        return module

    def status(self) -> dict[str, Any]:
        """What of the module is there, and within which bounds."""
        version = _lmcache_version()
        off = self._parts.off
        return {
            "version": INTERFACE,
            "instance": self._instance,
            "lmcache": {"version": version, "tested": TESTED, "is_tested": version == TESTED},
            "config_error": self._config_error,
            "read_only": self._options.read_only,
            "parts": {part: {"enabled": part not in off, "why": off.get(part)} for part in get_args(Part)},
            "bounds": self._options.model_dump(
                mode="json", exclude={"off", "read_only", "l2_adapters", "l2_adapters_env", "token_env"}
            ),
            "recording": self._recording(),
        }

    def report_status(self) -> dict[str, Any]:
        """Merged into the server's ``/status``: the parts that work now, and whether they may change anything."""
        lookups = self._parts.lookups
        idle = set() if lookups is None or lookups.broken is None else {"window", "entries"}
        return {
            "agent_tools": {
                "version": INTERFACE,
                "parts": sorted(part for part in self._parts.made if part not in idle),
                "read_only": self._options.read_only,
                "needs_token": self._options.token_env is not None,
                "layouts": [] if self._parts.layouts is None else self._parts.layouts.all(),
                "chunks": None if self._parts.counts is None else self._parts.counts.read(),
            }
        }

    def close(self) -> None:
        """The server is about to end."""
        self._parts.close()

    def _recording(self) -> dict[str, Any]:
        lookups, made = self._parts.lookups, self._parts.made
        if lookups is None:
            return {"on": False, "why": "neither window nor entries are there"}
        return {
            "on": lookups.broken is None,
            "why": lookups.broken,
            "unfinished": lookups.unfinished,
            "without_chunks": lookups.without_chunks,
            "dropped_events": lookups.dropped_events,
            "window": made["window"].bounds if "window" in made else None,
            "tracked_chunks": len(made["entries"].history) if "entries" in made else None,
        }


def with_adapters_of_environment(options: Options) -> Options:
    """Add the adapters that ``l2_adapters_env`` names.

    Raises:
        ValueError: The variable is not set, or is not a JSON list of adapters.
    """
    if options.l2_adapters_env is None:
        return options
    text = taken(options.l2_adapters_env)
    try:
        more = Options.model_validate({"l2_adapters": json.loads(text)}).l2_adapters
    except ValueError:  # without its words, which repeat what stands there
        raise ValueError(f"the environment variable {options.l2_adapters_env} is not a JSON list of L2 adapters") from None
    return options.model_copy(update={"l2_adapters": (*options.l2_adapters, *more)})


def _lmcache_version() -> str | None:
    import lmcache  # noqa: PLC0415  loaded long since

    return getattr(lmcache, "__version__", None) or getattr(sys.modules.get("lmcache._version"), "__version__", None)


def _http_app() -> Any:  # noqa: ANN401  a FastAPI
    """The admin HTTP of this process; under ``python -m`` the module that made it is called ``__main__``."""
    main = sys.modules["__main__"]
    if getattr(main.__spec__, "name", None) == _HTTP_SERVER:
        return main.app
    __import__(_HTTP_SERVER)
    return sys.modules[_HTTP_SERVER].app
