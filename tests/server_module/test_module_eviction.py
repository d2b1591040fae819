"""Claims about eviction settings that are changed in a running server."""

import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from module_client import ModuleClient
from real_cache import eventually
from real_logs import conversations, log_of

TEN = log_of(*conversations(10, 8))


def test_a_change_is_in_status_at_once_with_a_living_thread_and_gives_back_what_undoes_it(module: ModuleClient) -> None:
    changed = module.ask("PUT", "eviction", json={"policy": "ARC", "watermark": 0.6})
    controller = module.status()["storage_manager"]["l1_eviction_controller"]
    assert (controller["eviction_policy"], controller["trigger_watermark"], controller["eviction_ratio"]) == ("ARC", 0.6, 0.2)
    assert controller["thread_alive"]
    assert changed["previous"] == {"policy": "LRU", "watermark": 0.8, "ratio": 0.2}
    undone = module.ask("PUT", "eviction", json=changed["previous"])
    assert undone["current"] == changed["previous"]


def test_changes_leave_one_eviction_thread_behind(module: ModuleClient) -> None:
    for ratio in (0.1, 0.3):
        module.ask("PUT", "eviction", json={"ratio": ratio})
    assert module.http.get("/threads").text.count("in eviction_loop") == 1


@pytest.mark.parametrize("detour", ["ARC", "noop"])
def test_the_order_of_eviction_survives_a_detour(module: ModuleClient, detour: str) -> None:
    model = f"detour-{detour}"
    module.replay(TEN, model)
    assert module.ask("PUT", "eviction", json={"policy": detour})["tracked"] == 80
    assert module.ask("PUT", "eviction", json={"policy": "LRU"})["tracked"] == 80
    assert module.objects() == 80
    removed = module.ask("POST", "entries/remove", json={"what": "coldest", "objects": 20})
    assert removed["removed"] == 20
    # 8 of the first request, 8 of the second, and the last 4 of the third, since LMCache drops the ends of prompts first.
    assert module.replay(TEN, model).hits.tolist() == [0, 0, 4, *[8] * 7]


def test_a_lower_watermark_evicts_within_two_ticks(module: ModuleClient) -> None:
    module.replay(TEN, "watermark")
    module.ask("PUT", "eviction", json={"watermark": 0.01, "ratio": 0.5})
    ticks = module.counter("l1_eviction_loop_ticks")
    eventually(lambda: module.counter("l1_eviction_loop_ticks") >= ticks + 1)
    eventually(lambda: module.objects() <= 40, seconds=1)


def test_noop_holds_every_key_at_any_watermark_and_is_released_again(module: ModuleClient) -> None:
    module.replay(TEN, "held")
    module.ask("PUT", "eviction", json={"policy": "noop"})
    module.ask("PUT", "eviction", json={"watermark": 0.01})
    passes = module.counter("l1_eviction_loop_triggered")
    eventually(lambda: module.counter("l1_eviction_loop_triggered") >= passes + 1)
    assert module.objects() == 80
    module.ask("PUT", "eviction", json={"policy": "LRU"})
    eventually(lambda: module.objects() < 80)


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"policy": "IsolatedLRU"}, 422, "its eviction thread dies"),
        ({"policy": "FIFO"}, 422, "no eviction policy 'FIFO'"),
        ({"watermark": 0}, 422, "greater than 0"),
        ({"watermark": 1.5}, 422, "less than or equal to 1"),
        ({"ratio": -2}, 422, "greater than 0"),
        ({"ratio": "NaN"}, 422, "finite"),
        ({"manager": "other", "ratio": 0.5}, 404, "there are: _default"),
        ({"water": 0.5}, 422, "not permitted"),
    ],
)
def test_a_setting_that_l1_cannot_have_is_refused_and_changes_nothing(
    module: ModuleClient, change: dict[str, object], status: int, reason: str
) -> None:
    before = module.ask("GET", "eviction")
    code, detail = module.refused("PUT", "eviction", json=change)
    assert code == status
    assert reason in detail
    assert module.ask("GET", "eviction") == before


def test_changes_at_the_same_time_are_made_one_after_the_other(module: ModuleClient) -> None:
    ratios = [0.31, 0.32, 0.33]
    with ThreadPoolExecutor(3) as pool:
        changes = list(pool.map(lambda ratio: module.ask("PUT", "eviction", json={"ratio": ratio}), ratios))
    before = {change["previous"]["ratio"] for change in changes}
    after = {change["current"]["ratio"] for change in changes}
    assert after == set(ratios)
    # Each began with what another one ended with, the first with the start-up value.
    assert before - after == {0.2}
    assert len(before) == 3


@pytest.mark.filterwarnings("ignore")  # LMCache uses what OpenTelemetry and Google have deprecated
def test_while_the_old_thread_does_not_end_the_previous_setting_stays(lmcache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmcache.v1.distributed.config import EvictionConfig  # noqa: PLC0415

    from agent_tools.server_module import eviction  # noqa: PLC0415
    from agent_tools.server_module.refusal import Refusal  # noqa: PLC0415

    # A stand-in, since a pass of a real eviction thread cannot be made to hang.
    hanging, ran = threading.Event(), threading.Event()
    controller = types.SimpleNamespace(
        _eviction_config=EvictionConfig("LRU", 0.8, 0.2),
        _l1_manager=types.SimpleNamespace(config=types.SimpleNamespace(tag="_default")),
        _thread=threading.Thread(target=hanging.wait, daemon=True),
        _stop_flag=threading.Event(),
        eviction_loop=ran.set,
    )
    controller._thread.start()
    monkeypatch.setattr(eviction, "PATIENCE", 0.05)
    storage = types.SimpleNamespace(_eviction_controllers=[controller])
    with pytest.raises(Refusal, match="the previous setting stays"):
        eviction.Eviction(types.SimpleNamespace(storage_manager=storage)).change(eviction.EvictionChange(ratio=0.5))
    assert controller._eviction_config == EvictionConfig("LRU", 0.8, 0.2)
    hanging.set()
    assert ran.wait(5), "the loop goes on when the pass has ended after all"
