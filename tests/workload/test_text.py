"""Claims about recorded requests with text: which formats, how they become chunks, and that no text is kept."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_tools.errors import WorkloadError
from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.workload.formats.prompts import PLAIN, prompts_of
from agent_tools.workload.formats.text import written_out
from agent_tools.workload.formats.vllm_log import prompts_of_vllm_log
from agent_tools.workload.readers import read_trace

SYSTEM = "You answer questions about flowers. " * 40
"""1,440 characters."""


def chat(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"model": "m", "messages": messages} | more


def written(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_without_a_tokenizer_four_bytes_are_a_token_and_the_error_is_said(tmp_path: Path) -> None:
    log = read_trace(written(tmp_path / "a", chat("What is a rose?"), chat("And a tulip?")), chunk_size=64)
    whole = len(f"<|system|>\n{SYSTEM}\n") // (4 * 64)
    assert log.chunk_ids.tolist()[:whole] == log.request(1).tolist()[:whole]
    assert hit_rate_curve(log).ceiling() == pytest.approx(0.5, abs=0.1)
    assert any("4 bytes of text count as a token, an approximation: measured" in one for one in log.assumed)
    assert any("no times are stated: 1 requests a second" in one for one in log.assumed)
    assert log.model_names == ("m",)


def test_a_chinese_character_is_three_bytes(tmp_path: Path) -> None:
    record = {"prompt": "你好" * 200}
    log = read_trace(written(tmp_path / "a", record, record), chunk_size=64)
    assert log.tokens.tolist() == [2 * 200 * 3 // 4] * 2
    assert log.chunks_per_request.tolist() == [4, 4]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda body: body,
        lambda body: {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body},
        lambda body: {"request": body, "response": {}},
        lambda body: body | {"messages": json.dumps(body["messages"])},
    ],
    ids=["requests", "batch file", "gateway", "messages as text"],
)
def test_the_same_request_is_found_in_every_envelope(tmp_path: Path, wrap: Any) -> None:
    log = read_trace(written(tmp_path / "a", wrap(chat("What?")), wrap(chat("What?"))), chunk_size=64)
    plain = read_trace(written(tmp_path / "b", chat("What?"), chat("What?")), chunk_size=64)
    assert log.chunk_ids.tolist() == plain.chunk_ids.tolist()
    assert log.tokens.tolist() == plain.tokens.tolist()


@given(st.text(), st.sampled_from(["", ", params: ", "', params: ", '", params: ', "\\', params: ", "\\"]), st.text())
def test_vllm_quotes_prompts_as_python_does(before: str, between: str, after: str) -> None:
    prompt = before + between + after
    lines = f"Received request r-1: prompt: {prompt!r}, params: x\nINFO Received request r-2 of somebody\n"
    assert [one.asked for _, one in prompts_of_vllm_log(lines, pytest.fail)] == [prompt]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "human", "content": "a"}, {"role": "", "content": "b"}], "temperature": 1, "timestamp": 3},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "gpt", "value": "c"}]},
        {"messages": [{"role": "user", "content": "a"}], "tools": [{"x": 1}], "usage": {"prompt_tokens": 7}, "session_id": 4},
        {"body": {"messages": [{"role": "user", "content": "a"}], "model": "m"}, "response": {"usage": {"input_tokens": 8}}},
        {"text_input": "a", "delay": 20, "output_length": 3},
    ],
)
def test_the_quick_decoder_reads_what_the_general_one_reads(record: dict[str, Any]) -> None:
    def told(found: Any) -> list[Any]:
        return [(written_out(one.asked), *msgspec.structs.astuple(one)[1:]) for one in prompts_of(found, 1)]

    assert repr(told(PLAIN.decode(json.dumps(record)))) == repr(told(record))  # NaN is not equal to itself


def test_messages_of_other_shapes_are_read_beside_plain_ones(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": SYSTEM}]
    records = chat("What?"), {"messages": [{"role": "system", "content": parts}, {"role": "user", "content": "What?"}]}
    log = read_trace(written(tmp_path / "a", *records), chunk_size=64)
    assert log.request(0).tolist() == log.request(1).tolist()


def test_times_are_read_as_numbers_and_as_iso(tmp_path: Path) -> None:
    records = [
        chat("?", startTime=1_760_000_000.5),
        chat("?", startTime="2025-10-09T08:53:21.500Z"),
        chat("?", timestamp=1_760_000_002_500),
    ]
    assert read_trace(written(tmp_path / "a", *records)).timestamps.tolist() == [
        1_760_000_000.5,
        1_760_000_001.5,
        1_760_000_002.5,
    ]


def test_a_whole_conversation_is_one_request_for_each_answer(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "tell me " * 100}, {"from": "gpt", "value": "well " * 100}] * 3
    (tmp_path / "sharegpt.json").write_text(json.dumps([{"id": "c", "conversations": turns}], indent=1))
    log = read_trace(tmp_path / "sharegpt.json", chunk_size=64)
    assert len(log) == 3
    assert (log.tokens[1:] > log.tokens[:-1]).all()
    assert hit_rate_curve(log).ceiling() > 0.4
    assert any("closed loop" in one for one in log.assumed)


def test_agent_traces_wait_before_each_turn(tmp_path: Path) -> None:
    first = {"session_id": "s", "model": "m", "input": "x" * 3000, "output_length": 50, "pre_gap": 0.0}
    log = read_trace(written(tmp_path / "a", first, first | {"input": "x" * 4000, "pre_gap": 3.0}))
    assert log.timestamps.tolist() == [0, 50 * 0.02 + 3]
    assert log.chunks_per_request.tolist() == [2, 3]


def test_vllms_own_log_tells_the_token_ids(tmp_path: Path) -> None:
    ids = ", ".join(map(str, range(40)))
    line = (
        "INFO 11-28 19:10:5{} [logger.py:40] Received request chatcmpl-1: prompt: '<|user|>it\\'s', params: SamplingParams(n=1),"
        " prompt_token_ids: [" + ids + "], lora_request: None.\n"
    )
    (tmp_path / "vllm.log").write_text("starting\n" + line.format(0) + "other\n" + line.format(4))
    log = read_trace(tmp_path / "vllm.log", chunk_size=16)
    assert (log.tokens.tolist(), log.chunk_ids.tolist(), log.duration) == ([40, 40], [0, 1, 0, 1], 4)
    assert log.source == "vLLM request log"


@pytest.mark.parametrize(
    "prompt",
    [
        "'cut in the mid",
        "'nul \0 bytes'",
        "'an escape \\x'",
        "'ids', prompt_token_ids: [1, , 2]",
        "'id', prompt_token_ids: [99999999999]",
    ],
)
def test_a_damaged_request_of_vllms_log_is_named_or_skipped_and_counted(tmp_path: Path, prompt: str) -> None:
    line = (
        "INFO 11-28 19:10:50 [logger.py:40] Received request r: prompt: {}, params: SamplingParams(n=1), prompt_token_ids: {}\n"
    )
    whole = line.format("'hello'", "[1, 2]")
    quoted, _, ids = prompt.partition(", prompt_token_ids: ")
    file = tmp_path / "vllm.log"
    file.write_text(whole + line.format(quoted, ids or None) + whole)
    with pytest.raises(WorkloadError, match=r"line 2: the prompt of this request was cut or is damaged"):
        read_trace(file)
    log = read_trace(file, skip_bad_lines=True)
    assert (len(log), log.bad_lines) == (2, 1)
    file.write_text(whole + line.format("'half written", None)[:90])
    assert len(read_trace(file)) == 1  # the server writes on


def test_token_ids_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="line 1: it holds no text of a request"):
        read_trace(written(tmp_path / "a", {"prompt": [2**40, 1]}))


def test_fractions_of_seconds_may_have_any_length(tmp_path: Path) -> None:
    records = [chat("?", startTime=f"2025-10-09T08:53:2{n}{fraction}Z") for n, fraction in enumerate(["", ".5", ".123456789"])]
    log = read_trace(written(tmp_path / "a", *records))
    assert (log.timestamps - 1_760_000_000).tolist() == pytest.approx([0, 1.5, 2.123456], abs=1e-6)


def test_prompts_that_a_recent_vllm_logs_at_level_debug_are_read(tmp_path: Path) -> None:
    details = "DEBUG 11-28 19:10:50 [request_logger.py:55] Request cmpl-{} details: prompt: {!r}, prompt_token_ids: {},"
    details += " prompt_embeds shape: None.\n"
    received = (
        "INFO 11-28 19:10:50 [request_logger.py:65] Received request cmpl-1: params: SamplingParams(n=1), lora_request: None.\n"
    )
    file = tmp_path / "vllm.log"
    file.write_text(details.format(1, "it's", list(range(40))) + received + details.format(2, "it's " * 30, None) + received)
    log = read_trace(file, chunk_size=16)
    assert log.tokens.tolist() == [40, 150 // 4]
    assert "the log has whole prompts (no --max-log-len)" in log.assumed
    file.write_text(received)
    with pytest.raises(WorkloadError, match=r"it names requests without their prompts\. Start vLLM with --enable-log-requests"):
        read_trace(file)


def test_a_record_without_text_is_broken(tmp_path: Path) -> None:
    file = written(tmp_path / "a", chat("?"), {"model": "m"})
    with pytest.raises(WorkloadError, match="line 2: it holds no text of a request"):
        read_trace(file)
    log = read_trace(file, skip_bad_lines=True)
    assert (len(log), log.bad_lines) == (1, 1)


def test_no_text_is_kept(tmp_path: Path) -> None:
    log = read_trace(written(tmp_path / "a", chat("my secret " * 200)))
    assert "secret" not in repr(vars(log))


# ---- with a tokenizer ----


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder: a tokenizer of words, and a chat template."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {
        word: number
        for number, word in enumerate(
            ["[UNK]", *["you", "answer", "questions", "about", "flowers", "the", "cat", "sat", "on", "mat"]]
        )
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106  a token of text
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_a_tokenizer_counts_tokens_by_the_models_template(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("jinja2")
    record = {"messages": [{"role": "user", "content": "the cat sat on the mat " * 4}]}
    log = read_trace(written(tmp_path / "a", record, record), chunk_size=8, tokenizer=model)
    assert log.tokens.tolist() == [26, 26]  # role, 24 words, role of the answer
    assert log.chunk_ids.tolist() == [0, 1, 2, 0, 1, 2]
    assert not any("template" in one for one in log.assumed)


def test_without_a_template_it_is_said_that_messages_were_joined(tmp_path: Path, model: Path) -> None:
    (model / "tokenizer_config.json").unlink()
    log = read_trace(written(tmp_path / "a", chat("the cat")), tokenizer=model / "tokenizer.json")
    assert any("no chat template lies beside the tokenizer" in one for one in log.assumed)


def test_a_tokenizer_that_counts_otherwise_than_the_log_is_refused(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("jinja2")
    file = written(tmp_path / "a", *({"messages": [{"role": "user", "content": "the cat"}], "usage": {"prompt_tokens": 40}},) * 3)
    with pytest.raises(WorkloadError, match=r"counts 90% fewer prompt tokens than the log states .* it is not this model's"):
        read_trace(file, tokenizer=model)


def test_a_file_that_is_no_tokenizer_is_told(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(WorkloadError, match="is not a tokenizer"):
        read_trace(written(tmp_path / "a", chat("?")), tokenizer=tmp_path / "a")
