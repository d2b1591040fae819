"""What README.md and docs/ say is so: examples run, and generated parts are those of today's code."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from agent_tools.caches.registry import Cache
from agent_tools.caches.settings import Settings
from agent_tools.operations import Operations

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
EXAMPLES = [
    pytest.param(example, id=f"{page.name}-{number}")
    for page in PAGES
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.needs("langchain")
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_run(
    example: str,
    operations: Operations,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    # The operator's directory of the reader is the tests' own one here.
    for module in (
        "agent_tools.client",
        "agent_tools.operations",
        "agent_tools.tuning.tune_cache",
        "agent_tools.tuning.tune_fleet",
        "agent_tools.cache_agent",
    ):
        monkeypatch.setattr(f"{module}.shared_operations", lambda: operations)
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    runpy.run_path(str(script))
    assert capsys.readouterr().out.strip()


def test_the_generated_parts_are_up_to_date(lmcache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="__main__")


LINKS = [
    pytest.param(page.parent, link, id=f"{page.name}-{link}")
    for page in PAGES
    for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("folder", "link"), LINKS)
def test_links_lead_somewhere(folder: Path, link: str) -> None:
    assert (folder / link).exists()


def test_the_operators_example_is_what_the_settings_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    file = tmp_path / "caches.toml"
    file.write_text(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0], encoding="utf-8")
    monkeypatch.setenv("LMCACHE_AGENT_SETTINGS", str(file))
    prod = Settings.load().caches["prod"]
    assert prod.bounds.l2_adapter is not None
    assert prod.bounds.l2_adapter.size_mb == 64 * 1024
    assert prod.economics is not None
    assert prod.economics.prices is not None
