"""`LMCacheClient`: one cache for a script or a notebook. Every method blocks until it is done; none needs an event loop."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pydantic import ValidationError
from typing_extensions import Self

from .caches.registry import DEFAULT, Registry
from .caches.settings import CacheSettings, Settings
from .changes.wanted import still_to_change
from .errors import (
    CacheDiedError,
    NothingToChangeError,
    NotLMCacheError,
    RefusedError,
    UnknownChangeError,
    UnreachableError,
    UnsupportedError,
)
from .io_loop import io_loop
from .models import (
    SETTINGS,
    Advice,
    Bounds,
    CacheConfig,
    CacheMetrics,
    CacheOptimizationResult,
    ChangeRecord,
    ChangeResult,
    ConfigUpdate,
    EvictionPolicy,
    LMCacheStatus,
    Mode,
    Plan,
    Symptom,
    Verification,
)
from .operations import Operations, shared_operations
from .prediction.forecast import Forecast
from .prediction.model_kv import model_kv
from .prediction.size_pricing import Terms
from .prediction.sizing import Sizing
from .tuning.state import TuneContext, TuneReport

if TYPE_CHECKING:
    from .recommender.compare import CacheComparison

P = ParamSpec("P")
T = TypeVar("T")
ACTOR = "client"
"""Name of this client in the change log."""


class LMCacheClient:
    """One cache, synchronously.

        with LMCacheClient() as cache:
            print(cache.get_metrics().hit_rate_percent)
            cache.update_config(max_size_mb=2048)

    Without LMCache installed, and without a cache named in ``caches.toml``, the cache is simulated: `repr` and
    `LMCacheStatus.backend` say so. Errors are the ones of `agent_tools.errors`; each says what happened and what to do.
    """

    def __init__(self, cache: str = DEFAULT, *, config: CacheConfig | None = None, bounds: Bounds | None = None) -> None:
        """Connect to a cache. A private cache starts with the first call.

        Args:
            cache: A name in ``caches.toml``, or a target: ``http://host:8080``, ``engine:http://host:6999``,
                ``fleet:http://host:9000``, ``embedded:`` or ``simulated:``.
            config: A private cache (``embedded:``, ``simulated:``) starts with these settings. Any other cache must have them
                already, else the first call fails; `update_config` changes them.
            bounds: What this client may change. For a name, they narrow the operator's bounds.

        Raises:
            UnknownCacheError: No cache has this name.
            SettingsError: The operator's settings, or the target, are wrong.
            UnsupportedError: A private cache cannot start with these settings, or LMCache is not installed.
        """
        settings = Settings.load()
        own = _own_settings(settings, cache, config, bounds)
        self.cache = cache.removesuffix(":")
        self._own = own is not None
        self._operations = (
            shared_operations()
            if own is None
            else Operations(Registry(settings.model_copy(update={"caches": {self.cache: own}})))
        )
        self._bounds = None if ":" in cache else bounds
        self._must_hold = config
        self.last_change: ChangeResult | None = None
        """The last change of settings that this client made."""
        registry = self._operations.registry
        named = io_loop.run(registry.find, self.cache if self.cache in registry.names else cache.partition("/")[0])
        self._backend = named.deployment.backend

    def __repr__(self) -> str:
        return f"LMCacheClient({self.cache!r}, backend={self._backend!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and stop a private cache of this client. Caches of ``caches.toml`` stay for other callers."""
        if self._own:
            io_loop.run(self._operations.close)

    # ---- read ----

    def is_available(self) -> bool:
        """Return whether the cache answers."""
        try:
            self.get_config()
        except (UnreachableError, NotLMCacheError, RefusedError, CacheDiedError):
            return False
        return True

    def get_metrics(self, window_seconds: float | None = None) -> CacheMetrics:
        """Return the figures of the last `window_seconds`, or since the cache process started.

        The call waits for the part of the window that was not observed yet.
        """
        return self._run(Operations.metrics, window_seconds)

    def get_config(self) -> CacheConfig:
        """Return the settings in force. ``None`` means that the cache does not report the setting."""
        return self._run(Operations.settings)

    def get_status(self, instance_id: str | None = None) -> LMCacheStatus:
        """Return what the cache is, its settings, health and figures.

        Args:
            instance_id: Label for the status, in place of the id that LMCache reports. `notes` then holds LMCache's own id.
        """
        status = self._run(Operations.status)
        if instance_id is None:
            return status
        note = f"chosen by the caller; LMCache reports {status.instance_id}"
        return status.model_copy(update={"instance_id": instance_id, "notes": {**status.notes, "instance_id": note}})

    def changes(self) -> list[ChangeRecord]:
        """Return the change log of the cache, oldest first."""
        return self._run(Operations.changes)

    # ---- advise ----

    def diagnose(self, window_seconds: float | None = None) -> tuple[Symptom, ...]:
        """Return what is wrong, worst first."""
        return self._run(Operations.diagnose, window_seconds)

    def recommend(self, window_seconds: float | None = None) -> Advice:
        """Return what would make the cache better, or why nothing would. Changes nothing."""
        return self._run(Operations.recommend, window_seconds, self._bounds)

    def predict(self, sizes_mb: Sequence[float] | None = None, **instead: Any) -> Forecast:  # noqa: ANN401  settings
        """Return what L1 sizes would give on the requests so far, with the settings of `instead` in place of those in force."""
        update = ConfigUpdate.model_validate(_wanted(None, instead).known()) if instead else None
        forecast, _ = self._run(Operations.forecast, update, sizes_mb)
        return forecast

    def size(
        self, model_config: Mapping[str, Any], *, gpu_free_gb: float | None = None, ranks: int = 1, **terms: float
    ) -> Sizing:
        """Return what sizes of the engine's own cache, L1 and L2 would give on the requests so far if another model served them.

        Args:
            model_config: The model's ``config.json``.
            gpu_free_gb: Memory that each GPU has for KV, GB.
            ranks: Tensor-parallel ranks.
            terms: Speeds and prices by name, e.g. ``prefill_tokens_per_second=9000``; see `Terms`.
        """
        return self._run(Operations.size, model_kv(model_config, ranks=ranks), gpu_free_gb, Terms.model_validate(terms))

    def compare(self, *others: str, window_seconds: float | None = None, budget_mb: float | None = None) -> "CacheComparison":
        """Return where a megabyte earns most: the L1 sizes that give this cache and others of its machine the most hits together.

        Changes nothing.

        Args:
            others: Names of the other caches in ``caches.toml``. The caller knows that they share this cache's machine.
            window_seconds: Length of the window, seconds.
            budget_mb: Memory to divide, MB; by default what the caches have now.

        Raises:
            UnknownCacheError: There is no cache of one of the names.
            UnsupportedError: Fewer than two caches can be compared.
            OutOfBoundsError: The budget does not cover the smallest sizes that the bounds allow.
        """

        async def compare(operations: Operations, cache: str) -> "CacheComparison":
            return await operations.compare_caches((cache, *others), window_seconds, budget_mb)

        return self._run(compare)

    # ---- change ----

    def plan(self, config: CacheConfig | ConfigUpdate | None = None, *, reason: str = "", **settings: Any) -> Plan:  # noqa: ANN401
        """Return what `update_config` would change and cost. Changes nothing.

        Raises:
            NothingToChangeError: The cache already is as wanted.
        """
        return self._run(Operations.plan, _wanted(config, settings), reason, self._bounds)

    def update_config(
        self,
        config: CacheConfig | ConfigUpdate | None = None,
        *,
        reason: str = "",
        **settings: Any,  # noqa: ANN401
    ) -> CacheConfig:
        """Change settings and return the configuration in force. Settings that hold already are no change.

        Args:
            config: Any subset of the settings.
            reason: Why; goes into the change log.
            settings: The same by name, e.g. ``max_size_mb=2048``, in place of `config`.

        Raises:
            UnsupportedError: The cache cannot do it; the message says what can be done instead. Nothing was changed.
            OutOfBoundsError: The bounds do not allow it. Nothing was changed.
            LMCacheToolError: Any other failure; see `agent_tools.errors`.
        """
        wanted = _wanted(config, settings)
        result = self._run(Operations.configure, wanted, reason, ACTOR, bounds=self._bounds)
        if result is None:
            return self.get_config()
        self.last_change = result
        return result.config

    def undo(self, change_id: str | None = None) -> CacheConfig:
        """Undo a change of settings, by default the last one of this client. Return the configuration in force."""
        return self._run(Operations.undo, change_id or self._own_last_change(), ACTOR).config

    def verify(self, change_id: str | None = None, *, verify_seconds: float = 120.0) -> Verification:
        """Return whether a change of settings helped, by default the last one of this client. See `Verification.keep`.

        Args:
            change_id: The change, from `changes`; also one that was made by hand.
            verify_seconds: Longest wait for as much traffic as before the change.
        """
        chosen = change_id or self._own_last_change()

        async def verify(operations: Operations, cache: str) -> Verification:
            return await operations.verify_change(chosen, verify_seconds, cache)

        return self._run(verify)

    def optimize(self, target_utilization_percent: float = 60.0, reason: str = "") -> CacheOptimizationResult:
        """Remove least recently used entries until at most this share of L1 is used. They cannot be restored."""
        return self._run(Operations.optimize, target_utilization_percent, ACTOR, reason)

    def clear_cache(self, reason: str = "") -> CacheOptimizationResult:
        """Remove everything from L1. This cannot be undone."""
        return self._run(Operations.clear, ACTOR, reason)

    def tune(
        self, mode: Mode = Mode.AUTO, *, window_seconds: float = 30.0, verify_seconds: float = 120.0, reason: str = ""
    ) -> TuneReport:
        """Observe the cache, find what would help, change it within the bounds, verify the change, and undo it if it did harm.

        Args:
            mode: ``observe`` and ``recommend`` change nothing. ``approve`` needs a graph with a checkpointer, see `tune_cache`.
            window_seconds: How long to observe first; 0 takes everything since the cache process started.
            verify_seconds: Longest wait, after a change, for as much traffic as was observed before it.
            reason: Why; goes into the change log.
        """
        from .tuning.tune_cache import build_tune_cache  # noqa: PLC0415  LangGraph, which nothing else here needs

        io_loop.run(self._hold)
        limits = {"window_seconds": window_seconds, "verify_seconds": verify_seconds}
        context = TuneContext(cache=self.cache, mode=mode, bounds=self._bounds, **limits)
        graph = build_tune_cache(operations=self._operations).compile(name="tune_cache")
        return TuneReport.model_validate(graph.invoke({"tune_reason": reason}, context=context)["tune_report"])

    # ---- parts ----

    def _own_last_change(self) -> str:
        if self.last_change is None:
            raise UnknownChangeError("this client has changed nothing yet: give the id of a change, from changes()")
        return self.last_change.change_id

    def _run(self, verb: Callable[Concatenate[Operations, str, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        async def call() -> T:
            await self._hold()
            return await verb(self._operations, self.cache, *args, **kwargs)

        return io_loop.run(call)

    async def _hold(self) -> None:
        """Raise `UnsupportedError`, at the first call, if the cache is not set as this client was told it is."""
        if self._must_hold is None:
            return
        cache = await self._operations.registry.find(self.cache)
        now = await cache.deployment.config()
        try:
            left = still_to_change(self._must_hold, now, cache.settings.bounds, self.cache)
        except NothingToChangeError:
            self._must_hold = None
            return
        differ = ", ".join(f"{name} is {now.known().get(name)}, not {value}" for name, value in left.known().items())
        raise UnsupportedError(
            f"{self.cache} is not set as the config of this client says: {differ}. Leave config out, and change settings with"
            " update_config. Nothing was changed"
        )


def _own_settings(settings: Settings, cache: str, config: CacheConfig | None, bounds: Bounds | None) -> CacheSettings | None:
    """Return the settings of a cache that belongs to one client: a target, or a private cache with a configuration."""
    if ":" in cache:
        chosen = CacheSettings(target=cache) if bounds is None else CacheSettings(target=cache, bounds=bounds)
        return _started_with(chosen, config) if config is not None and chosen.private else chosen
    registry = Registry(settings)
    if config is None or cache not in registry.names or not registry.settings_of(cache).private:
        return None
    return _started_with(registry.settings_of(cache), config)


def _started_with(settings: CacheSettings, config: CacheConfig) -> CacheSettings:
    """Return the settings of a private cache that starts with a configuration."""
    options = getattr(settings, settings.kind)
    names = type(options).model_fields
    wanted = {"l1_size_mb": config.max_size_mb} | {name: getattr(config, name) for name in names if name in SETTINGS}
    if config.auto_eviction is False and config.eviction_policy is None:
        wanted["eviction_policy"] = EvictionPolicy.NOOP
    given = {name: value for name, value in wanted.items() if value is not None}
    started = type(options)(**{name: getattr(options, name) for name in names} | given)
    return settings.model_copy(update={settings.kind: started})


def _wanted(config: CacheConfig | ConfigUpdate | None, settings: dict[str, Any]) -> CacheConfig | ConfigUpdate:
    if (config is None) is (not settings):
        raise TypeError("give either a CacheConfig (or ConfigUpdate) or settings by name, e.g. max_size_mb=2048")
    if config is not None:
        return config
    try:
        return CacheConfig.model_validate(settings)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UnsupportedError(f"{wrong}. Nothing was changed") from error
