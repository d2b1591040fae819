"""Writes the generated parts of README.md, from the code and a real server: the graph, the settings and the tools.

python docs/readme.py            rewrite them
python docs/readme.py --check    fail when they are out of date
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from agent_tools import LMCacheToolkit
from agent_tools.deployments.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.deployments.server import ServerDeployment
from agent_tools.io_loop import io_loop
from agent_tools.models import SETTINGS, Support
from graphs.tune_cache import tune_cache

README = Path(__file__).parents[1] / "README.md"


def graph() -> str:
    """The picture of `tune_cache`, as Mermaid draws it."""
    drawn = tune_cache.get_graph()
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


async def support() -> str:
    """The table of settings, as a real private server and a plain `lmcache server` answer."""
    embedded = EmbeddedDeployment(EmbeddedOptions(l1_size_mb=8), Path(tempfile.gettempdir()))
    try:
        process = await embedded.started()
        server = ServerDeployment(process.http_url)
        theirs, ours = await server.support(), await embedded.support()
        await server.close()
    finally:
        await embedded.close()
        process.log.unlink()
    rows = ["| setting | `lmcache server` of others | embedded | why |", "|---|---|---|---|"]
    rows += [_row(setting, theirs, ours) for setting in SETTINGS]
    return "\n".join(rows)


def _row(setting: str, theirs: Mapping[str, Support], ours: Mapping[str, Support]) -> str:
    reason = ours[setting].reason
    level = theirs[setting].level.value
    if setting == "max_size_mb":
        level = "live with `arena_folder` and a devdax L1, else restart"
    return f"| `{setting}` | {level} | {ours[setting].level.value} | {reason} |"


def rendered(text: str) -> str:
    """The README with its generated parts made anew."""
    parts = {"graph": graph(), "tools": tools(), "support": io_loop.run(support)}
    for name, part in parts.items():
        mark = f"<!-- {name}: written by docs/readme.py -->"
        before, _, rest = text.partition(mark)
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{mark}\n{part}\n{end}{after}"
    return text


if __name__ == "__main__":
    old = README.read_text(encoding="utf-8")
    new = rendered(old)
    if "--check" in sys.argv:
        sys.exit(0 if new == old else "README.md is out of date: run python docs/readme.py")
    README.write_text(new, encoding="utf-8")
