"""Recorded text as an access log: cut into chunks of tokens, or of bytes without a tokenizer, and hashed at once.

Only hashes are kept, never text. Each chunk's hash includes the hash of the chunk before it, as LMCache chains them, so equal ids
mean equal prefixes.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from agent_tools.errors import UnsupportedError, WorkloadError
from agent_tools.extras import installing
from agent_tools.plain import plain
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.lines import Block, Source

from .documents import documents
from .prompts import PLAIN, Message, Prompt, prompts_of
from .requests import Columns, ReadOptions, Requests
from .vllm_log import NO_PROMPTS, prompts_of_vllm_log

CHUNK_SIZE = 256
"""LMCache's default chunk size, tokens."""
BYTES = 4
"""Bytes of UTF-8 that count as a token without a tokenizer. Characters would count Chinese as half of its tokens."""
MEASURED = (
    "measured on English, German, Chinese and code with two real tokenizers, the hit rate of an unlimited cache is off by at most"
    " 0.3 points, that of a given size by 1.5 to 5.3 points on average and by up to 23 where the curve is steep"
)
"""The error in words, from `benchmarks/results/text.md`."""
DIFFERS, DIFFERS_A_LITTLE = 0.10, 0.02
"""Relative differences of token counts from which a tokenizer is refused, or the difference is reported."""
AT_ONCE = 512
"""Requests that are added together."""


class Encoder(Protocol):
    """Turns a prompt into units, of which so many are a token."""

    units_per_token: int

    def units(self, asked: tuple[Message, ...] | str) -> bytes:
        """Return the prompt as units, `width` bytes each."""

    @property
    def width(self) -> int:
        """Bytes of a unit."""


class ByBytes:
    """Counts `BYTES` bytes of UTF-8 as a token."""

    units_per_token = BYTES
    width = 1

    def __init__(self) -> None:
        self._asked: tuple[Message, ...] = ()
        self._text = b""

    def units(self, asked: tuple[Message, ...] | str) -> bytes:
        """Return the text. The turns of a recorded conversation share their messages, so a later turn only adds to the text."""
        if isinstance(asked, str):
            return asked.encode("utf-8", "surrogatepass")
        known = len(self._asked) if self._asked and asked[0] is self._asked[0] and len(asked) >= len(self._asked) else 0
        self._text = (self._text if known else b"") + written_out(asked[known:]).encode("utf-8", "surrogatepass")
        self._asked = asked
        return self._text


class ByTokenizer:
    """Uses a ``tokenizer.json`` of the model, and the chat template beside it."""

    units_per_token = 1
    width = 4

    def __init__(self, path: Path) -> None:
        """Load the tokenizer of a file, or of a model's folder.

        Raises:
            UnsupportedError: The package tokenizers is not installed.
            WorkloadError: The file is no tokenizer.
        """
        try:
            import tokenizers  # noqa: PLC0415  an extra
        except ImportError as error:
            raise UnsupportedError(f"a tokenizer needs the package tokenizers; {installing('text')}") from error
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:
            raise WorkloadError(f"{file} is not a tokenizer ({plain(error, 200)}): name a model's tokenizer.json") from error
        self.template = _template(file.parent)

    def units(self, asked: tuple[Message, ...] | str) -> bytes:
        """Return the token ids, four bytes each."""
        if isinstance(asked, str):
            return np.array(self._tokenizer.encode(asked).ids, "<i4").tobytes()
        text = written_out(asked) if self.template is None else self.template(asked)
        return np.array(self._tokenizer.encode(text, add_special_tokens=self.template is None).ids, "<i4").tobytes()


def written_out(asked: tuple[Message, ...] | str) -> str:
    """Return messages as one text, role before content, where no template says how."""
    if isinstance(asked, str):
        return asked
    return "".join([f"<|{one.role}|>\n{one.content}\n" for one in asked])


def read_text(files: Sequence[Path], options: ReadOptions, *, vllm_log: bool = False) -> AccessLog:
    """Read requests with their text.

    Raises:
        WorkloadError: Nothing to read, a broken record, or a tokenizer that counts other tokens than the log states.
        UnsupportedError: A tokenizer is named and the package for it is not installed.
    """
    encoder: Encoder = ByBytes() if options.tokenizer is None else ByTokenizer(options.tokenizer)
    size = options.chunk_size or CHUNK_SIZE
    requests = Requests("vLLM request log" if vllm_log else "chat requests (text)", options, unit=options.time_unit or 1.0)
    counted = _Counted()
    for path in files:
        found = _vllm_prompts(path, requests, options) if vllm_log else _prompts([path], requests, options)
        for part in _in_parts(found):
            columns = _columns(part, encoder, size, counted)
            requests.add(columns, path=path)
    if not len(requests):
        empty = NO_PROMPTS if vllm_log else "it is empty"
        reason = f"none of its {requests.bad_lines:,} records is one" if requests.bad_lines else empty
        raise WorkloadError(f"{files[0]} holds no requests: {reason}")
    if vllm_log:
        requests.assumed.append("the log has whole prompts (no --max-log-len)")
    requests.assumed += _assumed(encoder, options, size, counted)
    requests.remarks += counted.remarks(exact=options.tokenizer is not None)
    return requests.log(files[0], size)


@dataclass
class _Counted:
    """Token counts of the log against ours."""

    ours: list[int] = field(default_factory=list)
    stated: list[int] = field(default_factory=list)
    with_ids: int = 0

    def remarks(self, *, exact: bool) -> list[str]:
        if not self.stated:
            return []
        ratio = float(np.median(np.array(self.ours) / np.array(self.stated)))
        how = f"{abs(ratio - 1):.0%} {'more' if ratio > 1 else 'fewer'} prompt tokens than the log states"
        if exact and abs(ratio - 1) > DIFFERS:
            raise WorkloadError(
                f"the tokenizer counts {how} (median of {len(self.stated):,} requests): it is not this model's, or its chat"
                " template is missing; name the tokenizer.json of the model that served them"
            )
        if abs(ratio - 1) > DIFFERS_A_LITTLE:
            return [f"{'the tokenizer' if exact else 'the approximation by bytes'} counts {how}"]
        return []


def _prompts(files: Sequence[Path], requests: Requests, options: ReadOptions) -> Iterator[tuple[int, Prompt]]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    for path, number, record in documents(files, decoder, requests, options, PLAIN):
        try:
            found = list(prompts_of(record, number, options.time_unit))
        except ValueError as error:  # noqa: PERF203  one bad record is one record
            Source(path, options.skip_bad_lines).bad_line(number, error)
            requests.bad_lines += 1
        else:
            for prompt in found:
                yield number, prompt


def _vllm_prompts(path: Path, requests: Requests, options: ReadOptions) -> Iterator[tuple[int, Prompt]]:
    source = Source(path, options.skip_bad_lines)
    for block in source.blocks():

        def bad_line(place: int, reason: str, block: Block = block) -> None:
            if not (block.end_is_missing and place == block.lines - 1):  # the server writes on
                source.bad_line(block.first_line + place, reason)

        for place, prompt in prompts_of_vllm_log(block.data.decode("utf-8", "replace"), bad_line):
            yield block.first_line + place, prompt
    requests.bad_lines += source.bad_lines


def _in_parts(prompts: Iterable[tuple[int, Prompt]]) -> Iterator[list[tuple[int, Prompt]]]:
    part: list[tuple[int, Prompt]] = []
    for one in prompts:
        part.append(one)
        if len(part) == AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _columns(part: list[tuple[int, Prompt]], encoder: Encoder, size: int, counted: _Counted) -> Columns:
    chain = _Chain()
    ids: list[int] = []
    counts: list[int] = []
    tokens: list[int] = []
    for _, prompt in part:
        asked = prompt.asked
        if type(asked) is tuple and asked and type(asked[0]) is int:
            units, per_token, width = np.array(asked, "<i4").tobytes(), 1, 4
            counted.with_ids += 1
        else:
            units, per_token, width = encoder.units(asked), encoder.units_per_token, encoder.width  # type: ignore[arg-type]
        length = len(units) // width // per_token
        hashes = chain.of(units, size * per_token * width)
        ids += hashes
        counts.append(len(hashes))
        tokens.append(length)
        if prompt.stated_tokens:
            counted.ours.append(max(length, 1))
            counted.stated.append(prompt.stated_tokens)
    prompts = [prompt for _, prompt in part]
    return Columns(
        ids=np.array(ids, np.int64),
        counts=np.array(counts, np.int64),
        tokens=np.array(tokens, np.int64),
        seconds=np.array([prompt.seconds for prompt in prompts]),
        outputs=np.array([prompt.output_tokens for prompt in prompts], np.int64),
        think=np.array([prompt.think for prompt in prompts]),
        sessions=[prompt.session for prompt in prompts],
        models=[prompt.model for prompt in prompts],
        numbers=np.array([number for number, _ in part], np.int64),
    )


class _Chain:
    """Hashes prompts. One that goes on from the prompt before, as turns of a conversation do, is hashed from there on."""

    def __init__(self) -> None:
        self._units, self._chunk = b"", 0
        self._hashes: list[int] = []

    def of(self, units: bytes, chunk: int) -> list[int]:
        """Return the chained 64-bit hash of each whole chunk. Python's own hash is fast, and holds for this process alone."""
        found = self._hashes.copy() if chunk == self._chunk and units.startswith(self._units) else []
        before = found[-1] if found else 0
        for at in range(len(found) * chunk, len(units) - chunk + 1, chunk):
            before = hash((before, units[at : at + chunk]))
            found.append(before)
        self._units, self._chunk, self._hashes = units, chunk, found
        return found


def _assumed(encoder: Encoder, options: ReadOptions, size: int, counted: _Counted) -> list[str]:
    said = [] if options.chunk_size else [f"chunks of {size} tokens, LMCache's default"]
    if isinstance(encoder, ByBytes) and counted.with_ids == 0:
        said.append(f"{BYTES} bytes of text count as a token, an approximation: {MEASURED} (--tokenizer counts tokens)")
    elif isinstance(encoder, ByTokenizer) and encoder.template is None:
        said.append("no chat template lies beside the tokenizer, so messages were joined role by role")
    return said


def _template(folder: Path) -> Any:  # noqa: ANN401  a function from messages to text, or None
    """Return the chat template of a model's folder as a function; ``None`` if there is none."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    fields: dict[str, Any] = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    text = file.read_text(encoding="utf-8") if file.is_file() else fields.get("chat_template")
    if isinstance(text, list):
        text = next((one["template"] for one in text if one.get("name") == "default"), None)
    if not isinstance(text, str):
        return None
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415  an extra
    except ImportError as error:
        raise UnsupportedError(f"a chat template needs the package jinja2; {installing('text')}") from error
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refused
    template = environment.from_string(text)
    special = {name: _token(fields.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}

    def written(messages: Sequence[Message]) -> str:
        plain_messages = [{"role": one.role, "content": one.content} for one in messages]
        return str(template.render(messages=plain_messages, add_generation_prompt=True, **special))

    return written


def _refused(reason: str) -> None:
    raise WorkloadError(f"the chat template refuses a request: {plain(reason, 200)}")


def _token(value: object) -> str:
    return value if isinstance(value, str) else str(value.get("content", "")) if isinstance(value, dict) else ""
