"""Claims that a name from outside takes at most `NAME` characters of a sentence, wherever it comes from and wherever it ends up.

A name stays whole where it is data: a field or key that holds the name and nothing else.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hostile_server import Meet, hostile, named
from pydantic import BaseModel
from starlette.responses import JSONResponse

from agent_tools import LMCacheToolkit
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import CacheSettings, Settings
from agent_tools.deployments.counters import Unlisted
from agent_tools.deployments.in_process.deployment import _must_have
from agent_tools.deployments.in_process.exposition import InProcessExposition
from agent_tools.deployments.in_process.settable import _nonsense
from agent_tools.deployments.in_process.worker import WorkerState, _health_of
from agent_tools.deployments.server.settable import wiped
from agent_tools.errors import LMCacheToolError
from agent_tools.io_loop import io_loop
from agent_tools.models import Bounds, ConfigUpdate, L2Adapter, SettingChange, SupportLevel
from agent_tools.operations import Operations
from agent_tools.plain import NAME

LONG = "x" * 70_000
ADAPTER = {"type": LONG, "settings": {"base_path": LONG, LONG: [LONG]}}
IDENTIFIERS = {"entry_id", "instance_id"}
"""Fields that are joined from several names and identify something; they are no sentences."""
ARGUMENTS: dict[str, dict[str, Any]] = {
    "lmcache_list_caches": {},
    "lmcache_plan_update": {"update": {"l2_adapters": [ADAPTER]}},
    "lmcache_update_config": {"update": {"tenant_quotas_mb": {"b": 1.0}}},
    "lmcache_undo_change": {"change_id": LONG},
    "lmcache_set_tenant_quota": {"tenant": "b", "quota_mb": 1.0},
    "lmcache_warm_prefix": {"model": LONG, "token_ids": [1] * 256},
    "lmcache_delete_prefix": {"model": LONG, "token_ids": [1] * 256},
    "lmcache_pin_prefix": {"model": LONG, "token_ids": [1] * 256},
    "lmcache_tune": {"mode": "recommend", "window_seconds": 0},
}
"""What each tool is called with besides the cache and the reason."""


def texts(value: object, field: str = "") -> Iterator[str]:
    """Every text in a value that is a sentence: neither the name itself nor an identifier."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        for key, one in value.items():
            yield from texts(key)
            yield from texts(one, str(key))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one, field)
    elif isinstance(value, str) and value != LONG and field not in IDENTIFIERS:
        yield value


def too_long(*values: object) -> list[str]:
    """The beginnings of all sentences that hold more of the name than they may."""
    return [text[:200] for value in values for text in texts(value) if re.search(f"x{{{NAME + 1}}}", text)]


def answers() -> dict[str, Any]:
    """The answers of a server that has the long name everywhere, with two broken threads and an L2 that evicts by tenant."""
    said = named(LONG)
    manager = said["/status"]["storage_manager"]
    manager["l1_eviction_controllers"][LONG] = {"thread_alive": False, "eviction_policy": LONG}
    said["/config"]["mp"]["hash_algorithm"] = LONG
    eviction = "EvictionConfig(eviction_policy='IsolatedLRU', trigger_watermark=0.8, eviction_ratio=0.2)"
    said["/config"]["storage_manager"]["l2_adapter_config"]["adapters"] = [{"base_path": LONG, "eviction_config": eviction}]
    said["/quota"] = {"users": {}}
    said["/config/adapters"]["adapters"] = [{"index": 0, "type_name": LONG, "tier": "l2"}]
    return said


@pytest.fixture
def operations(meet: Meet) -> Operations:
    """Operations whose cache ``prod`` is that server; it refuses every change in its own words."""
    made, server = meet(answers(), bounds=Bounds(max_size_mb=64, max_quotas_mb=4096), cooldown_seconds=0)
    server.refuses = JSONResponse({"detail": "no"}, 400)
    return made


def called(operations: Operations, name: str, **arguments: Any) -> tuple[str, Any]:
    """The content and the artifact of a tool."""
    (tool,) = [one for one in LMCacheToolkit(operations=operations).get_tools() if one.name == name]
    known = {"reason": "a test", "cache": "prod"} if "reason" in tool.args else {"cache": "prod"} if "cache" in tool.args else {}
    message = tool.invoke({"type": "tool_call", "id": "1", "name": name, "args": known | arguments})
    return str(message.content), message.artifact


@pytest.mark.parametrize("name", [tool.name for tool in LMCacheToolkit().get_tools()])
def test_no_tool_tells_more_of_a_name(operations: Operations, name: str) -> None:
    content, artifact = called(operations, name, **ARGUMENTS.get(name, {}))
    assert too_long(content, artifact) == []


@pytest.mark.parametrize(
    "name", ["lmcache_get_metrics", "lmcache_update_config", "lmcache_undo_change", "lmcache_set_tenant_quota"]
)
def test_no_tool_repeats_more_of_a_name_it_was_given(operations: Operations, name: str) -> None:
    for wrong in ({"cache": LONG}, {"cache": f"prod/{LONG}"}, {LONG: LONG}, {"window_seconds": LONG, "tenant": LONG}):
        assert too_long(called(operations, name, **ARGUMENTS.get(name, {}) | wrong)[0]) == []


def test_the_symptoms_and_the_health_name_the_broken_parts_all_the_same(operations: Operations) -> None:
    summaries = " ".join(symptom.summary for symptom in io_loop.run(operations.recommend, "prod").symptoms)
    for part in ("L1 eviction thread of pool 'xxx", "L2 store thread of pool 'xxx", "L2 adapter 0 (xxx", "--hash-algorithm xxx"):
        assert part in summaries
    assert "tenants with traffic have no quota" in summaries


class Words(HTMLParser):
    """The pieces of text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def test_the_report_and_the_change_log_show_no_more_of_a_name(operations: Operations) -> None:
    with pytest.raises(LMCacheToolError):
        io_loop.run(operations.clear, "prod", LONG, f"because of {LONG[:NAME]}")
    page = Words()
    page.feed(io_loop.run(operations.report, "prod"))
    assert any("xxx" in text for text in page.found)
    assert [text[:200] for text in page.found if f"x{LONG[:NAME]}" in text] == []
    assert too_long(called(operations, "lmcache_list_changes")[0]) == []


def test_a_fleet_shows_no_more_of_the_names_that_its_servers_register(tmp_path: Path) -> None:
    instances = [
        {"instance_id": LONG, "ip": "127.0.0.1", "http_port": 9, "registration_time": 1.0},
        {"instance_id": "node-1", "ip": LONG, "http_port": 9, "registration_time": 1.0},
    ]
    with hostile({"/instances": {"instances": instances}, "/quota": {"by_cache_salt": []}}) as (url, _):
        settings = CacheSettings(target=f"fleet:{url}", networks=(ip_network("127.0.0.0/8"),))
        operations = Operations(Registry(Settings(caches={"prod": settings}, state_folder=tmp_path)))
        try:
            said = [called(operations, f"lmcache_{verb}")[0] for verb in ("get_metrics", "get_config", "clear_cache")]
            said.append(called(operations, "lmcache_get_status", cache=f"prod/{LONG}")[0])
        finally:
            io_loop.run(operations.close)
    assert [text for text in said if "xxx" not in text] == []
    assert too_long(*said) == []


def test_in_process_lmcache_shows_no_more_of_the_names_of_its_backends() -> None:
    state = WorkerState(conf={}, meta={}, backends=(LONG,), bypassed=(LONG,))
    seen = InProcessExposition(
        process_start=None,
        counters=None,
        tokens={},
        unlisted=Unlisted(),
        l1_used_bytes=0,
        disk_used_bytes=0,
        resident_keys=0,
        healthy=True,
        ranks=1,
    )
    said = [*_health_of(state, seen).problems]
    with pytest.raises(LMCacheToolError) as refused:
        _must_have("LocalDiskBackend", "worker 0", state)
    wrong = [
        L2Adapter(type="local_disk", settings={LONG: 1}),
        L2Adapter(type="local_disk", settings={"path": LONG, "max_capacity_gb": 1}),
    ]
    said += [str(refused.value), *(str(_nonsense(one)) for one in wrong)]
    assert all("xxx" in text for text in said)
    assert too_long(*said) == []


def test_settings_and_bounds_in_words_show_no_more_of_a_name() -> None:
    adapter = L2Adapter.model_validate(ADAPTER)
    update = ConfigUpdate(l2_adapters=(adapter,), tenant_quotas_mb={LONG: 1.0})
    changes = [
        SettingChange(setting=name, old=[ADAPTER], new=value, how=SupportLevel.LIVE) for name, value in update.known().items()
    ]
    reasons = [wiped([LONG]).reason, str(Bounds()._forbids_l2((adapter,), ()))]
    said = [*map(str, changes), repr(adapter), *reasons]
    assert all("xxx" in text for text in said)
    assert too_long(*said) == []
