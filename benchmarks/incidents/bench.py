"""One incident through the product's own path: its directory, its operations, its graph; traffic goes on all the while."""

import datetime as dt
import math
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from agent_tools.caches.observer import READ_EVERY
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.errors import LMCacheToolError, UnsupportedError
from agent_tools.io_loop import io_loop
from agent_tools.models import Advice, CacheConfig, ChangeResult, ConfigUpdate, Mode, Verdict, VerificationVerdict
from agent_tools.models.change import Baseline
from agent_tools.operations import Operations
from agent_tools.tuning.state import TuneContext, TuneReport
from agent_tools.tuning.tune_cache import build_tune_cache
from agent_tools.workload.tokens import prompt

from .incident import Incident
from .outcome import Outcome
from .stages import Running, staged

SECONDS = 40.0
"""The traffic takes so long at most; it ends when the incident is over."""
WARM, OBSERVED, AFTERWARDS = 5.0, 11.0, 8.0
"""Seconds before the observed window, of the window, and after nothing was done."""
VERIFY = 14.0
"""Patience of the product's own verification."""
CACHE = "prod"


def run(incident: Incident) -> Outcome:
    """Provoke an incident, let the product act, and say what came of it; whatever happens, all is stopped."""
    began, before = time.monotonic(), _children()
    left: list[str] = []
    try:
        with staged(incident, SECONDS) as (stage, left), tempfile.TemporaryDirectory(prefix="incident-") as state:
            cache = CacheSettings(bounds=incident.bounds, **stage.settings)
            operations = Operations(Registry(Settings(caches={CACHE: cache}, state_folder=Path(state))))
            try:
                seen = _Run(incident, stage, operations).outcome()
            finally:
                io_loop.run(operations.close)
        seen = replace(seen, failures=tuple(stage.failures))
    except Exception as error:  # noqa: BLE001  one incident must not end the bench
        seen = Outcome(crashed=f"{type(error).__name__}: {error}")
    processes = [f"process {child.pid} ({child.name()})" for child in _children() - before if child.is_running()]
    today = f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}"
    return replace(seen, left=(*left, *processes), seconds=time.monotonic() - began, date=today)


class _Run:
    """The phases of one run."""

    def __init__(self, incident: Incident, stage: Running, operations: Operations) -> None:
        self._incident, self._stage, self._operations = incident, stage, operations
        self._over = threading.Event()

    def outcome(self) -> Outcome:
        io_loop.run(self._operations.metrics, CACHE)
        watching = threading.Thread(target=self._watch)
        watching.start()
        self._stage.begin()
        settings = self._settings()
        try:
            return self._phases()
        except LMCacheToolError as error:
            self._stage.recover()
            return Outcome(told=str(error), result="refused", differing_settings=differing(settings, self._settings()))
        finally:
            self._over.set()
            watching.join()
            self._stage.halt()

    def _phases(self) -> Outcome:
        time.sleep(WARM)
        began = time.time()
        settings, health = self._settings(), self._problems()
        time.sleep(OBSERVED / 3)
        if self._incident.provoke is not None:
            self._incident.provoke(self._stage)
        time.sleep(max(OBSERVED / 2, began + OBSERVED - time.time()))
        observed = time.time() - began
        before = self._baseline(observed)
        problems = self._problems()
        acted = ACTS[self._incident.by](self._operations, observed)
        if not acted.changed or acted.undone:
            time.sleep(AFTERWARDS)
            after = self._baseline(AFTERWARDS)
        else:
            since = time.time() - acted.changed_at
            after, acted.outcome = self._baseline(since), self._looked_again(acted.outcome, since)
        now = self._settings()
        return replace(
            acted.outcome,
            differences=tuple(sorted(now.differences)),
            rate_before=before.metrics.tokens.hit_rate,
            rate_after=after.metrics.tokens.hit_rate,
            noise=2 * math.hypot(standard_error(before), standard_error(after)),
            problems_before=tuple({*health, *problems}),
            problems_after=self._problems(),
            differing_settings=differing(settings, now),
        )

    def _looked_again(self, outcome: Outcome, window: float) -> Outcome:
        """Ask for advice once more, now that the first is followed."""
        advice = io_loop.run(self._operations.recommend, CACHE, window)
        best = advice.best or advice.trial
        if best is None:
            return replace(outcome, then={})
        then = {one.setting: [one.old, one.new] for one in best.changes} or {best.action.value: []}
        return replace(outcome, then=then, then_gain=best.gain.estimate if best.gain else None)

    def _baseline(self, seconds: float) -> Baseline:
        return io_loop.run(self._operations.baseline, CACHE, seconds)

    def _settings(self) -> CacheConfig:
        return io_loop.run(self._operations.settings, CACHE)

    def _problems(self) -> tuple[str, ...]:
        return io_loop.run(self._operations.status, CACHE).health.problems

    def _watch(self) -> None:
        """Read the cache, as an agent does that looks after it."""
        while not self._over.wait(READ_EVERY):
            with suppress(LMCacheToolError):
                io_loop.run(self._operations.metrics, CACHE)


class _Acted:
    """What the product said and did, so far as it is part of an `Outcome`."""

    def __init__(self, outcome: Outcome, change: ChangeResult | None, changed_at: float) -> None:
        self.changed, self.undone, self.changed_at = change is not None, outcome.undone, changed_at
        changes = {} if change is None else {one.setting: [one.old, one.new] for one in change.plan.changes}
        self.outcome = replace(outcome, changed=changes)


def _by_graph(operations: Operations, window: float) -> _Acted:
    """`tune_cache` in mode auto: it may act within the operator's bounds, and nobody is asked."""
    graph = build_tune_cache(operations=operations).compile()
    context = TuneContext(cache=CACHE, mode=Mode.AUTO, window_seconds=window, verify_seconds=VERIFY)
    changed_at = time.time()
    told: dict[str, Any] = {}
    events: Any = graph.stream({"tune_reason": "incident"}, context=context, stream_mode=["custom", "values"])
    for kind, event in events:
        if kind == "values":
            told = event.get("tune_report") or told
        elif str(event.get("message", "")).startswith("applied"):
            changed_at = time.time()
    report = TuneReport.model_validate(told)
    symptoms = report.advice.symptoms if report.advice else ()
    return _Acted(
        Outcome(
            symptoms=tuple(symptom.code.value for symptom in symptoms),
            told="\n".join([*_said(report.advice), report.summary, (report.plan and report.plan.command) or ""]),
            result=report.outcome.value,
            undone=report.undo is not None,
            dropped=report.dropped.entries_evicted if report.dropped else 0,
            verified=report.verification.why if report.verification else "",
        ),
        report.change,
        changed_at,
    )


def _by_quotas(operations: Operations, window: float) -> _Acted:
    """What an agent does with the tenants' tools: ask how L2 is best divided, and follow it where the advice is to act."""
    symptoms = io_loop.run(operations.diagnose, CACHE, window)
    before = io_loop.run(operations.baseline, CACHE, window)
    said = [symptom.summary for symptom in symptoms]
    codes = tuple(symptom.code.value for symptom in symptoms)
    try:
        advice = io_loop.run(operations.tenant_quotas, CACHE, window)
    except UnsupportedError as error:
        return _Acted(Outcome(symptoms=codes, told="\n".join([*said, str(error)]), result="do_nothing"), None, time.time())
    told = "\n".join([*said, advice.why, *advice.notes])
    if advice.verdict is not Verdict.ACT:
        return _Acted(Outcome(symptoms=codes, told=told, result=advice.verdict.value), None, time.time())
    plan = io_loop.run(operations.plan, CACHE, ConfigUpdate(tenant_quotas_mb=advice.quotas_mb), advice.why)
    change = io_loop.run(operations.apply, plan, "incident bench")
    changed_at = time.time()
    verification = io_loop.run(operations.verify, change, before, VERIFY)
    harmed = verification.verdict is VerificationVerdict.WORSE
    if harmed:
        io_loop.run(operations.undo, CACHE, change.change_id, "incident bench")
    result = {VerificationVerdict.BETTER: "improved", VerificationVerdict.WORSE: "rolled_back"}
    return _Acted(
        Outcome(
            symptoms=codes,
            told=told,
            result=result.get(verification.verdict, "kept_undecided"),
            undone=harmed,
            verified=verification.why,
        ),
        change,
        changed_at,
    )


def _by_delete(operations: Operations, window: float) -> _Acted:
    """Delete what the first prompt of the traffic stored, as an agent does that was told its text."""
    symptoms = io_loop.run(operations.diagnose, CACHE, window)
    chunks, size = 10, io_loop.run(operations.settings, CACHE).chunk_size or 0
    tokens = prompt(np.arange(chunks, dtype=np.int32), chunks * size, size)
    dropped = io_loop.run(operations.delete_prefix, CACHE, "replay", tokens, "", "incident bench", "it must go")
    return _Acted(
        Outcome(
            symptoms=tuple(symptom.code.value for symptom in symptoms),
            told="\n".join([*(symptom.summary for symptom in symptoms), dropped.message]),
            result="deleted" if dropped.success else "failed",
        ),
        None,
        time.time(),
    )


ACTS = {"graph": _by_graph, "quotas": _by_quotas, "delete": _by_delete}


def _said(advice: Advice | None) -> list[str]:
    return [] if advice is None else [symptom.summary for symptom in advice.symptoms]


def standard_error(seen: Baseline) -> float:
    """Return the standard error of a token hit rate, from the readings of its window as draws of a ratio."""
    asked = sum(requested for requested, _ in seen.intervals)
    count, rate = len(seen.intervals), seen.metrics.tokens.hit_rate
    if not asked or rate is None or count < 2:
        return 0.0
    squares = sum((hit - rate * requested) ** 2 for requested, hit in seen.intervals)
    return math.sqrt(squares * count / (count - 1)) / asked


def differing(before: CacheConfig, after: CacheConfig) -> tuple[str, ...]:
    """Return the names of the settings that differ."""
    old, new = before.known(), after.known()
    return tuple(sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)))


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))
