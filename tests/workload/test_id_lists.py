"""The quick parsers of lists inside lines agree with a JSON parser, or refuse."""

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent_tools.workload.formats import chunk_statistics
from agent_tools.workload.formats.block_ids import parse_id_lists

NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6)
NAMES = st.lists(st.integers(0, 2**64 - 1).map(lambda one: f"0x{one:x}"), max_size=6)
SAID = st.text('0x1,[]" ', max_size=5)
OTHER: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    SAID,
    st.lists(SAID.filter(lambda one: not one.startswith("0x")), min_size=1, max_size=3),
    st.sampled_from(
        [["0x"], ["0x1 "], ["0x" + 65 * "1"], ["0x1", 1], [1, "0x1"], [1.5], [1e3], [[1]], [["0x1"]], [None], [True]]
    ),
    st.dictionaries(SAID, st.just([1]), max_size=2),
)
"""JSON that is no list of whole numbers or of hashes."""


def raw(values: list[Any], blank: str = " ") -> list[msgspec.Raw]:
    return [msgspec.Raw(json.dumps(one, separators=(f",{blank}", ": ")).encode()) for one in values]


@given(st.lists(NUMBERS, min_size=1, max_size=5), st.sampled_from(["", " ", "\t\n"]))
def test_ids_are_those_of_a_json_parser(lists: list[list[int]], blank: str) -> None:
    found = parse_id_lists(raw(lists, blank))
    assert found is not None
    ids, counts = found
    assert ids.tolist() == [one for ids in lists for one in ids]
    assert counts.tolist() == list(map(len, lists))


@given(st.lists(NUMBERS, max_size=3), OTHER, st.lists(NUMBERS, max_size=3))
def test_what_is_no_list_of_numbers_is_refused(before: list[Any], other: Any, behind: list[Any]) -> None:
    assert parse_id_lists(raw([*before, other, *behind])) is None
    assert parse_id_lists([*raw(before), msgspec.Raw(b""), *raw(behind)]) is None  # a line without the field


def lines_of(lists: list[Any]) -> list[chunk_statistics._Line]:
    return [chunk_statistics._Line(1.0, "r", one) for one in raw(lists)]


@given(st.lists(NAMES, min_size=1, max_size=5))
def test_hashes_are_those_of_a_json_parser(lists: list[list[str]]) -> None:
    found = chunk_statistics._parsed(lines_of(lists))
    assert found is not None
    assert found[0].tolist() == [int(one, 16) for names in lists for one in names]
    assert found[1].tolist() == list(map(len, lists))


@given(st.lists(NAMES, max_size=3), OTHER, st.lists(NAMES, max_size=3))
def test_what_is_no_list_of_hashes_is_refused(before: list[Any], other: Any, behind: list[Any]) -> None:
    assert chunk_statistics._parsed(lines_of([*before, other, *behind])) is None
