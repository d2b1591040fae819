"""Draws the pictures of the docs from a real run: the demo's traffic into a real server, before it is tuned.

python docs/pictures.py        about a minute; writes docs/hit_rate.svg and, where there is a Chromium, docs/report.png
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from agent_tools.caches.registry import DEFAULT, Registry
from agent_tools.demo.small import agent_workload, settings_for
from agent_tools.deployments.server.embedded import EmbeddedDeployment
from agent_tools.io_loop import io_loop
from agent_tools.operations import Operations
from agent_tools.report.canvas import write
from agent_tools.report.pictures import current_mark, hit_rate_picture, proposed_mark
from agent_tools.workload.replay import replay
from agent_tools.workload.schedule import ReplaySettings

HERE = Path(__file__).parent


def draw(operations: Operations, say: Callable[[str], None]) -> None:
    """Replay the demo's traffic once, and write what the product shows of it."""
    workload = agent_workload(seed=0)
    deployment = operations.registry.get(DEFAULT).deployment
    assert isinstance(deployment, EmbeddedDeployment)  # noqa: S101  settings say so
    server = io_loop.run(deployment.started)
    io_loop.run(operations.metrics, DEFAULT)
    replay(workload.log, server.rpc_url, ReplaySettings(pace=workload.pace, kv_bytes_per_token=workload.kv_bytes_per_token))
    forecast, metrics = io_loop.run(operations.forecast, DEFAULT)
    advice = io_loop.run(operations.recommend, DEFAULT)
    proposed = proposed_mark(advice.best, metrics, forecast) if advice.best else None
    write(hit_rate_picture(forecast, current_mark(metrics, forecast), proposed), HERE / "hit_rate.svg")
    page = io_loop.run(operations.report, DEFAULT)
    browser = shutil.which("chromium")
    if browser is None:
        say("no chromium: the report page is not drawn")
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "report.html").write_text(page, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1000,1500"]
        options.append(f"--user-data-dir={folder}/profile")
        shot = f"--screenshot={HERE / 'report.png'}"
        subprocess.run([browser, *options, shot, f"file://{folder}/report.html"], check=True, capture_output=True)  # noqa: S603


def main() -> None:
    """Run it with a server and a state folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        operations = Operations(Registry(settings_for(agent_workload(seed=0), Path(folder))))
        try:
            draw(operations, print)
        finally:
            io_loop.run(operations.close)


if __name__ == "__main__":
    main()
