"""Claims that a secret comes out nowhere: `CANARY` is planted wherever LMCache or the operator has one, and then looked for.

The L2 adapter with a password is attached to a real server, and the password arrives where it must: masking that broke the use
of a secret would be no protection. What a real server does not hold in our tests comes from the stand-in.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from hostile_server import CANARY, Meet, hostile, telling
from langchain_core.callbacks import BaseCallbackHandler
from langgraph.checkpoint.sqlite import SqliteSaver
from mcp_session import connected
from password_store import PasswordStore, password_store
from real_cache import eventually
from recorded_answers import ANSWERS
from serving import serving
from starlette.responses import JSONResponse

from agent_tools import LMCacheToolkit
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.server.embedded import EmbeddedDeployment, EmbeddedOptions
from agent_tools.doors.mcp import mcp_server
from agent_tools.doors.rest import rest_app
from agent_tools.errors import LMCacheToolError, SettingsError
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate, L2Adapter, Mode
from agent_tools.operations import Operations
from agent_tools.plain import MESSAGE
from agent_tools.redaction import SECRET, text_without_secrets, without_secrets
from agent_tools.tuning.state import TuneContext
from agent_tools.tuning.tune_cache import build_tune_cache

REASON = {"reason": "a test of secrets"}
PREFIX: dict[str, Any] = {"model": "llama", "token_ids": list(range(300)), **REASON}
MODEL: dict[str, Any] = {
    "model_settings": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "torch_dtype": "bfloat16",
    }
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "lmcache_size": MODEL,
    "lmcache_migrate": MODEL,
    "lmcache_plan_update": {"update": {"eviction_ratio": 0.3}},
    "lmcache_update_config": {"update": {"eviction_ratio": 0.3}, **REASON},
    "lmcache_undo_change": {"change_id": "change-0"},
    "lmcache_verify_change": {"change_id": "change-0", "verify_seconds": 1},
    "lmcache_optimize": REASON,
    "lmcache_clear_cache": REASON,
    "lmcache_set_tenant_quota": {"tenant": "a", "quota_mb": 1.0, **REASON},
    "lmcache_warm_prefix": PREFIX,
    "lmcache_pin_prefix": PREFIX,
    "lmcache_delete_prefix": PREFIX,
    "lmcache_tune": {"mode": "recommend", "window_seconds": 0, **REASON},
}


@pytest.fixture(scope="module")
def store() -> Iterator[PasswordStore]:
    with password_store() as store:
        yield store


def adapter(port: int, password: str = CANARY) -> L2Adapter:
    return L2Adapter(
        type="resp",
        settings={
            "host": "127.0.0.1",
            "port": port,
            "num_workers": 1,
            "username": "me",
            "password": password,
            "max_capacity_gb": 0.01,
        },
    )


@pytest.fixture(scope="module")
def operations(
    lmcache: None, store: PasswordStore, arena_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operations]:
    """The caches ``default``, a real server to which an L2 with a password may be added, and ``telling``, the stand-in."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        environment.setenv("LMCACHE_AGENT_TOKEN", CANARY + CANARY)
        environment.setenv("SOME_API_KEY", CANARY)
        url, _ = stack.enter_context(hostile(telling()))
        bounds = Bounds(max_size_mb=64, l2_adapter=adapter(store.port), max_quotas_mb=64)
        caches = {
            "default": CacheSettings(
                target="embedded:",
                embedded=EmbeddedOptions(l1_size_mb=8, arena_folder=arena_folder),
                bounds=bounds,
                cooldown_seconds=0,
            ),
            "telling": CacheSettings(target=url, bounds=bounds),
        }
        operations = Operations(Registry(Settings(caches=caches, state_folder=tmp_path_factory.mktemp("state"))))
        stack.callback(io_loop.run, operations.close)
        cache = operations.registry.get("default")
        assert isinstance(cache.deployment, EmbeddedDeployment)
        io_loop.run(cache.deployment.started)
        yield operations


class Trace(BaseCallbackHandler):
    """All that LangChain tells who traces a run."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
        self.told.append(repr((args, kwargs)))

    on_tool_end = on_tool_error = on_chain_start = on_chain_end = on_chain_error = on_custom_event = on_tool_start


def everything_under(folder: Path) -> str:
    return "\n".join(file.read_bytes().decode("latin-1") for file in folder.rglob("*") if file.is_file())


# ---- the one place where a secret has to arrive ----


def test_an_l2_with_a_password_is_attached_by_what_is_shown_of_it(operations: Operations, store: PasswordStore) -> None:
    shown = ConfigUpdate(l2_adapters=(adapter(store.port, SECRET),))
    plan = io_loop.run(operations.plan, "default", shown, "an L2")
    result = io_loop.run(operations.apply, plan, "tester")
    eventually(lambda: any(CANARY.encode() in told for told in store.told))  # LMCache logs in with it
    config = io_loop.run(operations.settings, "default")
    assert config.l2_adapters == shown.l2_adapters
    assert CANARY not in repr((plan, result, config))
    assert CANARY not in plan.model_dump_json() + result.model_dump_json()


def test_another_password_is_not_tried(operations: Operations, store: PasswordStore) -> None:
    with pytest.raises(LMCacheToolError, match="may not be added"):
        io_loop.run(operations.plan, "telling", ConfigUpdate(l2_adapters=(adapter(store.port, "guessed"),)), "an L2")


# ---- everywhere else ----


@pytest.mark.parametrize("cache", ["default", "telling"])
def test_no_tool_tells_it_to_the_model_the_log_or_a_trace(
    operations: Operations, store: PasswordStore, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    trace = Trace()
    answers = []
    for tool in LMCacheToolkit(operations=operations).get_tools():
        which = {"lmcache_list_caches": {}, "lmcache_compare_caches": {"caches": [cache, "default"]}}
        arguments = {**ARGUMENTS.get(tool.name, {}), **which.get(tool.name, {"cache": cache})}
        call = {"type": "tool_call", "id": "1", "name": tool.name, "args": arguments}
        answer = tool.invoke(call, {"callbacks": [trace]})
        assert "bad_arguments" not in str(answer.content), (tool.name, answer.content)
        answers.append(answer.model_dump_json())
    assert len(trace.told) >= 2 * len(answers)
    told = "\n".join([*answers, *trace.told, caplog.text, *(repr(record.__dict__) for record in caplog.records)])
    assert '"password":"***"' in told, "the adapter is among what was told"
    assert CANARY not in told
    assert CANARY not in everything_under(operations.registry.settings.state_folder)


@pytest.mark.parametrize("cache", ["default", "telling"])
def test_no_route_and_no_report_tells_it(operations: Operations, cache: str, caplog: pytest.LogCaptureFixture) -> None:
    update = {"update": {"eviction_ratio": 0.35}, "reason": "a test of secrets"}
    asked: list[tuple[str, str, Any]] = [
        *(
            ("GET", path, None)
            for path in ("caches", "status", "metrics", "config", "recommendations", "changes", "report", "nothing")
        ),
        *(("POST", "config", update | {"dry_run": dry}) for dry in (True, False)),
        ("POST", "config", update | {"update": {"l2_adapters": [{"type": "resp", "settings": {"password": CANARY}}]}}),
        ("POST", "optimize", {}),
        ("DELETE", "clear", None),
        ("POST", "changes/change-0/undo", None),
    ]
    caplog.set_level(logging.DEBUG)
    bearer = {"Authorization": f"Bearer {CANARY}{CANARY}"}
    with (
        serving(rest_app(lambda: operations)) as url,
        httpx.Client(base_url=f"{url}/lmcache", headers=bearer, timeout=30) as client,
    ):
        answers = [client.request(method, path, json=body, params={"cache": cache}) for method, path, body in asked]
        answers.append(httpx.get(f"{url}/lmcache/status", headers={"Authorization": f"Bearer {CANARY}"}))
    assert 401 not in {answer.status_code for answer in answers[:-1]}
    assert answers[-1].status_code == 401
    told = "\n".join([*(answer.text + repr(answer.headers) for answer in answers), caplog.text])
    assert '"password":"***"' in told
    assert CANARY not in told


@pytest.mark.parametrize("cache", ["default", "telling"])
async def test_no_answer_over_mcp_holds_it(operations: Operations, cache: str) -> None:
    async with connected(mcp_server(LMCacheToolkit(operations=operations).get_tools())) as client:
        told = [await client.call("lmcache_get_config", cache=cache)]
        told.append(await client.call("lmcache_list_caches"))
        wrong = {"cache": cache, "update": {"l2_adapters": [{"type": "s3", "settings": [f"password={CANARY}"]}]}}
        told.append(await client.call("lmcache_plan_update", **wrong))
    assert '"password": "***"' in json.dumps(told)
    assert CANARY not in json.dumps(told)


@pytest.mark.parametrize("cache", ["default", "telling"])
@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.APPROVE])
def test_no_checkpoint_and_no_stream_holds_it(operations: Operations, tmp_path: Path, cache: str, mode: Mode) -> None:
    file = tmp_path / "runs.sqlite"
    with SqliteSaver.from_conn_string(str(file)) as saver:
        graph = build_tune_cache(operations=operations).compile(checkpointer=saver)
        config: Any = {"configurable": {"thread_id": "1"}}
        context = TuneContext(cache=cache, mode=mode, window_seconds=0, bounds=Bounds(max_size_mb=32))
        stream = list(
            graph.stream({"tune_reason": f"password={CANARY}"}, config, context=context, stream_mode=["custom", "updates"])
        )
    told = everything_under(tmp_path)
    assert "tune_report" in told
    # The host's own words stand in its own input channel as it gave them; nothing of ours repeats them.
    assert CANARY not in repr(stream)
    assert CANARY not in told.replace(f"password={CANARY}", "")


def test_the_server_that_we_start_does_not_get_the_secrets_of_our_environment(operations: Operations) -> None:
    assert os.environ["LMCACHE_AGENT_TOKEN"] == CANARY + CANARY
    deployment = operations.registry.get("default").deployment
    assert isinstance(deployment, EmbeddedDeployment)
    environment = httpx.get(f"{io_loop.run(deployment.started).http_url}/env")
    assert "PATH" in environment.json()
    assert CANARY not in environment.text


def test_what_a_server_says_in_an_error_is_told_without_it(meet: Meet) -> None:
    operations, server = meet(ANSWERS)
    server.refuses = JSONResponse({"detail": f"cannot reach redis://me:{CANARY}@host/0 with password='{CANARY}'"}, 500)
    with pytest.raises(LMCacheToolError) as told:
        io_loop.run(operations.clear, "prod", "tester", f"api_key={CANARY}")
    assert "cannot reach redis://***@host/0" in str(told.value)
    changes = io_loop.run(operations.changes)
    assert len(changes) == 2
    assert CANARY not in repr(told.value) + repr(changes) + everything_under(operations.registry.settings.state_folder)


@pytest.mark.parametrize(
    "target", [f"redis://u:{CANARY}@h", f"http://u:{CANARY}@h:1", f"fleet:http://u:{CANARY}@h", f"engine:http://:{CANARY}@h"]
)
def test_the_operators_own_file_is_not_repeated_in_an_error(tmp_path: Path, target: str) -> None:
    with pytest.raises(SettingsError) as told:
        Registry(Settings(caches={"a": CacheSettings(target=target)}, state_folder=tmp_path)).get("a")
    assert CANARY not in str(told.value)


def test_settings_and_bounds_do_not_show_it_when_they_are_printed(store: PasswordStore) -> None:
    bounds = Bounds(l2_adapter=adapter(store.port))
    settings = Settings(caches={"a": CacheSettings(bounds=bounds)}, token=CANARY + CANARY)  # type: ignore[arg-type]
    dumps = [
        settings.model_dump_json(),
        json.dumps(settings.model_dump(mode="json")),
        repr(settings.model_dump()),
        repr(settings),
    ]
    assert CANARY not in "".join([*dumps, str(bounds), repr(bounds.l2_adapter)])
    assert bounds.l2_adapter is not None
    assert bounds.l2_adapter.settings["password"] == CANARY


# ---- how they are recognised ----


@pytest.mark.parametrize(
    "text",
    [
        f"redis://u:{CANARY}@h",
        f"redis://u:p@{CANARY}/x@h",
        f"redis://{CANARY}@h",
        f"https://h/x?a=1&token={CANARY}&y=1",
        f"https://h/x?sig={CANARY}",
        f"X-Auth-Token: {CANARY}",
        f"Authorization: Bearer {CANARY}",
        f"S3(secret_key='{CANARY}', region='x')",
        f'{{"api_key": "{CANARY} with spaces", "x": 1}}',
        f"AccountName=a;AccountKey={CANARY};x=1",
        f"PASSWORD = {CANARY}",
        f"password='{CANARY}",
    ],
)
def test_secrets_in_running_text_are_found(text: str) -> None:
    assert CANARY not in text_without_secrets(text)
    assert SECRET in text_without_secrets(text)


@pytest.mark.parametrize(
    "name", ["password", "Passwd", "apiKey", "api-key", "secretAccessKey", "x-auth-token", "connectionString", "cookie"]
)
def test_secrets_are_found_by_the_name_of_their_field(name: str) -> None:
    assert CANARY not in repr(without_secrets({"a": [{name: CANARY}], "b": ({name: {"x": CANARY}},)}))


@pytest.mark.parametrize(
    "text",
    [
        "token hit rate 91.4%: of 256 tokens: 3",
        "http://127.0.0.1:8080/status",
        "s3://bucket/a@b",
        "tenants a=1, b=2",
        "key: 7",
        "max_size_mb=20",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert text_without_secrets(text) == text


@pytest.mark.parametrize("piece", ["://", "://a:", "password", "password=", "password='", "_token", "a", " ", "@", '"'])
def test_no_text_takes_long(piece: str) -> None:
    text, began = piece * (100_000 // len(piece)), time.process_time()
    assert len(str(LMCacheToolError(text))) <= MESSAGE
    assert time.process_time() - began < 2
