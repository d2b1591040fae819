"""The claim that matters: changes of every kind under full traffic, and no request notices."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from changes import Change, random_changes, traffic_until
from module_client import ModuleClient


def test_twenty_random_changes_under_traffic_of_four_clients_fail_nothing_and_lose_no_key(
    module: ModuleClient, l2_folder: Path
) -> None:
    # Room for everything and no watermark that is reached: what is missing afterwards, a change has lost.
    module.ask("PUT", "arenas", json={"total_mb": 64})
    module.ask("PUT", "eviction", json={"watermark": 0.95})
    dropped, done = module.counter("l1_allocation_failure_chunks"), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        traffic = pool.submit(traffic_until, done, module)
        try:
            seconds = [timed(change) for change in random_changes(module, l2_folder, 20)]
        finally:
            done.set()
        asked = traffic.result()
    assert max(seconds) < 3, "about 1 s, on a machine that does other things as well"
    assert module.counter("l1_allocation_failure_chunks") == dropped
    assert module.objects() == asked
    module.ask("PUT", "arenas", json={"total_mb": 16})


def timed(change: Change) -> float:
    began = time.monotonic()
    change()
    return time.monotonic() - began
