"""Claims about the house: arrows point down, rooms do not import each other, and the ground is free of LangChain.

The contracts stand in ``pyproject.toml`` under ``[tool.importlinter]``.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="import-linter is a development dependency")

ROOT = Path(__file__).parents[1]
LINT = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(LINT, cwd=root, capture_output=True, text=True, timeout=120, check=False)


def test_every_contract_is_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the two packages and of the contracts, to break them in."""
    for package in ("agent_tools", "graphs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("workload/tokens.py", "import agent_tools.operations", "Rooms import only rooms below them"),
        ("models/cost.py", "import langchain_core", "Nothing below the graphs imports LangChain"),
        ("deployments/fleet/prefix.py", "import agent_tools.deployments.simulated", "Kinds of deployment know"),
        ("operations/core.py", "import graphs", "The library does not know the graphs"),
        ("caches/history.py", "import agent_tools.server_module", "The module inside the server is apart"),
        ("server_module/parts.py", "import agent_tools.models", "The module inside the server brings almost nothing along"),
    ],
)
def test_an_arrow_up_is_noticed(copy: Path, module: str, line: str, contract: str) -> None:
    path = copy / "agent_tools" / module
    path.write_text(f"{line}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    done = lint(copy)
    assert done.returncode == 1
    assert any(contract in one and "BROKEN" in one for one in done.stdout.splitlines()), done.stdout


def test_a_room_that_no_layer_names_is_noticed(copy: Path) -> None:
    (copy / "agent_tools" / "cellar.py").write_text('"""A room nobody drew."""\n', encoding="utf-8")
    assert "agent_tools.cellar" in lint(copy).stdout
