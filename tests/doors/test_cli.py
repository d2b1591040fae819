"""The command line as a person uses it: what it prints, its exit codes, and that it leaves nothing behind."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr
from real_cache import Launch, Play, eventually
from simulated_cache import TWO_ON_ONE_MACHINE
from typer.testing import CliRunner

from agent_tools.deployments.server.process import ServerProcess
from agent_tools.doors.cli import app
from agent_tools.models import LMCacheStatus
from agent_tools.recommender.compare import CacheComparison
from agent_tools.tuning.state import TuneReport
from agent_tools.workload.generate import AgentTraffic
from agent_tools.workload.replay import ReplaySettings, replay

FEW = AgentTraffic(requests=40, seed=5).generate()
run = CliRunner()


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCACHE_AGENT_STATE_FOLDER", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def test_status_of_a_running_server(server: ServerProcess, play: Play) -> None:
    play(FEW)
    result = run.invoke(app, ["status", "--url", server.http_url, "--json"])
    assert result.exit_code == 0, result.output
    status = LMCacheStatus.model_validate_json(result.stdout)
    assert status.backend == "lmcache server"
    assert status.metrics.total_requests
    assert "token hit rate" in run.invoke(app, ["status", "--url", server.http_url]).stdout


def test_recommend_without_a_log_predicts_nothing(launch: Launch) -> None:
    plain = launch({})
    log = AgentTraffic(requests=60, conversations=15, turns=4, tool_tokens=1500, seed=6).generate()
    replay(log, plain.rpc_url, ReplaySettings(kv_bytes_per_token=512))
    result = run.invoke(app, ["recommend", "--url", plain.http_url])
    assert result.exit_code == 0, result.output
    # Which of the two depends on whether LMCache has followed enough evicted chunks by now.
    assert re.search(r"^do_nothing \((counters|histograms)\)", result.stdout, re.MULTILINE)
    assert "not stored" in result.stdout or "because L1 was full" in result.stdout
    assert "update=" not in result.stdout


def test_recommend_for_a_remote_server_with_the_module_predicts_from_its_window(
    server: ServerProcess, module_token: SecretStr, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(AgentTraffic(requests=60, conversations=15, turns=4, tool_tokens=1500, seed=6).generate(), kv_bytes_per_token=512)
    given = f'target = "{server.http_url}"\nmodule_token = "{module_token.get_secret_value()}"\nbounds = {{ max_size_mb = 256 }}'
    (tmp_path / "mine.toml").write_text(f"[caches.live]\n{given}\n", encoding="utf-8")
    monkeypatch.setenv("LMCACHE_AGENT_SETTINGS", str(tmp_path / "mine.toml"))
    result = run.invoke(app, ["recommend", "-c", "live"])
    assert result.exit_code == 0, result.output
    assert "(access_log): " in result.stdout
    assert "update=" in result.stdout


def test_compare_says_in_which_cache_of_a_machine_a_megabyte_earns_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "machine.toml").write_text(TWO_ON_ONE_MACHINE, encoding="utf-8")
    monkeypatch.setenv("LMCACHE_AGENT_SETTINGS", str(tmp_path / "machine.toml"))
    both = ["compare", "-c", "spare", "-c", "starving"]
    text = run.invoke(app, both)
    assert text.exit_code == 0, text.output
    verdict, divided, first, second = text.stdout.splitlines()
    assert verdict.startswith("act: ")
    assert divided.startswith("1216 MB divided; the next MB earns")
    assert re.match(r"starving: [\d,]+; 192 -> [\d.]+ MB \(live\); token hit rate \+", first)
    assert re.match(r"spare: [\d,]+; 1024 -> [\d.]+ MB \(restart\); ", second)
    found = CacheComparison.model_validate_json(run.invoke(app, [*both, "--budget-mb", "600", "--json"]).stdout)
    assert found.budget_mb == 600
    alone = run.invoke(app, ["compare", "-c", "spare"])
    assert (alone.exit_code, "fewer than two caches" in alone.output) == (1, True)
    nobody = run.invoke(app, [*both, "-c", "nobody"])
    assert (nobody.exit_code, "there is no cache named 'nobody'" in nobody.output) == (1, True)


def test_tune_in_mode_observe_prints_a_report(server: ServerProcess) -> None:
    result = run.invoke(app, ["tune", "--url", server.http_url, "--mode", "observe", "--window", "0", "--json"])
    assert result.exit_code == 0, result.output
    assert TuneReport.model_validate_json(result.stdout).outcome.value == "observed"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["status", "--url", "http://127.0.0.1:9"], 1, "no cache answered"),
        (["status", "--url", "nonsense"], 1, "is not http://host:port"),
        (["status", "--url", "http://"], 1, "not an address"),
        (["status", "--cache", "prod"], 1, "there is no cache named 'prod'"),
        (["tune", "--url", "http://127.0.0.1:9", "--mode", "auto"], 1, "no cache answered"),
        (["tune", "--mode", "brave"], 2, "brave"),
        (["tune", "--window", "-1"], 2, "greater than or equal to 0"),
        (["recommend", "--url", "http://127.0.0.1:9", "--max-size-mb", "-5"], 2, "greater than 0"),
        (["recommend", "--max-size-mb", "5"], 1, "go with --url"),
        (["demo", "--trace", "missing.jsonl.gz"], 1, "missing.jsonl.gz"),
    ],
)
def test_bad_input_gives_one_clear_sentence_and_a_non_zero_exit(arguments: list[str], code: int, words: str) -> None:
    result = run.invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_broken_settings_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCACHE_AGENT_SETTINGS", "caches.toml")
    (tmp_path / "caches.toml").write_text("[caches.prod]\ntarget = 5\n", encoding="utf-8")
    result = run.invoke(app, ["status", "--cache", "prod"])
    assert result.exit_code == 1
    assert "caches.toml" in result.output
    assert "target" in result.output


def test_a_trace_with_a_broken_line_is_refused_with_its_number(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl.gz"
    good = json.dumps({"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [1, 2]})
    trace.write_bytes(gzip.compress(f"{good}\n{good}\n{{broken\n".encode()))
    result = run.invoke(app, ["demo", "--trace", str(trace)])
    assert result.exit_code == 1
    assert "line 3" in " ".join(result.output.split())


@pytest.mark.needs("matplotlib")
def test_predict_prints_a_table_and_draws_it(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 500 * i, "input_length": 1024, "output_length": 1, "hash_ids": [i % 7, 100 + i % 7]} for i in range(60)
    ]
    trace.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    result = run.invoke(app, ["predict", str(trace), "--plot", str(tmp_path / "curve.png")])
    assert result.exit_code == 0, result.output
    assert "60 requests, 14 distinct chunks; ceiling 88.3%" in result.stdout
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert run.invoke(app, ["predict", str(trace), "--plot", "curve.gif"]).exit_code == 1
    assert run.invoke(app, ["predict", str(tmp_path / "nothing")]).exit_code == 1


@pytest.mark.parametrize("command", [["predict"], ["size", "--kv-bytes-per-token", "512"]], ids=["predict", "size"])
def test_what_a_file_does_not_say_is_said_alike_to_every_command(command: list[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    blocks = ([1, 2, 3], [4, 2, 3], [1, 2, 3])  # the same block behind two others, so the ids are of blocks and not of prefixes
    lines = [
        json.dumps({"timestamp": 2 * number, "input_length": 1536, "output_length": 1, "hash_ids": ids})
        for number, ids in enumerate(blocks)
    ]
    trace.write_text("\n".join([*lines, "half of a li"]) + "\n", encoding="utf-8")
    told = [*command, str(trace), "--chunk-size", "512", "--skip-bad-lines"]
    refused = run.invoke(app, told)
    assert refused.exit_code == 1
    assert "--chain" in refused.output
    result = run.invoke(app, [*told, "--chain", "--time-unit", "s", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    found = found.get("forecast", found)
    assert found["ceiling"] == pytest.approx(1 / 3)
    assert found["duration_seconds"] == 4
    assert run.invoke(app, [*told[:-1], "--chain"]).exit_code == 1  # the broken line


def test_predict_answers_what_if(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [{"timestamp": 100 * n, "input_length": 1024, "hash_ids": [n % 7, 100 + n % 7]} for n in range(40)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ["predict", str(trace), "--json", "--size-mb", "1", "--kv-bytes-per-token", "512", "--l2-mb", "8", "--policy", "noop"]
    told = json.loads(run.invoke(app, asked).stdout)
    (row,) = told["rows"]
    assert (row["size_mb"], row["capacity_chunks"], told["policy"]) == (1, 4, "noop")
    assert told["second_tier"] == "an L2 of 32 chunks, prefetch policy default"
    # Two of seven prompts fit into L1 and are found 5 times each; the others find no room there, and so do not reach L2 either.
    assert (row["server"], row["from_l2"], row["failed_chunks"]) == (10 / 40, 0, 56)
    larger = json.loads(run.invoke(app, ["predict", str(trace), "--json", "--chunk-factor", "2"]).stdout)
    assert larger["chunk_size"] == 2 * told["chunk_size"]
    unknown = run.invoke(app, ["predict", str(trace), "--l2-mb", "8"])
    assert unknown.exit_code == 1
    assert "KV bytes of a token" in unknown.stderr


@pytest.mark.needs("matplotlib")
def test_size_names_the_knee_and_invents_no_price(tmp_path: Path) -> None:
    trace, model = tmp_path / "trace.jsonl", Path(__file__).parents[1] / "prediction/model_files/llama-3-8b.json"
    lines = [{"timestamp": 100 * n, "input_length": 1024, "hash_ids": [n % 70, 100 + n % 70]} for n in range(400)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ["size", str(trace), "--model", str(model), "--gpu-free-gb", "0.5"]
    result = run.invoke(app, [*asked, "--plot", str(tmp_path / "knee.png")])
    assert result.exit_code == 0, result.output
    assert "131,072 KV bytes a token" in result.stdout
    assert "knee of L1" in result.stdout
    assert "price_month is unknown" in result.stdout
    assert (tmp_path / "knee.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(run.invoke(app, [*asked, "--json", "--prefill-tokens-per-second", "9000"]).stdout)
    assert all(row["ttft_ms"] > 0 and row["net_month"] is None for row in told["rows"])
    assert run.invoke(app, ["size", str(trace), "--model", str(tmp_path / "none.json")]).exit_code == 1


def test_report_writes_one_page_that_needs_no_network(launch: Launch, tmp_path: Path) -> None:
    server = launch({"--supported-transfer-mode": "auto"})  # of its own, since a log of one model is needed
    replay(FEW, server.rpc_url)
    result = run.invoke(
        app, ["report", "--url", server.http_url, "--access-log", str(server.folder / "lookups"), "--output", "page.html"]
    )
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "src=" not in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace(server.http_url, "")


@pytest.fixture
def leftovers(lmcache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails when a demo leaves a process, a shared-memory file or a temporary folder."""
    own = tmp_path / "tmp"
    own.mkdir()
    monkeypatch.setenv("TMPDIR", str(own))
    before = _arenas()
    yield
    eventually(lambda: _arenas() <= before, 15)
    assert not list(own.iterdir())
    # The guard and the server are told the folder, so their command lines name it.
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(own) in " ".join(p.info["cmdline"] or [])]


def _arenas() -> set[Path]:
    """Files in shared memory; another run's stand there only until its server has mapped them. Its folders are its own affair."""
    return {file for file in Path("/dev/shm").glob("lmcache*") if file.is_file()}


def _demo(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "agent_tools.doors.cli", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"},
    )


@pytest.mark.long
def test_the_demo_tunes_a_real_cache_and_leaves_nothing_behind(leftovers: None) -> None:
    demo = _demo("--pass-seconds", "12")
    output, _ = demo.communicate(timeout=150)
    assert demo.returncode == 0, output
    assert re.search(r"runs at http://127\.0\.0\.1:\d+", output)
    for words in ("token hit rate", "chunks not stored", "Changed: max_size_mb", "Verified: improved"):
        assert words in output


@pytest.mark.long
def test_an_interrupted_demo_leaves_nothing_behind(leftovers: None) -> None:
    demo = _demo("--pass-seconds", "30")
    assert demo.stdout is not None
    for line in demo.stdout:
        if "; log:" in line:
            break
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=30)
    assert demo.returncode == 130, output
    assert "Traceback" not in output


def test_options_that_a_sample_would_ignore_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "trace.jsonl"
    log.write_text("")
    refused = CliRunner().invoke(app, ["predict", str(log), "--sample", "0.1", "--chain", "--l2-mb", "5", "--chunk-size", "256"])
    assert refused.exit_code == 2
    assert "leave out --chain, --l2-mb" in refused.output
    assert "--chunk-size" not in refused.output
