"""A Grafana dashboard for `lmcache server`, the vLLM in front and our own agent, made from the same names as the alerts."""

import json
from typing import Any, NamedTuple

from .alerts import AGENT, HIT_RATE


class Panel(NamedTuple):
    """One graph: a title, a unit of Grafana's, and expressions with the legend of their lines."""

    title: str
    unit: str
    lines: dict[str, str]
    description: str = ""


def _rate(name: str) -> str:
    """Return the rate of a counter over all servers."""
    return f'sum(rate({name}{{job="$job"}}[$__rate_interval]))'


_ASKED = _rate("lmcache_mp_lookup_requested_tokens_total")
_LOOKUPS = 'sum by (model_name) (rate(lmcache_mp_lookups_requests_total{job="$job"}[$__rate_interval]))'
PANELS = (
    Panel(
        "Token hit rate by tier",
        "percentunit",
        {
            "all tiers": f"{_rate('lmcache_mp_lookup_hit_tokens_total')} / {_ASKED}",
            "L1": f"{_rate('lmcache_mp_lookup_hit_l1_tokens_total')} / {_ASKED}",
            "L2": f"{_rate('lmcache_mp_lookup_hit_l2_tokens_total')} / {_ASKED}",
        },
        "LMCache's own rate. What the engine had in its own cache as well is not saved by it.",
    ),
    Panel("Token hit rate by server", "percentunit", {"{{instance}}": HIT_RATE.replace("$O", "")}),
    Panel("L1 in use", "percentunit", {"{{instance}}": 'lmcache_mp_l1_usage_ratio{job="$job"}'}),
    Panel(
        "Objects written, read and evicted",
        "ops",
        {
            "written": _rate("lmcache_mp_l1_write_chunks_total"),
            "read": _rate("lmcache_mp_l1_read_chunks_total"),
            "evicted": _rate("lmcache_mp_l1_evicted_chunks_total"),
            "stores dropped": _rate("lmcache_mp_l1_allocation_failure_chunks_total"),
        },
        "A chunk is one object for each rank and object group.",
    ),
    Panel("Lookups", "reqps", {"{{model_name}}": _LOOKUPS}),
    Panel(
        "Engine: time to first token",
        "s",
        {
            "median": 'histogram_quantile(0.5, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket[$__rate_interval])))',
            "95 %": 'histogram_quantile(0.95, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket[$__rate_interval])))',
        },
    ),
    Panel("Agent: changes by outcome", "short", {"{{cache}} {{outcome}}": f"sum by (cache, outcome) ({AGENT}changes)"}),
    Panel(
        "Agent: predicted gain of the last advice",
        "short",
        {"{{cache}}": f"{AGENT}predicted_gain_points"},
        "Points of token hit rate that following the last advice would bring; no line if nothing is advised.",
    ),
)  # fmt: skip


def dashboard(job: str = "lmcache") -> str:
    """Return the dashboard as JSON to import into Grafana (schema version 39). Its data source is chosen at the import."""
    source = {"type": "prometheus", "uid": "${source}"}
    panels = [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": panel.title,
            "description": panel.description,
            "datasource": source,
            "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(65 + place), "datasource": source, "legendFormat": legend, "expr": _with_job(expression)}
                for place, (legend, expression) in enumerate(panel.lines.items())
            ],
        }
        for number, panel in enumerate(PANELS)
    ]
    variables: list[dict[str, Any]] = [
        {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {"name": "job", "label": "Job", "type": "textbox", "query": job, "current": {"text": job, "value": job}},
    ]
    board = {
        "title": "LMCache",
        "uid": "lmcache-agent",
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": variables},
        "panels": panels,
    }
    return json.dumps(board, indent=2)


def _with_job(expression: str) -> str:
    return expression.replace("$JOB", "$job").replace("$W", "$__rate_interval")
