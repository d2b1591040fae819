"""What README.md says is so: its examples run, and its generated parts are those of today's code."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from agent_tools.deployments.directory import Cache
from agent_tools.operations import Operations

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_the_examples_run(
    example: str,
    operations: Operations,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    # The operator's directory of the reader is the tests' own one here.
    for module in ("agent_tools.tools.toolkit", "graphs.tune_cache"):
        monkeypatch.setattr(f"{module}.shared_operations", lambda: operations)
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    runpy.run_path(str(script))
    assert capsys.readouterr().out.strip()


def test_the_generated_parts_are_up_to_date(lmcache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["readme.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "docs" / "readme.py"), run_name="__main__")
    assert ended.value.code == 0
