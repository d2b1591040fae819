"""vLLM's own log of requests (``--enable-log-requests``): the prompts and token ids that it prints.

Older versions print "Received request ID: prompt: '...', params: ...". Recent ones (seen in 0.32) print, at log level DEBUG,
"Request ID details: prompt: '...', prompt_token_ids: [...], ...".
"""

import ast
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from math import nan

from .prompts import TOKEN_IDS, Prompt

RECEIVED, DETAILS = "Received request ", " details: prompt: "
"""Parts of the lines from which the log is recognised."""
NO_PROMPTS = (
    "it names requests without their prompts. Start vLLM with --enable-log-requests, and log level DEBUG if it is a recent one"
)
_FORMS = ((RECEIVED, ": prompt: ", ", params: "), ("Request ", DETAILS, ", prompt_token_ids: "))
"""What comes before the request id, before the prompt, and after it."""
_IDS = re.compile(r"prompt_token_ids: \[([\d, ]+)\]")
_TIME = re.compile(r"(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)")


def prompts_of_vllm_log(text: str, bad_line: Callable[[int, str], None]) -> Iterator[tuple[int, Prompt]]:
    """Yield the requests in lines of the log, each with the place of its line, from 0.

    `bad_line` is called with place and reason for the line of a request that was cut or is damaged.
    """
    for place, line in enumerate(text.split("\n")):
        try:
            asked = _asked(line)
        except (ValueError, SyntaxError):  # noqa: PERF203  one bad line is one line
            bad_line(place, "the prompt of this request was cut or is damaged")
        else:
            if asked is not None:
                yield place, Prompt(asked, _seconds(line), nan, None, "", 0, 0)


def _asked(line: str) -> tuple[int, ...] | str | None:
    """Return prompt or token ids of a line; ``None`` if the line is no request.

    Raises:
        ValueError: The prompt was cut, or a token id is no number.
        SyntaxError: The prompt is damaged.
    """
    found = next((found for form in _FORMS if (found := _quoted_prompt(line, *form))), None)
    if found is None:
        return None
    if "\0" in line:  # Python writes it as \x00
        raise ValueError(line[:20])
    quoted, end = found
    ids = _IDS.search(line, end)
    if ids is not None:
        asked = tuple(map(int, ids[1].split(",")))
        if max(asked) >= TOKEN_IDS:
            raise ValueError(ids[1])
        return asked
    if quoted == "None":
        return None
    return str(ast.literal_eval(quoted)) if "\\" in quoted else quoted[1:-1]


def _quoted_prompt(line: str, before: str, between: str, after: str) -> tuple[str, int] | None:
    """Return the prompt of a line as Python writes it, and where it ends; ``None`` if the line is no request of this form.

    Raises:
        ValueError: The end is missing.
    """
    name = line.find(before)
    start = line.find(between, name) + len(between)
    if name < 0 or start < len(between) or " " in line[name + len(before) : start - len(between)]:
        return None
    if line.startswith("None" + after, start):
        return "None", start + 4
    quote = line[start : start + 1]
    end = line.find(quote + after, start + 1) if quote in {"'", '"'} else -1
    while end > 0 and (end - len(line[:end].rstrip("\\"))) % 2:  # the prompt itself holds the quote, escaped
        end = line.find(quote + after, end + 1)
    if end < 0:
        raise ValueError(quote)
    return line[start : end + 1], end + 1


def _seconds(line: str) -> float:
    found = _TIME.search(line)
    if found is None:
        return nan
    month, day, hour, minute, second = map(int, found.groups())
    try:
        moment = datetime(2024, month, day, hour, minute, second, tzinfo=timezone.utc)  # the log names no year
    except ValueError:
        return nan
    return moment.timestamp()
