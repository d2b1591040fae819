"""Claims about the check of LMCache's private names."""

import types
from typing import get_args

import pytest

from agent_tools.server_module.fit import REQUIRED, misfits
from agent_tools.server_module.options import Part

pytestmark = pytest.mark.filterwarnings("ignore")  # LMCache uses what OpenTelemetry and Google have deprecated


def server_context(**changes: object) -> types.SimpleNamespace:
    """A stand-in for LMCache's context as far as the part `arenas` looks at it: an LMCache of the future cannot be had."""
    l1 = types.SimpleNamespace(get_capacity_bytes_by_backend=None)
    storage = {
        "get_l1_devdax_arena_statuses": None,
        "add_l1_devdax_device": None,
        "remove_l1_devdax_device": None,
        "_eviction_controllers": [types.SimpleNamespace(_l1_manager=l1)],
    }
    return types.SimpleNamespace(storage_manager=types.SimpleNamespace(**(storage | changes)))


def test_every_part_says_what_it_needs() -> None:
    assert set(REQUIRED) == set(get_args(Part))


def test_an_lmcache_that_has_all_names_fits(lmcache: None) -> None:
    assert misfits(server_context(), "arenas") == ()


def test_a_name_that_is_gone_is_told(lmcache: None) -> None:
    context = server_context()
    del context.storage_manager.add_l1_devdax_device
    assert misfits(context, "arenas") == ("storage_manager.add_l1_devdax_device",)


def test_a_name_that_is_gone_from_one_of_several_is_told(lmcache: None) -> None:
    controllers = [*server_context().storage_manager._eviction_controllers, types.SimpleNamespace()]
    missing = misfits(server_context(_eviction_controllers=controllers), "arenas")
    assert missing == ("storage_manager._eviction_controllers.*._l1_manager.get_capacity_bytes_by_backend",)


@pytest.mark.parametrize("part", get_args(Part))
def test_no_lmcache_at_all_fits_no_part_and_raises_nothing(lmcache: None, part: Part) -> None:
    assert misfits(object(), part)
