"""The report: one self-contained HTML page with the state of a cache, the advice, its evidence, and the past changes.

Text from outside (names of models and tenants, answers of servers, reasons) stays text and never becomes markup: see `markup`.
The page's Content-Security-Policy forbids scripts and the network.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from string import Template
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from agent_tools.errors import UnsupportedError, WorkloadError
from agent_tools.models import (
    Advice,
    CacheMetrics,
    ChangeRecord,
    Evidence,
    MoreNames,
    OptimizationRecommendation,
    SettingChange,
    Severity,
    TokenCounts,
    Verdict,
    Verification,
    VerificationVerdict,
)
from agent_tools.models.engine import EngineMetrics
from agent_tools.plain import plain
from agent_tools.prediction.forecast import Forecast

from .history import change_cards
from .markup import Html, badge, card, facts, folded, inert, joined, link, listed, section, table, tag
from .pictures import before_after_picture, current_mark, hit_rate_picture, inline_svg, proposed_mark, size_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMES = 20
"""The most models or tenants listed."""

READING = (
    "Token hit rate is the share of the requested prompt tokens, in whole chunks, that came from L1 or L2. The tokens after a"
    " prompt's last whole chunk are never cached and are not counted. 'This server' is the model of lmcache server 0.5.6, run"
    " on the access log; its interval covers the unknown moments of eviction. 'Always-full LRU' and 'best possible' are ideal"
    " caches, computed exactly for the observed requests; the difference between them is the policy gap. Future requests may"
    " differ from past ones, so a change counts only after it was verified."
)

BADGES = {
    Verdict.ACT: ("act", "act"),
    Verdict.DO_NOTHING: ("do nothing", "good"),
    Verdict.NO_DATA: ("not enough data", ""),
    VerificationVerdict.BETTER: ("better", "good"),
    VerificationVerdict.WORSE: ("worse", "act"),
    VerificationVerdict.UNDECIDED: ("undecided", ""),
}
URGENT = {Severity.HIGH, Severity.CRITICAL}


def html_report(
    advice: Advice,
    metrics: CacheMetrics,
    *,
    forecast: Forecast | None = None,
    verification: Verification | None = None,
    changes: Sequence[ChangeRecord] = (),
    log_problems: Sequence[str] = (),
) -> str:
    """Return the page as text, to be written as UTF-8. Without matplotlib the page has no pictures and says so.

    Args:
        advice: The advice on the cache.
        metrics: The figures of the window that the advice is based on.
        forecast: The predictions for other L1 sizes.
        verification: The verification of the last change.
        changes: The change log of the cache, oldest first.
        log_problems: Lines of the change log that could not be read.
    """
    parts = (
        _head(advice),
        _now(advice, metrics),
        _advice(advice),
        _forecast(forecast, metrics, advice.best) if forecast is not None else Html(),
        section(
            "What was changed",
            _verified(verification),
            *change_cards(changes),
            *(tag("p", one, kind="quiet") for one in log_problems),
        ),
        _names("Models", metrics.by_model, metrics.more_models),
        _names("Tenants", metrics.by_tenant, metrics.more_tenants),
        section("How to read this", card(tag("p", READING, kind="quiet"))),
    )
    return _page().substitute(title=inert(f"LMCache report: {advice.cache}"), body="\n".join(parts))


def no_report(cache: str, why: str) -> str:
    """Return the page shown in place of a report that could not be made."""
    cache = plain(cache)
    parts = (tag("h1", "LMCache ", tag("bdi", cache)), tag("p", badge("no report", "act"), " ", why, kind="lead"))
    return _page().substitute(title=inert(f"LMCache report: {cache}"), body="\n".join(parts))


def served(page: str, cache: str, refresh: int) -> str:
    """Return a report as a service shows it, with a line on refreshing.

    The line says that the report reloads every `refresh` seconds (0: never) and links to the other choice.
    """
    here = f"?{urlencode({'cache': cache})}"
    if refresh:
        line = tag("p", f"reloads every {refresh} s; ", link("pause", f"{here}&refresh=0"), kind="live")
    else:
        line = tag("p", "paused; ", link("reload automatically", here), kind="live")
    return page.replace("<main>", f"<main>\n{line}", 1)


@cache
def _page() -> Template:
    return Template((resources.files("agent_tools.report") / "page.html").read_text(encoding="utf-8"))


def _head(advice: Advice) -> Html:
    seen = f"{_span(advice.window.seconds)}{', since its process started' if advice.window.lifetime else ''}"
    if advice.window.simulated:
        seen += "; SIMULATED: no figure comes from a real cache"
    line = f"{advice.created_at:%Y-%m-%d %H:%M} UTC; observed {seen}; evidence: {_words(advice.rung.value)}"
    return joined(
        (
            tag("h1", "LMCache ", tag("bdi", advice.cache)),
            tag("p", line, kind="quiet"),
            tag("p", badge(*BADGES[advice.verdict]), " ", advice.why, kind="lead"),
        )
    )


def _now(advice: Advice, metrics: CacheMetrics) -> Html:
    tokens, rate, used = metrics.tokens, metrics.tokens.hit_rate, metrics.utilization_percent
    tiers = f"L1 {tokens.hit_l1 / tokens.requested:.1%}, L2 {tokens.hit_l2 / tokens.requested:.1%}" if rate else ""
    figures = (
        *_prompt_tokens(metrics),
        (_hit_rate_name(metrics), "hit_rate_percent", None if rate is None else f"{rate:.1%}", tiers),
        ("L1 in use", "utilization_percent", None if used is None else f"{used:.0f}%", _of_l1(metrics)),
        ("lookups", "total_requests", _count(metrics.total_requests), ""),
        *_engine(metrics),
        ("tokens computed", "tokens_computed", _count(metrics.tokens_computed), "not found in the cache"),
        ("chunks evicted", "evictions", _count(metrics.evictions), ""),
        ("stores dropped, chunks", "failed_stores", _count(metrics.failed_stores), "because L1 was full"),
    )
    tiles = [_tile(name, value, note if value else metrics.unavailable.get(field, note)) for name, field, value, note in figures]
    symptoms = [
        joined((inert(f"{one.summary} "), badge(one.severity.value, "act" if one.severity in URGENT else "")))
        for one in advice.symptoms
    ]
    return section("Now", tag("div", *tiles, kind="tiles"), card(tag("h3", "What this shows"), listed(symptoms)))


def _tile(name: str, value: str | None, note: str) -> Html:
    return tag(
        "div", tag("b", value or "not known", kind="" if value else "unknown"), tag("span", name), tag("i", note), kind="tile"
    )


def _prompt_tokens(metrics: CacheMetrics) -> list[tuple[str, str, str | None, str]]:
    """Return tiles for the engine's prompt tokens by source, if an engine is named. What LMCache saved comes first."""
    engine = metrics.engine
    if engine is None or not engine.prompt_tokens:
        return []
    shares = (
        ("of the prompts loaded from LMCache", engine.saved_share, "what it saves the engine"),
        ("of the prompts from the engine's own cache", engine.own_cache_share, _each_engine(engine)),
        ("of the prompts computed", engine.computed_share, f"of {engine.prompt_tokens:,} prompt tokens"),
    )
    lacks = engine.doubt or f"the engine's metrics lack {', '.join(engine.missing)}"
    return [
        (name, "engine", None if share is None else f"{share:.1%}", lacks if share is None else note)
        for name, share, note in shares
    ]


def _hit_rate_name(metrics: CacheMetrics) -> str:
    return "token hit rate" if metrics.engine is None else "LMCache's own token hit rate"


def _each_engine(engine: EngineMetrics) -> str:
    shares = [one.own_cache_share for one in engine.engines]
    return ", ".join("unknown" if share is None else f"{share:.1%}" for share in shares) + " by engine" if shares else ""


def _engine(metrics: CacheMetrics) -> list[tuple[str, str, str | None, str]]:
    """Return a tile for the time to first token, if an engine is named."""
    engine = metrics.engine
    if engine is None or engine.ttft_ms is None:
        return []
    ttft = engine.ttft_ms
    return [
        (
            "mean time to first token",
            "engine",
            f"{ttft.mean:,.0f} ms",
            f"half within {ttft.p50:,.0f} ms, 95 % within {ttft.p95:,.0f} ms",
        )
    ]


def _of_l1(metrics: CacheMetrics) -> str:
    if metrics.used_size_mb is None or metrics.total_size_mb is None:
        return ""
    return f"{metrics.used_size_mb:,.0f} of {metrics.total_size_mb:,.0f} MB"


def _advice(advice: Advice) -> Html:
    """Return the best recommendation in full, the others folded away, and the memory that L1 does not need."""
    spare = Html() if advice.spare is None else card(tag("h3", "Spare memory"), tag("p", _sentence(str(advice.spare))))
    if not advice.recommendations:
        return section("Advice", card("Nothing to change: ", advice.why), spare)
    first, *others = advice.recommendations
    more = f"{len(others)} other recommendation{'s' if len(others) > 1 else ''}, less useful or not allowed"
    return section("Advice", _recommendation(first), folded(more, *map(_recommendation, others)), spare)


def _recommendation(one: OptimizationRecommendation) -> Html:
    allowed = badge("allowed", "good") if one.within_bounds else badge("outside the operator's bounds", "act")
    measured = [(each.metric, _measured(each)) for each in one.evidence]
    return card(
        tag("h3", one.title),
        tag("p", one.expected_impact),
        tag("p", badge(f"{one.confidence.value} confidence"), " ", badge(f"priority {one.priority.value}"), " ", allowed),
        table(("setting", "now", "new", "how"), _settings(one.changes)),
        facts(
            {
                "why": one.description,
                "confidence": "; ".join(one.confidence_reasons),
                "effort": one.implementation_effort,
                "cost": one.cost,
                "risk": one.risk,
                "undo": one.undo,
                "verified by": one.verification,
            }
        ),
        folded(f"evidence: {_words(one.rung.value)}", table(("measured", "value"), measured)),
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _settings(changes: Sequence[SettingChange]) -> list[tuple[str, str, str, str]]:
    return [(one.setting, _value(one.old), _value(one.new), one.how.value) for one in changes]


def _measured(evidence: Evidence) -> str:
    return f"{evidence.value:.1%}" if evidence.unit == "share" else f"{evidence.value:,.6g} {evidence.unit}"


def _forecast(forecast: Forecast, metrics: CacheMetrics, best: OptimizationRecommendation | None) -> Html:
    now = current_mark(metrics, forecast)
    proposed = proposed_mark(best, metrics, forecast) if best else None
    described = (
        f"Token hit rate by L1 size; an unbounded cache would reach {forecast.ceiling:.1%}. The table below has the figures."
    )
    picture = _picture(lambda: hit_rate_picture(forecast, now, proposed), "curve", described)
    rows = [
        (
            tag("span", size_text(row.capacity_chunks, forecast), kind="whole"),
            f"{row.server:.1%}",
            f"{row.server_lower:.1%} to {row.server_upper:.1%}",
            f"{row.lru:.1%}",
            f"{row.clairvoyant:.1%}",
            f"{row.failed_chunks:,.0f}",
        )
        for row in forecast.rows
    ]
    head = ("L1 size", "this server", "90% interval", "always-full LRU", "best possible", "stores dropped, chunks")
    figures = folded("the figures", table(head, rows))
    return section("What other sizes would give", card(picture, listed(forecast.notes, kind="quiet"), figures))


def _verified(verification: Verification | None) -> Html:
    if verification is None:
        return Html()
    before, after, gain = verification.before, verification.after, verification.gain
    same = "Measured on the same requests." if verification.paired else "The requests before and after are not the same."
    described = f"Tokens served and computed before and after the change: {verification.why}"
    picture = _picture(lambda: before_after_picture(before, after, gain), "verified", described)
    verdict = badge(*BADGES[verification.verdict])
    return card(picture, tag("p", verdict, " ", verification.why), tag("p", same, kind="quiet"))


def _names(title: str, counts: Mapping[str, TokenCounts], others: MoreNames) -> Html:
    """Return a table of names with their requested tokens, largest first; empty if there is only one without a name."""
    if not any(counts):
        return Html()
    ranked = sorted(counts.items(), key=lambda item: -item[1].requested)
    rows = [
        (
            tag("bdi", plain(name)) if name else "(none)",
            f"{one.requested:,}",
            "-" if one.hit_rate is None else f"{one.hit_rate:.1%}",
        )
        for name, one in ranked[:MOST_NAMES]
    ]
    more = tag("p", f"and {len(ranked) - MOST_NAMES} more", kind="quiet") if len(ranked) > MOST_NAMES else Html()
    if others.count:
        asked, rate = others.tokens.requested, others.tokens.hit_rate
        rows.append(
            (f"... and {others.count:,} more {title.lower()} together", f"{asked:,}", "-" if rate is None else f"{rate:.1%}")
        )
    return section(title, card(table(("name", "tokens requested", "token hit rate"), rows), more))


def _picture(draw: Callable[[], "Figure"], name: str, description: str) -> Html:
    """Return a picture, or the reason why there is none."""
    try:
        return tag("figure", Html(inline_svg(draw(), name, description)))
    except (UnsupportedError, WorkloadError) as error:
        return tag("p", str(error), kind="quiet")


def _words(code: str) -> str:
    return code.replace("_", " ")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,g}"
    return "unknown" if value is None else str(getattr(value, "value", value))


def _count(count: int | None) -> str | None:
    """Return a count in at most seven characters."""
    if count is None:
        return None
    for unit, many in (("G", 1e9), ("M", 1e6)):
        if count >= many:
            return f"{count / many:.3g} {unit}"
    return f"{count:,}"


def _span(seconds: float) -> str:
    """Return a length of time in the largest unit that it holds at least twice."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
