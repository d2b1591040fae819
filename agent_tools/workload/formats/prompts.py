"""Recorded requests that hold text: what each asked for, taken from the log formats of chat applications and gateways.

=============================== =================================================================
format                          told by
=============================== =================================================================
OpenAI requests, batch files    ``messages``, ``prompt`` or ``input``, also below ``body``
gateway logs (LiteLLM)          the same, with ``startTime`` and token counts
ShareGPT                        ``conversations``
LMCache agent traces            ``pre_gap``
AIPerf with text                ``text_input``
=============================== =================================================================

A record whose messages end with an answer of the assistant is a whole conversation: every answer in it was a request.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from math import inf, nan
from typing import Any, TypedDict

import msgspec

from agent_tools.plain import plain

Json = Mapping[str, Any]
TOKEN_IDS = 2**31
"""Token ids are below this."""
PAUSE_SECONDS = 30.0
"""Pause that is assumed between an answer and the next turn of a recorded conversation without times."""
_TIMES = ("timestamp", "startTime", "start_time", "request_time", "created_at", "created", "time")
_BODIES = ("body", "request", "request_body", "payload", "kwargs", "data")
_ENVELOPES = frozenset(_BODIES)
_TOKENS = ("prompt_tokens", "input_tokens", "input_length")
_ANSWERS = ("completion_tokens", "output_tokens", "output_length")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "": "user"}
_ANSWERERS = {"assistant", "model"}
_PAUSES = (("pre_gap", 1.0), ("delay", 1e-3), ("delay_ms", 1e-3))
_STATED = frozenset((*_TIMES, *_TOKENS, *_ANSWERS, *(key for key, _ in _PAUSES), "usage", "response"))
"""Names of what a record says about its request: a record with none of them states no time and no counts."""
_EPOCHS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3), (1e8, 1.0))
"""Numbers from this size on are Unix times in this unit, seconds."""
_NO_TIME = "{} is no time: write seconds as a number, or a date such as 2026-01-31T12:00:00Z"
_FRACTION = re.compile(r"\.(\d+)")


class Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):  # a million tuples would keep the collector busy
    """One message of a chat."""

    role: str
    content: str


class _Turn(Message, gc=False, forbid_unknown_fields=True):
    """One message of a ShareGPT conversation."""

    role: str = msgspec.field(name="from")
    content: str = msgspec.field(name="value")


class Prompt(msgspec.Struct, gc=False):
    """What one request asked for, and when."""

    asked: tuple[Message, ...] | str | tuple[int, ...]
    """Messages, a raw prompt, or its token ids."""
    seconds: float
    """Start, seconds; NaN if not stated."""
    think: float
    """Pause before it, seconds after the answer of the turn before; NaN if not stated."""
    session: object
    model: str
    stated_tokens: int
    """Prompt tokens by the log; 0 if it does not state them."""
    output_tokens: int


_USED = (*_STATED, *_BODIES, "model", "session_id", "text_input", "prompt", "input", "tools", "instructions")
PLAIN: "msgspec.json.Decoder[dict[str, Any]]" = msgspec.json.Decoder(
    TypedDict(  # type: ignore[operator]  # its names are computed
        "Plain", {"messages": list[Message], "conversations": list[_Turn], **dict.fromkeys(_USED, Any)}, total=False
    )
)
"""Decodes records whose messages have a role and a text and nothing else, and leaves out what is never used."""


def has_text(record: Json) -> bool:
    """Return whether a record holds the text of a request."""
    body = _body(record)
    return any(key in body for key in ("messages", "conversations", "prompt", "text_input")) or (
        "input" in body and isinstance(body["input"], str | list)
    )


def prompts_of(record: Json, number: int, unit: float | None = None) -> Iterator[Prompt]:
    """Yield the requests of one record.

    Args:
        record: The record.
        number: Its line.
        unit: Seconds in the unit of its time; by default it follows from the format and the size of the number.

    Raises:
        ValueError: The record holds no text of a request, or its time cannot be read.
    """
    body = _body(record)
    model = str(body.get("model") or record.get("model") or "")
    session = record.get("session_id")
    if _STATED.isdisjoint(record):
        seconds, think, stated, answer = nan, nan, 0, 0
    else:
        seconds, think = _seconds(record, unit), _pause(record)
        stated, answer = _count(record, _TOKENS), _count(record, _ANSWERS)
    raw = body.get("text_input")
    raw = raw if isinstance(raw, str) else body.get("prompt")
    if isinstance(raw, str):
        yield Prompt(raw, seconds, think, session, model, stated, answer)
        return
    if isinstance(raw, list) and raw and all(type(one) is int and 0 <= one < TOKEN_IDS for one in raw):
        yield Prompt(tuple(raw), seconds, think, session, model, stated, answer)
        return
    messages = _messages(body)
    if not messages:
        msg = "it holds no text of a request (messages, prompt, input or conversations)"
        raise ValueError(msg)
    if messages[-1].role not in _ANSWERERS:
        yield Prompt(tuple(messages), seconds, think, session, model, stated, answer)
        return
    own = session if session is not None else f"record {number}"
    turn = 0
    for place, message in enumerate(messages):
        if message.role in _ANSWERERS and place:
            first = turn == 0
            yield Prompt(
                tuple(messages[:place]), seconds if first else nan, nan if first else PAUSE_SECONDS, own, model, 0,
                max(1, len(message.content) // 4),
            )  # fmt: skip
            turn += 1


def _body(record: Json) -> Json:
    """Return the part of a record that the client sent."""
    if _ENVELOPES.isdisjoint(record):
        return record
    for key in _BODIES:
        inner = record.get(key)
        if isinstance(inner, dict) and any(one in inner for one in ("messages", "prompt", "input")):
            return inner
    return record


def _messages(body: Json) -> list[Message]:
    found = body.get("messages", body.get("conversations", body.get("input")))
    if isinstance(found, str) and found.lstrip().startswith("["):  # gateways write lists as text
        with contextlib.suppress(ValueError):
            found = json.loads(found)
    if isinstance(found, str):
        found = [{"role": "user", "content": found}]
    if not isinstance(found, list):
        return []
    head = [Message("system", body["instructions"])] if isinstance(body.get("instructions"), str) else []
    if body.get("tools"):
        head = [Message("tools", json.dumps(body["tools"], ensure_ascii=False)), *head]
    if found and isinstance(found[0], Message):  # all are: the quick decoder made them
        for one in found:
            if one.role in _ROLES:
                one.role = _ROLES[one.role]
        return [*head, *found]
    return [*head, *[_message(one) for one in found if isinstance(one, dict)]]


def _message(one: Json) -> Message:
    role = str(one.get("role") or one.get("from") or one.get("type") or "user")
    content = one.get("content", one.get("value", one.get("text")))
    if type(content) is not str:  # in most messages it is text
        content = _text(content)
    calls = one.get("tool_calls")
    return Message(_ROLES.get(role, role), content + (json.dumps(calls, ensure_ascii=False) if calls else ""))


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_text(part) for part in content)
    if isinstance(content, dict):
        text = content.get("text", content.get("content"))
        return text if isinstance(text, str) else json.dumps(content, ensure_ascii=False)
    return ""


def _seconds(record: Json, unit: float | None) -> float:
    value = next((record[key] for key in _TIMES if record.get(key) is not None), None)
    if isinstance(value, str):
        text = value
        try:
            value = float(text)
        except ValueError:
            return _of_iso(text)
    if value is None:
        return nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
        raise ValueError(_NO_TIME.format(plain(value, 40)))
    if unit is None:
        ms = "text_input" in record or "delay" in record
        unit = next((unit for least, unit in _EPOCHS if value >= least), 1e-3 if ms else 1.0)
    return float(value) * unit


def _of_iso(value: str) -> float:
    text = _FRACTION.sub(lambda found: f".{found[1][:6]:0<6}", value.strip()).replace("Z", "+00:00")  # Python 3.10 is strict
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(_NO_TIME.format(plain(value, 40))) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _pause(record: Json) -> float:
    for key, unit in _PAUSES:
        value = record.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value) * unit
    return nan


def _count(record: Json, keys: Sequence[str]) -> int:
    usage = record.get("usage")
    response = record.get("response")
    if isinstance(response, dict) and isinstance(response.get("usage"), dict):
        usage = response["usage"]
    for place in (record, usage):
        if isinstance(place, dict):
            for key in keys:
                value = place.get(key)
                if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**40:
                    return int(value)
    return 0
