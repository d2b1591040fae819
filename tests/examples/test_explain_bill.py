"""Claims about the agent that explains the bill: it reads money's worth from the tools, and has none that changes anything."""

import sys
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from scripted_model import ScriptedChatModel, call

from agent_tools import LMCacheToolkit, Operations
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import Settings
from agent_tools.io_loop import io_loop
from examples.explain_bill import READS, bill_agent, main

ECONOMICS = {
    "prefill": {"tokens_per_second": 9000, "gpus": 1, "source": "measured at the engine"},
    "prices": {"memory_gb": 6.0, "gpu_hour": 2.5},
}


def test_it_is_told_gpu_seconds_memory_and_who_takes_what(tmp_path: Path) -> None:
    entry = {"target": "simulated:", "simulated": {"l1_size_mb": 512, "seed": 7}, "economics": ECONOMICS}
    caches = {"prod": entry | {"bounds": {"max_size_mb": 4096}}}
    operations = Operations(Registry(Settings.model_validate({"caches": caches, "state_folder": tmp_path})))
    calls = [call(f"lmcache_{name}", **({} if name == "list_changes" else {"cache": "prod"})) for name in READS]
    model = ScriptedChatModel(script=[*calls, AIMessage("The cache is too small.")])
    try:
        answer = bill_agent(model, operations).invoke({"messages": [("user", "What does the cache prod cost us?")]})
        heard = {one.name: one.text for one in answer["messages"] if isinstance(one, ToolMessage) and one.status == "success"}
        assert heard.keys() == {f"lmcache_{name}" for name in READS}
        assert "GPU-seconds an hour" in heard["lmcache_recommend"]
        assert "pays it back in" in heard["lmcache_recommend"]
        assert "% of all tokens" in heard["lmcache_list_tenants"]
        assert answer["messages"][-1].text == "The cache is too small."
        assert io_loop.run(operations.changes) == []
    finally:
        io_loop.run(operations.close)


def test_none_of_its_tools_changes_anything() -> None:
    kept = {tool.name for tool in LMCacheToolkit().only(*READS).get_tools()}
    assert kept <= {tool.name for tool in LMCacheToolkit().read_only().get_tools()}


@pytest.mark.parametrize(
    ("name", "told"), [("anthropic:some-model", "langchain-anthropic"), ("nobody-knows", "Unable to infer model provider")]
)
def test_a_model_that_cannot_be_used_is_an_error_in_one_sentence(
    name: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "langchain_anthropic", None)  # also where it is installed
    monkeypatch.setattr("sys.argv", ["explain_bill.py", name, "prod"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert f"the chat model {name!r} cannot be used: " in said
    assert told in said
