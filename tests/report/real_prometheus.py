"""A real Prometheus with our rules on short windows, and the alerts that it has fired so far."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from real_cache import eventually

from agent_tools.deployments.server.process import free_port
from agent_tools.report.alerts import rules

WINDOW, LONG = "10s", "30s"


class Prometheus:
    """What it answers."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, trust_env=False)
        found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
        return found

    def fired(self, server: str) -> set[str]:
        """Return the alerts that fired for a server or an agent at this address, also those that do not fire any more."""
        address = server.removeprefix("http://")
        return self._names(f'count_over_time(ALERTS{{alertstate="firing", instance="{address}"}}[1h])')

    def firing(self, server: str) -> set[str]:
        """Return the alerts that fire now for a server or an agent at this address."""
        return self._names(f'ALERTS{{alertstate="firing", instance="{server.removeprefix("http://")}"}}')

    def _names(self, expression: str) -> set[str]:
        return {one["metric"]["alertname"] for one in self.query(expression)}

    def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            return httpx.get(f"{self.url}/-/ready", trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


@contextmanager
def prometheus(folder: Path, jobs: list[dict[str, Any]]) -> Iterator[Prometheus]:
    """Scrape these jobs (``scrape_configs``) every second, with the rules on windows of ten seconds."""
    (folder / "rules.yaml").write_text(rules(window=WINDOW, long=LONG, lasting="1s"), encoding="utf-8")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    asked = Prometheus(f"http://127.0.0.1:{port}")
    try:
        eventually(asked.ready, seconds=60)
        yield asked
    finally:
        process.terminate()
        process.wait(timeout=30)


def job(name: str, *servers: str, path: str = "/metrics") -> dict[str, Any]:
    """One entry of ``scrape_configs``, from the addresses of servers."""
    targets = [server.removeprefix("http://") for server in servers]
    return {"job_name": name, "metrics_path": path, "static_configs": [{"targets": targets}]}
