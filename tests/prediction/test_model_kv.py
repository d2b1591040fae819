"""KV bytes of a token, from the config.json of real models, held against LMCache's own shapes.

vLLM 0.32's `ModelConfig` gave the same bytes a rank for the files without vision, with 1, 4, 8 and 16 ranks.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from agent_tools.errors import WorkloadError
from agent_tools.lmcache_import import importing_lmcache
from agent_tools.prediction.model_kv import chosen_kv, model_kv, read_model

FILES = Path(__file__).with_name("model_files")
BYTES_A_RANK = {  # by tensor-parallel ranks
    "llama-3-8b": {1: 131_072, 4: 32_768, 8: 16_384, 16: 16_384},
    "qwen2.5-7b": {1: 57_344, 4: 14_336, 8: 14_336, 16: 14_336},
    "deepseek-v3": {1: 70_272, 4: 70_272, 8: 70_272, 16: 70_272},
    "gemma-3-27b": {1: 507_904, 4: 126_976, 8: 63_488, 16: 31_744},
    "gpt-oss-120b": {1: 73_728, 4: 18_432, 8: 9_216, 16: 9_216},
}


def config(name: str) -> dict[str, Any]:
    return dict(read_model(FILES / f"{name}.json"))


@pytest.mark.parametrize("name", BYTES_A_RANK)
@pytest.mark.parametrize("ranks", [1, 4, 8, 16])
def test_bytes_of_a_rank(name: str, ranks: int) -> None:
    assert model_kv(config(name), ranks=ranks).bytes_per_rank == BYTES_A_RANK[name][ranks]


@pytest.mark.needs("lmcache")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("llama-3-8b", (32, 2, 256, 2, 128)),
        ("qwen2.5-7b", (28, 2, 256, 1, 128)),
        ("deepseek-v3", (61, 1, 256, 1, 576)),
        ("gemma-3-27b", (62, 2, 256, 4, 128)),
        ("gpt-oss-120b", (36, 2, 256, 2, 64)),
    ],
)
def test_a_chunk_has_the_bytes_that_lmcache_allocates(name: str, shape: tuple[int, int, int, int, int]) -> None:
    with importing_lmcache():
        import torch  # noqa: PLC0415  slow
        from lmcache.v1.metadata import LMCacheMetadata  # noqa: PLC0415

    of_lmcache = LMCacheMetadata("m", 4, 4, 0, 0, torch.bfloat16, shape, use_mla=shape[1] == 1, chunk_size=256)
    (allocated,) = of_lmcache.get_shapes()
    assert model_kv(config(name), ranks=4).bytes_per_rank * 256 == allocated.numel() * torch.bfloat16.itemsize


@pytest.mark.needs("lmcache")
@pytest.mark.parametrize(("name", "copies"), [("llama-3-8b", 8), ("deepseek-v3", 1)])
def test_the_server_stores_as_many_objects_as_lmcache_says(name: str, copies: int) -> None:
    with importing_lmcache():
        from lmcache.integration.vllm.vllm_multi_process_adapter import ParallelStrategy  # noqa: PLC0415
    ranks = ParallelStrategy(
        mla_only=name == "deepseek-v3", vllm_world_size=8, vllm_worker_id=0, tp_size=8, pp_size=1, n_servers=1
    )
    assert model_kv(config(name), ranks=8).copies == ranks.kv_world_size == copies


def test_heads_are_stored_again_for_ranks_beyond_them() -> None:
    four, sixteen = (model_kv(config("qwen2.5-7b"), ranks=ranks) for ranks in (4, 16))
    assert (four.replicated, sixteen.replicated) == (1, 4)
    assert sixteen.bytes_per_token == 4 * four.bytes_per_token == 229_376
    assert model_kv(config("deepseek-v3"), ranks=16).bytes_per_token == 70_272  # stored once


@pytest.mark.parametrize(
    ("name", "windowed", "window"), [("gemma-3-27b", 52, 1024), ("gpt-oss-120b", 18, 128), ("qwen2.5-7b", 0, None)]
)
def test_windowed_layers(name: str, windowed: int, window: int | None) -> None:
    found = model_kv(config(name))
    assert (found.windowed_layers, found.window_tokens) == (windowed, window)


def test_the_data_type() -> None:
    assert model_kv(config("llama-3-8b"), kv_dtype="fp8").bytes_per_token == 65_536
    assert model_kv(config("gpt-oss-120b")).assumed[0].startswith("KV in 16 bits")
    scheme = config("llama-3-8b") | {"quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}}
    assert model_kv(scheme).bytes_per_token == 65_536
    with pytest.raises(WorkloadError, match="data type"):
        model_kv(config("llama-3-8b"), kv_dtype="int3")


def test_sparse_attention_keeps_an_index_too() -> None:
    v32 = config("deepseek-v3") | {"model_type": "deepseek_v32", "index_head_dim": 128}
    assert model_kv(v32).bytes_per_token == 61 * (576 * 2 + 132)
    assert model_kv(v32, kv_dtype="fp8").bytes_per_token == 61 * (656 + 132)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_key_value_heads": None, "num_attention_heads": None}, "num_attention_heads"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention layers keep a state"),
        ({"compress_ratios": [4, 128]}, "compress"),
        ({"torch_dtype": "int7"}, "int7"),
        ({"model_type": "mamba2"}, "state"),
    ],
)
def test_what_does_not_follow_from_the_file_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        model_kv(config("llama-3-8b") | changed)


def test_ranks_that_do_not_divide_the_heads_are_refused() -> None:
    with pytest.raises(WorkloadError, match="cannot be divided among 3 ranks"):
        model_kv(config("llama-3-8b"), ranks=3)


def test_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("llama-3-8b")), encoding="utf-8")
    assert model_kv(read_model(tmp_path)).layers == 32
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    for name in ("broken.json", "nothing.json"):
        with pytest.raises(WorkloadError, match=name):
            read_model(tmp_path / name)


def test_measured_bytes_stand_in_for_a_model() -> None:
    stated = chosen_kv(None, 131_072.0, ranks=8, kv_dtype="auto")
    assert (stated.bytes_per_token, stated.bytes_per_rank) == (131_072, 16_384)
    with pytest.raises(WorkloadError, match="give either"):
        chosen_kv(None, None, ranks=1, kv_dtype="auto")
