"""Claims about starting a vLLM that can be told without one; the rest is in test_end_to_end.py."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent_tools.demo.engine.vllm_server import BLOCK, CONTEXT, VllmServer, own_cache_flags, transfer_config
from agent_tools.doors.cli import app
from agent_tools.errors import RefusedError
from agent_tools.io_loop import io_loop


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_one_sentence_says_how_to_get_it_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMCACHE_AGENT_STATE_FOLDER", str(tmp_path))
    told = CliRunner().invoke(app, ["demo-engine"])
    assert told.exit_code == 1
    assert "vLLM is not installed in this environment: `make demo-engine`" in told.stderr
    assert not list(tmp_path.iterdir())


def test_an_engine_that_ends_while_starting_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    says = "print('loading'); print('ValueError: no such flag --ocelot'); raise SystemExit(2)"
    folder = tmp_path / "model"
    folder.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", says], stdin=subprocess.PIPE, stdout=output)
    process.wait(10)
    server = VllmServer(process, folder, log, 1)
    with pytest.raises(
        RefusedError, match=r"ended while starting: loading \| ValueError: no such flag --ocelot \(log: .*vllm\.log"
    ):
        io_loop.run(server.wait_ready)
    io_loop.run(server.stop)
    assert not folder.exists()


def test_the_connector_is_told_where_the_cache_server_takes_requests() -> None:
    given = transfer_config("tcp://127.0.0.1:5555", {"lmcache.mp.mq_timeout": 10})
    assert given["kv_connector_extra_config"] == {
        "lmcache.mp.host": "tcp://127.0.0.1",
        "lmcache.mp.port": 5555,
        "lmcache.mp.mq_timeout": 10,
    }


def test_a_prompt_may_be_as_long_as_the_own_cache_but_for_the_block_that_vllm_keeps_for_itself() -> None:
    flags = own_cache_flags(53 * BLOCK + 1)
    assert flags[flags.index("--num-gpu-blocks-override") + 1] == "53"
    assert flags[flags.index("--max-model-len") + 1] == str(52 * BLOCK)
    large = own_cache_flags(10 * CONTEXT)
    assert large[large.index("--max-model-len") + 1] == str(CONTEXT)
