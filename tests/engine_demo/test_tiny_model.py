"""Claims about the model that is made on the spot."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent_tools.demo.engine.chat_traffic import ChatTraffic
from agent_tools.demo.engine.tiny_model import Shape, write_model

TINY = Shape(hidden=32, intermediate=32, layers=1, heads=2, kv_heads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="transformers is not installed: `make test-engine` runs this where it is")
    pytest.importorskip("torch", reason="torch is not installed: `make test-engine` runs this where it is")
    return write_model(tmp_path_factory.mktemp("model"), TINY)


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415  an extra

    return AutoTokenizer.from_pretrained(folder)


def test_a_prompt_has_a_token_for_each_word_and_each_role(folder: Path) -> None:
    tokenizer = tokenizer_of(folder)
    request = ChatTraffic(conversations=1, turns=2, system_words=50, document_words=60).requests()[-1]
    text = tokenizer.apply_chat_template(list(request.messages), add_generation_prompt=True, tokenize=False)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    words = sum(1 + len(message["content"].split()) for message in request.messages)
    assert len(tokens) == words + 1
    assert tokenizer.unk_token_id not in tokens


def test_any_other_text_is_spelt_and_comes_back(folder: Path) -> None:
    tokenizer = tokenizer_of(folder)
    text = "max_size_mb 17 -> 35!"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in tokens
    assert tokenizer.decode(tokens) == text


def test_the_same_model_comes_out_each_time(folder: Path, tmp_path: Path) -> None:
    again = write_model(tmp_path, TINY)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["num_key_value_heads"] == TINY.kv_heads


def test_the_kv_of_a_token_is_as_large_as_its_shape_says() -> None:
    assert Shape().kv_bytes_per_token == 4096
    assert TINY.kv_bytes_per_token == 2 * 1 * 1 * 16 * 2
