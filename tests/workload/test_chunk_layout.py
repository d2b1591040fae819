"""Claims about what chunks are made of: from the lookup-hash log's shapes and world sizes that are known otherwise."""

import json
from pathlib import Path

import pytest

from agent_tools.errors import WorkloadError
from agent_tools.prediction.offline import forecasts_of_trace, world_sizes_in
from agent_tools.prediction.server_setting import ServerSetting
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.chunk_layout import is_uniform, with_world_sizes
from agent_tools.workload.lookup_log import read_lookup_log

MB = 2**20


def written(path: Path, *lookups: tuple[str, int, list[int]]) -> AccessLog:
    """Write lookups of (model, hidden elements of a rank, chunks), one a second, and read them."""
    lines = [
        {
            "timestamp": 1000.0 + number,
            "request_id": str(number),
            "model_name": model,
            "chunk_size": 256,
            "seq_len": 256 * len(chunks),
            "dtypes": ["torch.float16"],
            "shapes": [[2, 1, 256, hidden]],
            "chunk_hashes": [f"0x{chunk:064x}" for chunk in chunks],
        }
        for number, (model, hidden, chunks) in enumerate(lookups)
    ]
    file = path / "lookup_hashes_1.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_lookup_log(file)


def test_a_size_in_mb_holds_chunks_of_all_ranks(tmp_path: Path) -> None:
    log = written(tmp_path, ("m", 32, [1, 2, 3]), ("m", 32, [1, 2, 3]))  # 32 KiB a chunk and rank
    (alone,) = forecasts_of_trace(log, ServerSetting(1), sizes_mb=[20]).values()
    (four,) = forecasts_of_trace(log, ServerSetting(1), sizes_mb=[20], world_sizes={"m": [4]}).values()
    assert (alone.rows[0].capacity_chunks, four.rows[0].capacity_chunks) == (640, 160)
    assert any("the log does not state the world size of m: 1 is assumed" in note for note in alone.notes)
    assert not any("world size" in note for note in four.notes)


def test_models_weigh_what_their_chunks_weigh(tmp_path: Path) -> None:
    log = written(tmp_path, ("big", 128, [1, 2]), ("small", 4, [1, 2]), ("small", 4, [3]))
    log = with_world_sizes(log, {"big": [8], "small": [1]})
    sizes = {name: layout.bytes for name, layout in zip(log.model_names, log.layouts, strict=True) if layout}
    assert sizes == {"big": 8 * 131_072, "small": 4096}
    assert log.chunk_bytes == round((2 * sizes["big"] + 3 * sizes["small"]) / 5)
    assert not is_uniform(log)


def test_one_model_with_two_world_sizes_is_two_models_to_a_log(tmp_path: Path) -> None:
    log = written(tmp_path, ("m", 32, [1, 2]), ("m", 16, [1, 2]), ("m", 32, [1, 2]))
    assert log.unique_chunks == 4
    known = with_world_sizes(log, {"m": [1, 2]})
    assert known.model_names == ("m (world size 1)", "m (world size 2)")
    assert [layout.objects for layout in known.layouts if layout] == [1, 2]


def test_world_sizes_that_do_not_fit_a_models_shapes_leave_that_model_out(tmp_path: Path) -> None:
    log = written(tmp_path, ("m", 32, [1, 2]), ("other", 32, [1, 2]))
    known = with_world_sizes(log, {"m": [1, 2], "other": [1]})
    assert {known.model_names[label] for label in known.models} == {"other"}
    assert any("the lookups of m are left out" in remark for remark in known.remarks)


@pytest.mark.parametrize("text", ["m", "m=", "=4", "m=0", "m=256", "m=x"])
def test_a_world_size_is_stated_as_model_and_number(text: str) -> None:
    with pytest.raises(WorkloadError, match="is not N or MODEL=N"):
        world_sizes_in([text])


def test_a_world_size_of_a_model_that_the_log_lacks_is_refused(tmp_path: Path) -> None:
    log = written(tmp_path, ("m", 32, [1]))
    with pytest.raises(WorkloadError, match="the log has no model typo; it has m"):
        forecasts_of_trace(log, ServerSetting(1), world_sizes=world_sizes_in(["typo=4"]))
