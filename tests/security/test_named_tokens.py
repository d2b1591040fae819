"""Claims about tokens with names: what each opens, whose name is on record, and how much one caller may ask for at once."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from real_cache import eventually
from serving import serving

from agent_tools import LMCacheToolkit
from agent_tools.caches.named_tokens import Tokens
from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import Settings
from agent_tools.doors.mcp_answers import Answers
from agent_tools.doors.rates import Load, Rates, load_of
from agent_tools.doors.rest import rest_app
from agent_tools.errors import ForbiddenError, SettingsError, TooManyRequestsError
from agent_tools.io_loop import io_loop
from agent_tools.models import ConfigUpdate, Mode
from agent_tools.models.rights import Right
from agent_tools.operations import Operations
from agent_tools.tuning.person import Caller
from agent_tools.tuning.state import TuneContext
from agent_tools.tuning.tune_cache import build_tune_cache

READER, CHANGER, CLEARER = (
    "the token of ci, 32 characters...",
    "the token of ops, 32 characters..",
    "the token of night, 32 characters",
)
TOKENS: dict[str, Any] = {
    "ci": READER,
    "ops": {"token": CHANGER, "rights": ["change"]},
    "night": {"token": "env:NIGHT_TOKEN", "rights": ["clear"]},
    "alice": {"token": "the token of alice, 32 characters", "rights": ["approve"]},
}


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operations]:
    """Operations on a simulated cache, with the named tokens of `TOKENS`."""
    monkeypatch.setenv("NIGHT_TOKEN", CLEARER)
    caches = {"default": {"target": "simulated:", "cooldown_seconds": 0}}
    operations = Operations(Registry(Settings.model_validate({"caches": caches, "state_folder": tmp_path, "tokens": TOKENS})))
    yield operations
    io_loop.run(operations.close)


@pytest.fixture
def url(named: Operations) -> Iterator[str]:
    with serving(rest_app(lambda: named)) as url:
        yield f"{url}/lmcache"


def send(url: str, method: str, path: str, token: str, **given: Any) -> httpx.Response:
    return httpx.request(method, f"{url}/{path}", headers={"Authorization": f"Bearer {token}"}, timeout=60, **given)


def actors(operations: Operations) -> list[str]:
    return [one.actor for one in io_loop.run(operations.changes)]


def test_a_token_that_may_read_changes_nothing_over_rest(url: str, named: Operations) -> None:
    assert send(url, "GET", "status", READER).status_code == 200
    assert send(url, "POST", "config", READER, params={"dry_run": True}, json={"eviction_ratio": 0.3}).status_code == 200
    for method, path, body in (
        ("POST", "config", {"eviction_ratio": 0.3}),
        ("POST", "optimize", {}),
        ("DELETE", "clear", None),
        ("POST", "changes/change-1/undo", None),
    ):
        refused = send(url, method, path, READER, json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), path
        assert "token of ci does not give the right to" in refused.json()["detail"]
    assert actors(named) == []


def test_changing_and_clearing_are_two_rights_and_the_name_is_on_record(url: str, named: Operations) -> None:
    assert send(url, "POST", "config", CHANGER, json={"eviction_ratio": 0.3}).status_code == 200
    assert send(url, "DELETE", "clear", CHANGER).status_code == 403
    assert send(url, "DELETE", "clear", CLEARER).status_code == 200
    assert send(url, "POST", "config", CLEARER, json={"eviction_ratio": 0.2}).status_code == 403
    assert send(url, "GET", "status", "a token that nobody has").status_code == 401
    assert set(actors(named)) == {"rest, asked by ops", "rest, asked by night"}


def test_a_token_that_may_read_verifies_a_change_and_leaves_the_record_as_it_is(url: str, named: Operations) -> None:
    assert send(url, "POST", "config", CHANGER, json={"eviction_ratio": 0.3}).status_code == 200
    change = io_loop.run(named.changes)[0].change_id
    before, path = io_loop.run(named.changes), f"changes/{change}/verify"
    found = send(url, "POST", path, READER, params={"verify_seconds": 0.1})
    assert found.status_code == 200, found.text
    assert "The change log does not hold this verdict" in found.json()["why"]
    assert io_loop.run(named.changes) == before
    found = send(url, "POST", path, CHANGER, params={"verify_seconds": 0.1})
    assert "The change log" not in found.json()["why"]
    assert len(io_loop.run(named.changes)) == len(before) + 1


def test_it_holds_for_every_tool_over_mcp_and_the_clients_name_is_on_record(named: Operations) -> None:
    call = Answers(LMCacheToolkit(operations=named).get_tools(), named).methods()["tools/call"]
    change = {"name": "lmcache_update_config", "arguments": {"update": {"eviction_ratio": 0.3}, "reason": "test"}}
    tune = {"name": "lmcache_tune", "arguments": {"mode": "auto", "window_seconds": 0, "reason": "test"}}

    async def asked() -> list[Any]:
        by_ci = [await call(one, Caller("ci", "MCP client inspector")) for one in (change, tune)]
        return [*by_ci, await call(change, Caller("ops", "MCP client inspector\x1b[31m"))]

    refused, tuned, done = asyncio.run(asked())
    assert refused["isError"]
    assert refused["content"][0]["text"].startswith("forbidden: ")
    assert "change" not in tuned.get("structuredContent", {}) or tuned["structuredContent"]["change"] is None
    assert not done["isError"]
    (actor,) = set(actors(named))
    assert actor.startswith("tool, asked by ops, with MCP client inspector")
    assert "\x1b" not in actor


@pytest.mark.long
def test_it_holds_in_a_graph_whose_host_authenticated_the_caller(named: Operations) -> None:
    async def apply(caller: str) -> None:
        one = named.called_by(caller)
        await one.apply(await one.plan("default", ConfigUpdate(eviction_ratio=0.3), "test"), "graph tune_cache")

    with pytest.raises(ForbiddenError, match="the right to change"):
        io_loop.run(apply, "ci")
    io_loop.run(apply, "ops")
    assert set(actors(named)) == {"graph tune_cache, asked by ops"}
    graph = build_tune_cache(operations=named.called_by("ci")).compile()
    config: Any = {"configurable": {"langgraph_auth_user_id": "ops"}}
    assert graph.invoke({}, config, context=TuneContext(mode=Mode.AUTO))["tune_report"]["change"] is None


def test_a_change_needs_the_right_to_change_or_the_approval_of_one_who_may_approve(named: Operations) -> None:
    plan = io_loop.run(named.plan, "default", ConfigUpdate(eviction_ratio=0.3), "test")
    with pytest.raises(ForbiddenError):
        io_loop.run(named.called_by("alice").apply, plan, "test")
    io_loop.run(named.called_by("alice").approved("alice").apply, plan, "test")
    assert set(actors(named)) == {"test, approved by alice"}


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ({"ci": "too short"}, "shorter than 16"),
        ({"ci": "env:NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE, which is not set"),
        ({"ci": READER, "other": READER}, "two callers have the same token"),
    ],
)
def test_a_token_that_cannot_be_used_keeps_the_door_shut(tokens: dict[str, str], words: str, tmp_path: Path) -> None:
    settings = Settings.model_validate({"tokens": tokens, "state_folder": tmp_path})
    with pytest.raises(SettingsError, match=words) as error:
        Tokens(settings.token, settings.tokens)
    assert READER not in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tokens": {"local": READER}}, "callers without a name"),
        ({"tokens": {"a\nb": READER}}, "letters, digits"),
        ({"tokens": {"x": {"token": READER, "rights": ["change", "approve"]}}}, "use two tokens"),
        ({"tokens": {"x": READER}, "approvers": {"x": "the token of x, 32 characters"}}, "name each caller once"),
    ],
)
def test_names_and_rights_that_make_no_sense_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings.model_validate(given)


def test_rights_are_to_read_unless_the_operator_says_more(named: Operations) -> None:
    settings = named.registry.settings
    assert settings.rights_of("ci") == {Right.READ}
    assert settings.rights_of("ops") == {Right.READ, Right.CHANGE}
    assert settings.approver_names == {"alice"}
    assert READER not in json.dumps(settings.model_dump(mode="json"))


# ---- how much at once ----


def test_one_caller_is_bounded_and_another_is_not() -> None:
    rates = Rates()
    with rates.turn("ci", Load.WINDOW, 30.0):
        turns = [rates.turn("ci", Load.WINDOW, 60.0) for _ in range(Load.WINDOW.most_for_one - 1)]
        for turn in turns:
            turn.__enter__()
        with pytest.raises(TooManyRequestsError, match="you have 8 windows") as error, rates.turn("ci", Load.WINDOW, 30.0):
            pass
        assert 1 <= error.value.retry_after <= 30
        with rates.turn("ops", Load.WINDOW, 30.0), rates.turn("ci", Load.READ):
            pass
        for turn in turns:
            turn.__exit__(None, None, None)
    with rates.turn("ci", Load.WINDOW, 30.0):
        pass


def test_all_callers_together_are_bounded() -> None:
    rates = Rates()
    turns = [rates.turn(f"caller {number // 2}", Load.SEARCH) for number in range(Load.SEARCH.most_for_all)]
    for turn in turns:
        turn.__enter__()
    with pytest.raises(TooManyRequestsError, match="of all callers"), rates.turn("another", Load.SEARCH):
        pass
    for turn in turns:
        turn.__exit__(None, None, None)


def test_loads_are_told_apart() -> None:
    assert (load_of("recommend", 30), load_of("metrics", 30.0), load_of("metrics", None)) == (
        Load.SEARCH,
        Load.WINDOW,
        Load.READ,
    )


def test_over_rest_the_answer_is_429_and_says_when_to_ask_again(url: str) -> None:
    answers: list[httpx.Response] = []

    def window(seconds: float) -> None:
        answers.append(send(url, "GET", "metrics", READER, params={"window_seconds": seconds}))

    threads = [threading.Thread(target=window, args=(6,)) for _ in range(Load.WINDOW.most_for_one + 1)]
    for thread in threads:
        thread.start()
    eventually(lambda: answers)  # the one too many is answered first
    refused = answers[0]
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert 1 <= int(refused.headers["Retry-After"]) <= 7
    assert send(url, "GET", "status", READER).status_code == 200  # reads go on
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200] * Load.WINDOW.most_for_one + [429]


def test_over_mcp_the_result_is_an_error_that_says_so(named: Operations) -> None:
    call = Answers(LMCacheToolkit(operations=named).get_tools()).methods()["tools/call"]
    window = {"name": "lmcache_get_metrics", "arguments": {"window_seconds": 2}}

    async def many(ask: Callable[[], Any]) -> list[Any]:
        return list(await asyncio.gather(*(ask() for _ in range(Load.WINDOW.most_for_one + 1))))

    results = asyncio.run(many(lambda: call(window, Caller("ci"))))
    refused = [one for one in results if one["isError"]]
    assert [one["content"][0]["text"].partition(":")[0] for one in refused] == ["too_many_requests"]
    assert 1 <= refused[0]["_meta"]["lmcache-agent/retry_after_seconds"] <= 3
