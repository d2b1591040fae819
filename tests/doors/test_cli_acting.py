"""The commands that change a cache: what they print, what they ask, their exit codes, and what they leave on record."""

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from pydantic import SecretStr
from real_cache import Launch, Play
from rich.console import Console
from typer.testing import CliRunner

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.process import ServerProcess
from agent_tools.deployments.start_options import SimulatedOptions
from agent_tools.doors.cli import EPILOG, app, options
from agent_tools.errors import UnknownChangeError
from agent_tools.io_loop import io_loop
from agent_tools.models import Mode, Verification
from agent_tools.operations import Operations
from agent_tools.tuning.terminal import Steps
from agent_tools.workload.generate import AgentTraffic

FEW = AgentTraffic(requests=40, seed=5).generate()
run = CliRunner()


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCACHE_AGENT_STATE_FOLDER", str(tmp_path / "state"))
    monkeypatch.setenv("LMCACHE_AGENT_SETTINGS", str(tmp_path / "mine.toml"))
    (tmp_path / "mine.toml").write_text('[caches.sim]\ntarget = "simulated:"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def live(server: ServerProcess, module_token: SecretStr, tmp_path: Path) -> str:
    """The name of a real server among the caches of the settings."""
    given = f'target = "{server.http_url}"\nmodule_token = "{module_token.get_secret_value()}"'
    (tmp_path / "mine.toml").write_text(f"[caches.live]\n{given}\n", encoding="utf-8")
    return "live"


def invoke(*arguments: str, code: int = 0) -> str:
    """The output of a command that ends with this exit code."""
    result = run.invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def watermark(cache: str) -> float:
    """The watermark that the server itself reports."""
    value = json.loads(invoke("status", "--cache", cache, "--json"))["config"]["eviction_watermark"]
    assert isinstance(value, float)
    return value


def test_a_change_is_planned_made_verified_and_undone_by_commands_of_their_own(live: str, play: Play, tmp_path: Path) -> None:
    old = watermark(live)
    play(FEW)
    planned = invoke("plan", "-c", live, "eviction_watermark=0.55", "--reason", "to try it")
    assert "0.55" in planned
    assert watermark(live) == old

    made = invoke("set", "-c", live, "eviction_watermark=0.55", "--yes", "--reason", "to try it")
    (change,) = set(re.findall(r"change-[0-9a-f]{8}", made))
    assert f"lmcache-agent undo {change}" in made
    assert watermark(live) == 0.55
    listed = invoke("changes")
    assert change in listed
    assert "to try it" in listed

    play(FEW)
    told = json.loads(invoke("verify", change, "--patience", "1", "--json", code=3).partition("\n{")[2].join(("{", "")))
    verification = Verification.model_validate(told)
    assert verification.in_force
    assert verification.before.tokens.requested  # recorded by the command that made the change
    assert "verified as undecided" in invoke("changes")

    undone = invoke("undo", change, "--reason", "tried")
    assert watermark(live) == old
    assert "tried" in invoke("changes")
    assert re.search(r"Change id: change-(?!" + change[7:] + ")", undone)
    assert "not in force" in invoke("verify", change, "--patience", "1", code=1)
    assert "not in force" in invoke("undo", change, code=1)
    lines = (tmp_path / "state" / "changes.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["outcome"] for line in lines if json.loads(line)["baseline"]] == ["started", "started"]


def test_nothing_is_changed_without_approval(live: str) -> None:
    old = watermark(live)
    assert "Nothing was changed" in invoke("set", "-c", live, "eviction_watermark=0.44", code=3)  # standard input is no terminal
    assert "nothing was changed" in invoke("set", "-c", live, "eviction_watermark=0.44", "--dry-run", "--yes").lower()
    assert "Nothing was removed" in invoke("clear", "-c", live, code=3)
    assert watermark(live) == old
    assert invoke("changes") == "no changes are on record\n"


def test_a_setting_that_is_so_already_is_no_error(live: str) -> None:
    assert "nothing to change" in invoke("set", "-c", live, f"eviction_watermark={watermark(live)}", "--yes")


@pytest.fixture(scope="module")
def plain(launch: Launch) -> str:
    """The address of a server without our module."""
    return launch({}).http_url


def test_what_only_the_operator_can_do_names_the_danger_for_the_engine(plain: str) -> None:
    text = invoke("set", "--url", plain, "--max-size-mb", "64", "max_size_mb=32", "--yes", code=3)
    assert "--l1-size-gb" in text
    assert "lmcache.mp.mq_timeout" in text


def test_clear_and_optimize_say_what_was_removed(live: str, play: Play) -> None:
    play(FEW)
    assert "optimize removed" in invoke("optimize", "-c", live, "--to", "10")
    assert "clear removed" in invoke("clear", "-c", live, "--yes")
    assert "L1 0.0 of" in invoke("status", "-c", live)


def test_diagnose_names_symptoms_with_figures() -> None:
    window, first = invoke("diagnose", "-c", "sim").splitlines()[:2]
    assert re.fullmatch(r"window: \d+ s since the cache started", window)
    assert re.match(r"l1_too_small \[high, access_log\]: \d+\.\d% of the requested tokens had been computed before", first)


def test_a_folder_for_the_access_log_that_does_not_exist_is_named(plain: str, tmp_path: Path) -> None:
    missing = tmp_path / "not" / "there"
    text = invoke("recommend", "--url", plain, "--access-log", str(missing), code=1)
    assert f"{missing} does not exist" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["set", "-c", "sim", "max_size_mb"], 2, "is not NAME=VALUE"),
        (["set", "-c", "sim", "chunk_size=256", "chunk_size=512"], 2, "given twice"),
        (["set", "-c", "sim", "colour=red"], 2, "colour"),
        (["plan", "-c", "sim", "eviction_watermark=2"], 2, "eviction_watermark"),
        (["plan", "-c", "sim", "max_size_mb=1e9"], 1, "out_of_bounds"),
        (["undo", "change-00000000"], 1, "there is no change 'change-00000000'"),
        (["verify", "change-00000000"], 1, "there is no change 'change-00000000'"),
        (["tune", "--window", "soon"], 2, "neither a number of seconds"),
        (["--settings", "elsewhere.toml", "caches"], 1, "elsewhere.toml"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(arguments: list[str], code: int, words: str) -> None:
    text = invoke(*arguments, code=code)
    assert words in " ".join(text.split())
    assert "Traceback" not in text


def test_the_settings_option_names_the_file(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('[caches.second]\ntarget = "simulated:"\nbounds = { max_size_mb = 7 }\n', encoding="utf-8")
    assert "second: simulated; L1 may grow to 7 MB" in invoke("--settings", str(other), "caches")


def test_help_lists_every_command_and_the_exit_codes() -> None:
    text = invoke("--help")
    assert EPILOG.split("\n", 1)[1].strip().splitlines()[1].strip() in text
    for command in app.registered_commands:
        assert f"  {command.name} " in text
        assert "..." not in text.partition(f"  {command.name} ")[2].splitlines()[0]  # the summary is not cut off


def test_the_modes_of_the_command_line_are_all_modes() -> None:
    assert [mode.value for mode in options.Mode] == [mode.value for mode in Mode]


def test_a_window_is_as_long_as_it_takes_to_see_enough_traffic(tmp_path: Path) -> None:
    busy = CacheSettings(target="simulated:", simulated=SimulatedOptions(speed=300))
    idle = CacheSettings(target="simulated:", simulated=SimulatedOptions(traffic=None))
    operations = Operations(Registry(Settings(caches={"busy": busy, "idle": idle}, state_folder=tmp_path)))
    try:
        assert 1 <= io_loop.run(operations.wait_for_traffic, "busy", 1.0, 90.0) < 80
        assert io_loop.run(operations.wait_for_traffic, "idle", 1.0, 2.0) >= 2
    finally:
        io_loop.run(operations.close)


def test_a_change_of_another_cache_is_not_verified(tmp_path: Path) -> None:
    settings = Settings(caches={"one": CacheSettings(target="simulated:"), "two": CacheSettings(target="simulated:")})
    operations = Operations(Registry(settings.model_copy(update={"state_folder": tmp_path})))
    try:
        cleared = io_loop.run(operations.clear, "one", "test", "test").change_id
        with pytest.raises(UnknownChangeError, match="a change of one, not of two"):
            io_loop.run(operations.verify_change, cleared, 1.0, "two")
        with pytest.raises(UnknownChangeError, match="it changed no setting"):
            io_loop.run(operations.verify_change, cleared, 1.0)
    finally:
        io_loop.run(operations.close)


def test_a_change_of_a_private_cache_is_said_to_end_with_the_command() -> None:
    output = invoke("set", "eviction_watermark=0.9", "--yes", "-c", "sim")
    assert "sim is a private cache: it ends with this command, and its settings with it" in output
    assert "To undo it:" not in output


def test_progress_in_a_log_is_a_line_for_each_step() -> None:
    log = StringIO()
    with Steps(Console(file=log)) as steps:
        for left in range(30, 0, -1):
            steps(f"observing default: {left} s left")
        steps("searching for better settings")
        for seen in range(100):
            steps(f"verifying: {seen} of 100 tokens seen since the change")
    assert log.getvalue().splitlines() == [
        "observing default: 30 s left",
        "searching for better settings",
        "verifying: 0 of 100 tokens seen since the change",
    ]


def test_progress_at_a_terminal_is_one_line_that_moves() -> None:
    terminal = StringIO()
    with Steps(Console(file=terminal, force_terminal=True, width=100)) as steps:
        for left in range(30, 0, -1):
            steps(f"observing default: {left} s left")
        steps("searching")
    lines = [line for line in terminal.getvalue().splitlines() if line.endswith(("s left", "searching"))]
    assert [re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]|\r", "", line).strip() for line in lines][-1] == "searching"
    assert "\x1b[" in terminal.getvalue()
