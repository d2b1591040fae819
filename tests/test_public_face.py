"""Claims about what `from agent_tools import ...` gives, and what an installed wheel brings beside a host's own packages."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from langgraph.graph.state import CompiledStateGraph

import agent_tools

ROOT = Path(__file__).parents[1]
NEEDS = {"build_cache_agent": "langchain", "LMCacheClient": "agent_tools.client"}
"""Public name -> what has to be there for it to be imported."""
HOST = f"""
import sys
sys.path[:] = [one for one in sys.path if one != {str(ROOT)!r}]  # an environment for development may have the checkout there
import agent_tools, graphs.mine
from agent_tools import LMCacheToolkit, tune_cache
assert graphs.mine.OWN == "the host's own graph"
assert "lmcache_tune" in {{tool.name for tool in LMCacheToolkit().get_tools()}}
print(agent_tools.__file__, tune_cache.name)
"""


@pytest.mark.parametrize("name", agent_tools.__all__)
def test_every_public_name_is_what_its_name_says(name: str) -> None:
    needed = NEEDS.get(name)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not there")
    public = getattr(agent_tools, name)
    assert getattr(public, "__name__", None) == name or getattr(public, "name", None) == name
    assert name in dir(agent_tools)
    assert getattr(agent_tools, name) is public


def test_the_compiled_graph_and_not_its_module_has_the_name() -> None:
    assert isinstance(agent_tools.tune_cache, CompiledStateGraph)
    assert isinstance(agent_tools.tune_fleet, CompiledStateGraph)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'agent_tools' has no attribute 'tune_everything'"):
        _ = agent_tools.tune_everything


def test_importing_the_package_imports_nothing_else() -> None:
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; import agent_tools, json; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(subprocess.check_output([sys.executable, "-I", "-c", code])))
    assert [name for name in loaded if name.startswith("agent_tools.")] == []
    assert not {name.partition(".")[0] for name in loaded} & {"pydantic", "langchain_core", "langgraph", "numpy", "httpx"}


# ---- the wheel ----


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without the network."""
    pytest.importorskip("hatchling", reason="no wheel can be built: hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_one_package_with_its_page_and_its_types(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in files if ".dist-info/" not in name} == {"agent_tools"}
    assert {"agent_tools/py.typed", "agent_tools/report/page.html"} <= set(files)


@pytest.mark.parametrize("own_package", [True, False])
def test_a_host_keeps_its_own_graphs_beside_the_installed_wheel(wheel: Path, tmp_path: Path, own_package: bool) -> None:
    site, host = tmp_path / "site", tmp_path / "host"
    (host / "graphs").mkdir(parents=True)
    (host / "graphs/mine.py").write_text('OWN = "the host\'s own graph"\n')
    if own_package:
        (host / "graphs/__init__.py").touch()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", site, wheel], check=True)
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{host}", "LMCACHE_AGENT_STATE_FOLDER": str(tmp_path / "state")}

    def run(*arguments: str) -> str:
        return subprocess.check_output([sys.executable, *arguments], cwd=host, env=environment, text=True)

    place, name = run("-c", HOST).split()
    assert (Path(place).parent, name) == (site / "agent_tools", "tune_cache")
    assert "Usage:" in run("-m", "agent_tools.doors.cli", "--help")
    assert sorted(one.name for one in site.iterdir() if not one.name.endswith(".dist-info")) == ["agent_tools", "bin"]
