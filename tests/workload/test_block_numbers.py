"""Block ids are numbered as a plain dictionary would number them, whatever the ids are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_tools.workload.formats.block_ids import LARGEST_DIRECT, BlockNumbers

IDS = st.one_of(st.integers(0, 40), st.integers(2**17, 2**17 + 5), st.sampled_from([LARGEST_DIRECT, -1, 2**62]))


@settings(deadline=None)
@given(st.lists(st.lists(IDS, max_size=20), max_size=6))
def test_ids_without_a_namespace(batches: list[list[int]]) -> None:
    numbers, plain = BlockNumbers(), dict[int, int]()
    for batch in batches:
        assert numbers.of(np.array(batch, np.int64)).tolist() == [plain.setdefault(one, len(plain)) for one in batch]


@settings(deadline=None)
@given(st.lists(st.lists(st.lists(IDS, max_size=8), max_size=4), max_size=4), st.booleans())
def test_an_id_is_another_block_in_each_namespace(calls: list[list[list[int]]], mixed: bool) -> None:
    numbers, plain, namespace = BlockNumbers(), dict[tuple[int, int], int](), 0
    for call in calls:
        ids, scopes = list[int](), list[int]()
        for scope in call:
            namespace += 1
            shown = 0 if mixed and namespace % 3 == 0 else namespace
            ids += scope
            scopes += [shown] * len(scope)
        found = numbers.of(np.array(ids, np.int64), np.array(scopes, np.int64)).tolist()
        assert found == [plain.setdefault(key, len(plain)) for key in zip(ids, scopes, strict=True)]
