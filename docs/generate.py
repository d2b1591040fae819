"""Writes the generated parts of README.md and of the pages in docs/, from the code and a real server.

python docs/generate.py            rewrite them
python docs/generate.py --check    fail when they are out of date
"""

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from langchain_core.runnables.graph import Graph
from pydantic import BaseModel

from agent_tools import LMCacheToolkit
from agent_tools.caches.settings import CacheSettings, Settings, WatchSettings
from agent_tools.deployments.fleet.deployment import ONE_BY_ONE
from agent_tools.deployments.fleet.quotas import quota_support
from agent_tools.deployments.in_process import settable as engine_settable
from agent_tools.deployments.server.deployment import ServerDeployment
from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.deployments.server.settable import DRAM, NO_ISOLATED_L2
from agent_tools.deployments.simulated.deployment import SimulatedDeployment, SimulatedOptions
from agent_tools.doors.rest import rest_app
from agent_tools.io_loop import io_loop
from agent_tools.models import SETTINGS, Bounds, Support
from agent_tools.models.cost import Economics, Prefill, Prices
from agent_tools.recommender.recommend import TREATABLE
from agent_tools.recommender.symptoms import RULES
from agent_tools.tuning.tune_cache import tune_cache
from agent_tools.tuning.tune_fleet import tune_fleet

ROOT = Path(__file__).parents[1]


def graph() -> str:
    """The picture of `tune_cache`, as Mermaid draws it."""
    return _drawn(tune_cache.get_graph())


def fleet_graph() -> str:
    """The picture of `tune_fleet`."""
    return _drawn(tune_fleet.get_graph())


def _drawn(drawn: Graph) -> str:
    nodes = {name: name.strip("_") for name in drawn.nodes}
    edges = [f"    {nodes[e.source]} {'-.->' if e.conditional else '-->'} {nodes[e.target]}" for e in drawn.edges]
    return "\n".join(["```mermaid", "graph TD", *edges, "```"])


def tools() -> str:
    """The table of tools."""
    rows = ["| tool | changes something | what for |", "|---|---|---|"]
    for tool in LMCacheToolkit().get_tools():
        changes = "no" if tool.metadata and tool.metadata["readOnlyHint"] else "yes"
        rows.append(f"| `{tool.name}` | {changes} | {tool.description} |")
    return "\n".join(rows)


Supports = Mapping[str, Mapping[str, Support]]
"""Deployment -> setting -> how it is changed there."""


def support() -> str:
    """The table of settings and deployments."""
    found = _supports()
    rows = [f"| setting | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for setting in SETTINGS:
        levels = [_level(setting, one[setting]) for one in found.values()]
        rows.append(f"| `{setting}` | {' | '.join(levels)} |")
    return "\n".join(rows)


def reasons() -> str:
    """Why, for each deployment."""
    tables = []
    for deployment, of_settings in _supports().items():
        rows = [f"{deployment}:", "", "| setting | how | why |", "|---|---|---|"]
        rows += [
            f"| `{setting}` | {_level(setting, of_settings[setting])} | {of_settings[setting].reason} |" for setting in SETTINGS
        ]
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def _level(setting: str, one: Support) -> str:
    if setting == "max_size_mb" and one.reason == DRAM:
        return "live with `arena_folder` and a devdax L1, else restart"
    if one == NO_ISOLATED_L2:
        return "live where L2 evicts by tenant"
    return one.level.value


@cache
def _supports() -> Supports:
    return io_loop.run(_asked)


async def _asked() -> Supports:
    """As a real plain server and a real private one answer; an engine's and a fleet's are the same whatever they are."""
    folder = Path(tempfile.gettempdir())
    embedded = EmbeddedDeployment(EmbeddedOptions(l1_size_mb=8), folder)
    plain = ServerProcess.launch({"--l1-size-gb": 8 / 1024, "--eviction-policy": "LRU"}, folder)
    server, simulated = ServerDeployment(plain.http_url), SimulatedDeployment(SimulatedOptions(traffic=None))
    try:
        await plain.wait_ready()
        found = {
            "plain `lmcache server`": await server.support(),
            "with our module, and embedded": await embedded.support(),
            "engine (vLLM, SGLang)": engine_settable.SUPPORT,
            "fleet": {**dict.fromkeys(SETTINGS, ONE_BY_ONE), "tenant_quotas_mb": quota_support(None, None)},
            "simulated": await simulated.support(),
        }
        logs = [plain.log, (await embedded.started()).log]
    finally:
        for deployment in (server, embedded, simulated):
            await deployment.close()
        await plain.stop()
    for log in logs:
        log.unlink()
    return found


def symptoms() -> str:
    """The table of symptoms, from the rules that find them."""
    treated = {code.value for code in TREATABLE}
    rows = ["| symptom | what it says | room | settings searched for it |", "|---|---|---|---|"]
    for rule in RULES:
        name, room = rule.__name__, rule.__module__.rpartition(".")[2]
        rows.append(f"| `{name}` | {_first_line(rule)} | {room} | {'yes' if name in treated else 'no'} |")
    return "\n".join(rows)


def settings() -> str:
    """Every field of the operator's settings."""
    tables = (
        ("Top level, or environment variables `LMCACHE_AGENT_<NAME>`", Settings),
        ("`[watch]`", WatchSettings),
        ("`[caches.NAME]`", CacheSettings),
        ("`bounds`", Bounds),
        ("`economics`", Economics),
        ("`economics.prefill`", Prefill),
        ("`economics.prices`", Prices),
        ("`embedded`", EmbeddedOptions),
        ("`simulated`", SimulatedOptions),
    )
    return "\n\n".join(_fields(title, model) for title, model in tables)


def _fields(title: str, model: type[BaseModel]) -> str:
    rows = [f"{title}:", "", "| field | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        rows.append(f"| `{name}` | {default} | {' '.join((field.description or '').split())} |")
    return "\n".join(rows)


def _default(value: object) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, Path) and value.is_relative_to(Path.home()):
        value = Path("~") / value.relative_to(Path.home())
    return "none" if value is None or value in ((), {}) else f"`{getattr(value, 'value', value)}`"


def routes() -> str:
    """The REST routes, from the OpenAPI document."""
    rows = ["| route | what for |", "|---|---|"]
    for path, operations in rest_app().openapi()["paths"].items():
        rows += [f"| `{method.upper()} {path}` | {one['summary']} |" for method, one in operations.items()]
    return "\n".join(rows)


def _first_line(rule: Callable[..., object]) -> str:
    return (rule.__doc__ or "").strip().splitlines()[0]


PARTS: Mapping[str, Callable[[], str]] = {
    part.__name__: part for part in (graph, fleet_graph, tools, support, reasons, symptoms, settings, routes)
}


def rendered(text: str) -> str:
    """A page with its generated parts made anew."""
    for name, part in PARTS.items():
        mark = f"<!-- {name}: written by docs/generate.py -->"
        if mark in text:
            before, _, rest = text.partition(mark)
            _, end, after = rest.partition("<!-- end -->")
            text = f"{before}{mark}\n{part()}\n{end}{after}"
    return text


def main() -> None:
    """Rewrite the pages, or check them."""
    outdated = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        old = page.read_text(encoding="utf-8")
        new = rendered(old)
        if new != old:
            outdated.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    if "--check" in sys.argv and outdated:
        sys.exit(f"{', '.join(outdated)} out of date: run python docs/generate.py")


if __name__ == "__main__":
    main()
