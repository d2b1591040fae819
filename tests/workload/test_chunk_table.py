"""The hash table gives the ids that a plain dictionary would."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_tools.workload.chunk_table import ChunkTable

ONE = st.tuples(st.sampled_from([bytes(9), bytes(8) + b"\1", b"\1" + bytes(8), b"123456789"]), st.integers(0, 2))


@settings(deadline=None)
@given(st.lists(st.lists(ONE, max_size=20), max_size=8))
def test_ids_are_those_of_a_dictionary(batches: list[list[tuple[bytes, int]]]) -> None:
    table, plain = ChunkTable(9), dict[tuple[bytes, int], int]()
    for batch in batches:
        hashes = np.array([list(one) for one, _ in batch], dtype=np.uint8).reshape(-1, 9)
        ids = table.ids(hashes, np.array([model for _, model in batch], dtype=np.int16))
        assert ids.tolist() == [plain.setdefault(key, len(plain)) for key in batch]
    assert [one.tobytes() for one in table.hashes()] == [one for one, _ in plain]


def test_a_table_grows_with_what_it_holds() -> None:
    table, random = ChunkTable(32), np.random.default_rng(0)
    hashes = random.integers(0, 256, (50_000, 32), dtype=np.uint8)
    for start in range(0, 50_000, 7_000):
        part = hashes[start : start + 7_000]
        assert table.ids(part, np.zeros(len(part), dtype=np.int16)).tolist() == list(range(start, start + len(part)))
    again = random.permutation(50_000)
    assert (table.ids(hashes[again], np.zeros(50_000, dtype=np.int16)) == again).all()
    assert (table.hashes() == hashes).all()


def test_one_hash_under_many_models_is_many_chunks() -> None:
    hashes = np.tile(np.arange(8, dtype=np.uint8)[:, None], (60, 32))  # a table so full that most look-ups meet others
    models = np.repeat(np.arange(60, dtype=np.int16), 8)
    table = ChunkTable(32)
    assert table.ids(hashes, models).tolist() == list(range(480))
    assert table.ids(hashes[::-1], models[::-1]).tolist() == list(range(480))[::-1]
