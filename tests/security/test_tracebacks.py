"""Claims that no traceback of ours holds what was given: the operator's file, a host's settings, a change log hold secrets."""

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.changes.log import ChangeLog
from agent_tools.doors.rest_models import OfHistory
from agent_tools.errors import LMCacheToolError, SettingsError
from agent_tools.tuning.state import tune_context
from agent_tools.wire.http_client import AdminClient

SECRETS = ("tok-4711", "hunter2hunter2")
FILE = f"""
token = "{SECRETS[0]}"  # too short
[caches.prod]
targhet = "http://127.0.0.1:8080"
timeout_seconds = "{SECRETS[0]}"
embedded = {{ l2_adapters = [{{ type = "resp", settings = {{ password = "{SECRETS[1]}" }}, password = "{SECRETS[1]}" }}] }}
"""


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "wrong.toml"
    file.write_text(FILE)
    monkeypatch.setenv("LMCACHE_AGENT_SETTINGS", str(file))
    return file


def all_of(error: BaseException | None) -> str:
    """An exception and every one it is chained to, also those that a traceback leaves out."""
    found = []
    while error is not None:
        found += ["".join(traceback.format_exception_only(error)), repr(getattr(error, "errors", lambda: "")())]
        error = error.__cause__ or error.__context__
    return "\n".join(found)


def assert_none_in(text: str) -> None:
    assert text
    assert not [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize(
    "program",
    [
        ["-c", "import agent_tools.doors.langgraph_auth"],
        ["-c", "from agent_tools.operations import shared_operations; shared_operations()"],
        ["-m", "agent_tools.doors.cli", "status"],
    ],
)
def test_a_mistake_in_the_settings_shows_none_when_a_program_ends_by_it(wrong: Path, program: list[str]) -> None:
    if "langgraph_auth" in program[1]:
        pytest.importorskip("starlette")  # of the extra `studio`
    done = subprocess.run([sys.executable, *program], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "caches.prod.targhet" in "".join(done.stderr.split())
    assert_none_in(done.stdout + done.stderr)


def test_a_mistake_in_the_settings_is_chained_to_nothing_that_holds_one(wrong: Path) -> None:
    with pytest.raises(SettingsError, match=r"caches\.prod\.timeout_seconds") as found:
        Settings.load()
    assert_none_in(all_of(found.value))


def test_a_variable_that_is_not_json_is_chained_to_nothing_that_holds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCACHE_AGENT_CACHES", f'{{"a": {SECRETS[0]}')
    with pytest.raises(SettingsError, match="an environment variable LMCACHE_AGENT") as found:
        Settings.load()
    assert found.value.__context__ is None


def test_settings_made_in_a_program_show_none(wrong: Path) -> None:
    with pytest.raises(ValidationError) as found:
        CacheSettings.model_validate({"timeout_seconds": SECRETS[0], "embedded": {"l2_adapters": [{"password": SECRETS[1]}]}})
    assert_none_in(str(found.value))


def test_the_context_of_a_run_shows_none() -> None:
    with pytest.raises(LMCacheToolError, match="window_seconds") as found:
        tune_context({"window_seconds": SECRETS[0], "bounds": {"l2_adapter": {"password": SECRETS[1]}}})
    assert_none_in(all_of(found.value))


def test_a_model_of_the_rest_routes_shows_none() -> None:
    with pytest.raises(ValidationError) as found:
        OfHistory.model_validate({"limit": SECRETS[0]})
    assert_none_in(str(found.value))


def test_a_line_of_the_change_log_shows_none(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path / "changes.jsonl")
    log.path.write_text(f'{{"change_id": 1, "detail": ["{SECRETS[0]}"]}}\n{{"before": "{SECRETS[1]}\n')
    assert log.records() == []
    assert_none_in("\n".join(log.problems()))


def test_an_address_with_a_password_shows_none() -> None:
    with pytest.raises(SettingsError, match="is not an address") as found:
        AdminClient(f"http://user:{SECRETS[1]}@host:port/")
    assert_none_in(all_of(found.value))
