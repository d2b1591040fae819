"""KV bytes of a token, from a model's ``config.json``.

The formulas are those of vLLM 0.32 (``ModelConfig.get_num_kv_heads``, ``get_head_size``) and LMCache 0.5.6 (``kv_shape`` in
``integration/vllm/utils.py``; ``ParallelStrategy.kv_world_size``). A rank has at least one KV head, so with more ranks than KV
heads the heads are stored several times. Multi-head latent attention (MLA) keeps one vector a token and layer, the same on every
rank, and LMCache's server stores it once.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agent_tools.errors import WorkloadError
from agent_tools.plain import plain

Json = Mapping[str, Any]

BYTES = {
    "float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2,
    "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "fp8_ds_mla": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
"""Bytes of a number, by the names that vLLM's ``--kv-cache-dtype`` and a ``config.json`` use."""
SPARSE_FP8_BYTES = 656
"""Bytes of a token and layer of DeepSeek's sparse MLA in fp8: 512 numbers, 16 bytes of scale, 64 numbers in 16 bits."""
_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num", "num_attention_groups")
_FULL = "full_attention"
_STATES = ("mamba", "linear_attention", "recurrent", "conv", "ssm")
_UNEQUAL = {
    "compress_ratios": "its layers compress tokens",
    "global_head_dim": "its layers have heads of different sizes",
    "num_global_key_value_heads": "its layers have different numbers of KV heads",
    "block_configs": "its layers differ",
    "linear_attn_config": "some layers keep a state for each request",
    "ssm_cfg": "its layers keep a state for each request",
}
"""Fields of models whose bytes do not follow from the formula, and why."""
_PATTERNED = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}
"""Models in which one layer of so many has full attention, where the file does not say which."""


@dataclass(frozen=True)
class ModelKv:
    """What a model keeps of a token, for one way to spread it over GPUs."""

    name: str
    """Kind of the model (``model_type``)."""
    layers: int
    """Layers that keep KV of their own."""
    bytes_per_rank: int
    """KV bytes of a token on one rank: what the GPU holds, and what one object of LMCache holds of it."""
    ranks: int
    """Tensor-parallel ranks."""
    copies: int
    """Objects that LMCache's server stores of a chunk: one for each rank; with MLA one in all."""
    replicated: int
    """How many ranks hold each KV head; 1 unless there are more ranks than heads. With MLA all ranks hold the same."""
    windowed_layers: int
    """Layers with a sliding window."""
    window_tokens: int | None
    """Tokens of the window; ``None`` without windowed layers."""
    formula: str
    """How the bytes come about, in words."""
    assumed: tuple[str, ...]
    """What the file does not state, one clause each."""

    @property
    def bytes_per_token(self) -> int:
        """Return the KV bytes of a token in LMCache's server, over all ranks."""
        return self.bytes_per_rank * self.copies


def read_model(path: Path) -> Json:
    """Read a model's ``config.json``, or the one in its folder.

    Raises:
        WorkloadError: There is no such file, or it is no JSON object.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        found = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise WorkloadError(f"cannot read {file}: {error.strerror}; name the config.json of the model") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WorkloadError(f"{file} is not JSON ({plain(error, 200)}): name the config.json of the model") from error
    if not isinstance(found, dict):
        raise WorkloadError(f"{file} is no JSON object: name the config.json of the model")
    return found


def model_kv(config: Json, *, ranks: int = 1, kv_dtype: str = "auto") -> ModelKv:
    """Return what a model keeps of a token.

    Args:
        config: The model's ``config.json``.
        ranks: Tensor-parallel ranks (vLLM's ``--tensor-parallel-size``).
        kv_dtype: vLLM's ``--kv-cache-dtype``; ``auto`` is the model's own.

    Raises:
        WorkloadError: The file lacks a number, or the model keeps something else than KV of every token in equal layers.
    """
    text = _text_part(config)
    kind = str(text.get("model_type") or config.get("model_type") or "the model")
    _must_have_equal_layers(text, kind)
    size, assumed = _bytes_of_a_number(config, text, kv_dtype)
    layers = _whole(text, "num_hidden_layers", kind) - int(text.get("num_kv_shared_layers") or 0)
    windowed, window = _windows(text, kind, layers)
    if text.get("kv_lora_rank") is not None:
        width, how = _latent(text, kind, size)
        return ModelKv(kind, layers, layers * width, ranks, 1, ranks, windowed, window, f"{layers} layers x {how}", assumed)
    heads, head_size = _heads(text, kind), _head_size(text, kind)
    if max(heads, ranks) % min(heads, ranks):
        raise WorkloadError(f"{heads} KV heads cannot be divided among {ranks} ranks, nor ranks among heads: vLLM refuses this")
    of_a_rank = max(1, heads // ranks)
    how = f"{layers} layers x 2 (K and V) x {of_a_rank} heads x {head_size} x {size} bytes"
    width = 2 * of_a_rank * head_size * size
    replicated = max(1, ranks // heads)
    return ModelKv(kind, layers, layers * width, ranks, ranks, replicated, windowed, window, how, assumed)


def stated_kv(bytes_per_token: float, ranks: int = 1) -> ModelKv:
    """Return the KV of a model of which only its measured bytes of a token, over all ranks, are known."""
    of_a_rank = max(round(bytes_per_token / ranks), 1)
    return ModelKv("the model", 1, of_a_rank, ranks, ranks, 1, 0, None, "as stated", ())


def chosen_kv(path: Path | None, bytes_per_token: float | None, *, ranks: int, kv_dtype: str) -> ModelKv:
    """Return the KV of the model of a file, or of a model whose bytes were measured.

    Raises:
        WorkloadError: Both are given, or neither, or the file does not tell.
    """
    if path is not None and bytes_per_token is None:
        return model_kv(read_model(path), ranks=ranks, kv_dtype=kv_dtype)
    if path is None and bytes_per_token is not None:
        return stated_kv(bytes_per_token, ranks)
    raise WorkloadError("give either the model's config.json (--model) or its measured KV bytes (--kv-bytes-per-token)")


def _text_part(config: Json) -> Json:
    """Return the language model's part of the file of a model that also sees or hears."""
    for name in ("text_config", "language_config", "llm_config", "thinker_config"):
        inner = config.get(name)
        if isinstance(inner, Mapping):
            return _text_part(inner)
    return config


def _must_have_equal_layers(text: Json, kind: str) -> None:
    reason = next((why for field, why in _UNEQUAL.items() if text.get(field)), None)
    states = [str(one) for one in text.get("layer_types") or () if any(word in str(one) for word in _STATES)]
    if states or "mamba" in kind:
        reason = f"{states[0] if states else 'its'} layers keep a state for each request, not KV of every token"
    if text.get("index_head_dim") and kind != "deepseek_v32":
        reason = "the layers that have an index of sparse attention are not known"
    if reason is not None:
        raise WorkloadError(
            f"the KV bytes of {plain(kind)} do not follow from its config.json: {reason}. Measure them (`lmcache-agent status` on"
            " a running server), and give them with --kv-bytes-per-token in place of the model"
        )


def _bytes_of_a_number(config: Json, text: Json, kv_dtype: str) -> tuple[int, tuple[str, ...]]:
    """Return the bytes of a number, and what was assumed."""
    if kv_dtype != "auto":
        if kv_dtype not in BYTES:
            raise WorkloadError(f"{plain(kv_dtype)} is no data type of a KV cache that is known: {', '.join(BYTES)}")
        return BYTES[kv_dtype], ()
    quantized = config.get("quantization_config") or text.get("quantization_config") or {}
    scheme = quantized.get("kv_cache_scheme") if isinstance(quantized, Mapping) else None
    if isinstance(scheme, Mapping) and scheme.get("num_bits") == 8:
        return 1, ("the checkpoint's own KV scheme of 8 bits is used (--kv-dtype says otherwise)",)
    named = next((str(one[key]) for one in (text, config) for key in ("dtype", "torch_dtype") if one.get(key)), None)
    if named is None:
        return 2, ("KV in 16 bits, since config.json names no dtype (--kv-dtype says otherwise)",)
    name = named.removeprefix("torch.")
    if name not in BYTES:
        raise WorkloadError(f"config.json names the dtype {plain(named)}, which is not known: give --kv-dtype")
    if name in {"float32", "float"}:  # vLLM serves such a checkpoint in 16 bits unless told otherwise
        return 2, ("KV in 16 bits, as vLLM serves a checkpoint in 32 bits (--kv-dtype says otherwise)",)
    return BYTES[name], ()


def _latent(text: Json, kind: str, size: int) -> tuple[int, str]:
    """Return the bytes of a token and layer with MLA, and how they come about."""
    rank, rope = _whole(text, "kv_lora_rank", kind), _whole(text, "qk_rope_head_dim", kind)
    index = int(text.get("index_head_dim") or 0)
    if not index:
        return (rank + rope) * size, f"({rank} + {rope}) x {size} bytes (MLA)"
    keys = index + index // 128 * 4  # fp8, and a scale of 4 bytes for each 128 numbers
    width = SPARSE_FP8_BYTES if size == 1 else (rank + rope) * size
    return width + keys, f"({width} bytes of MLA + {keys} of the index of sparse attention)"


def _heads(text: Json, kind: str) -> int:
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    inner = text.get("attn_config")
    if isinstance(inner, Mapping) and inner.get("kv_n_heads"):
        return int(inner["kv_n_heads"])
    name = next((one for one in _HEADS if text.get(one) is not None), None)
    return _whole(text, name or _attention_heads(text), kind)


def _head_size(text: Json, kind: str) -> int:
    if text.get("head_dim"):
        return _whole(text, "head_dim", kind)
    hidden, heads = (_whole(text, name, kind) for name in (_hidden(text), _attention_heads(text)))
    return hidden // heads


def _attention_heads(text: Json) -> str:
    return next((one for one in ("num_attention_heads", "n_head", "n_heads") if one in text), "num_attention_heads")


def _hidden(text: Json) -> str:
    return next((one for one in ("hidden_size", "n_embd", "d_model") if one in text), "hidden_size")


def _whole(text: Json, name: str, kind: str) -> int:
    value = text.get(name)
    if name == "num_hidden_layers" and value is None:
        value = next((text[one] for one in ("n_layer", "n_layers", "num_layers") if one in text), None)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        said = "lacks" if value is None else f"has no whole number as ({plain(value)})"
        raise WorkloadError(
            f"the config.json of {plain(kind)} {said} {name}: it is not a language model's, or leaves out defaults; write it"
            " whole with transformers (AutoConfig.from_pretrained(...).save_pretrained(...))"
        )
    return value


def _windows(text: Json, kind: str, layers: int) -> tuple[int, int | None]:
    """Return how many layers have a sliding window, and its tokens."""
    window = text.get("sliding_window") or text.get("attention_chunk_size")
    if not isinstance(window, int) or text.get("use_sliding_window") is False:
        return 0, None
    types = text.get("layer_types")
    if isinstance(types, list):
        windowed = layers - Counter(map(str, types[:layers]))[_FULL]
    elif pattern := text.get("sliding_window_pattern") or text.get("_sliding_window_pattern") or _PATTERNED.get(kind):
        # Some models spell the pattern out in letters, L for a local layer.
        windowed = layers - layers // (pattern if isinstance(pattern, int) else len(re.sub(r"\s", "", str(pattern))) or 1)
    elif text.get("max_window_layers") is not None:
        windowed = max(layers - int(text["max_window_layers"]), 0)
    else:
        windowed = layers
    return windowed, window if windowed else None
