"""Read a long page of Prometheus text by columns, in one pass.

A client of the cache chooses names of tenants and models, and so decides how many series a page has. prometheus_client takes many
times as long per line as this reader, which splits text at its quotation marks. The parts between the labels are the same in all
series of a name, so they are compared with those of the first one and taken apart once.
"""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache

import numpy as np

from .series_table import SeriesTable

PIECE = 2**17
"""Bytes of a page that are read at once, up to the end of a line."""
_FIRST = re.compile(r"([a-zA-Z_:][\w:]*)\{([a-zA-Z_]\w*)=", re.ASCII)
_NEXT = re.compile(r",([a-zA-Z_]\w*)=", re.ASCII)
_BARE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{\}|(?=[ \t]))[ \t]*(\S+)(?:[ \t]+-?\d+)?\s*", re.ASCII)
_TAIL = re.compile(r",?\}[ \t]*(\S+)(?:[ \t]+-?\d+)?\s*")
"""What follows the last label: the value, and perhaps a time."""
_QUOTED = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"')
_ESCAPED = re.compile(r'\\([\\n"])')

Layout = tuple[str, ...]
"""The parts of a line before each of its labels: ``name{model_name=`` and ``,cache_salt=``."""


def tables_of_long_page(page: bytes, wanted: Callable[[str], bool]) -> Iterator[SeriesTable]:
    """Return the wanted series, piece by piece.

    Args:
        page: A page in the Prometheus exposition format.
        wanted: Whether to read a line, by how it starts.

    Raises:
        ValueError: A wanted line is not in that format.
    """
    for piece in _pieces(page):
        table = _table_of_one_layout(piece)
        tables = _tables_by_line(piece, wanted) if table is None else [table] if wanted(piece) else []
        yield from tables
        time.sleep(0)  # lets other threads have the interpreter, for which they else wait 5 ms (`sys.getswitchinterval`)


def _pieces(page: bytes) -> Iterator[str]:
    """Return pieces that end with a line. The page is decoded piece by piece, since other threads wait for each call to end."""
    start = 0
    while start < len(page):
        end = page.find(b"\n", start + PIECE)
        end = len(page) if end < 0 else end
        yield page[start:end].decode(errors="replace")
        start = end + 1


def _table_of_one_layout(piece: str) -> SeriesTable | None:
    """Read a piece in which all lines have the same parts between their labels, or return ``None`` if they do not.

    Most pieces of a very long page are like that, and need no loop over lines.
    """
    *parts, _ = piece.partition("\n")[0].split('"')
    layout, lines = tuple(parts[::2]), piece.count("\n") + 1
    every, all_parts = len(parts), piece.split('"')
    if not layout or "\\" in piece or len(all_parts) != every * lines + 1:
        return None
    for number, part in enumerate(layout[1:], start=1):
        if all_parts[2 * number :: every].count(part) < lines:
            return None
    next_line = "\n" + layout[0]
    first, *tails = (next_line + "".join(all_parts[every::every])).split(next_line + "} ")
    with suppress(ValueError):  # something stands between the lines, or one of them has a time
        name, names = _names(layout)
        if not first and len(tails) == lines:
            values = np.fromiter(map(float, tails), np.float64, lines)
            return SeriesTable(name, dict(zip(names, (all_parts[at::every] for at in range(1, every, 2)), strict=True)), values)
    return None


def _tables_by_line(piece: str, wanted: Callable[[str], bool]) -> Iterator[SeriesTable]:
    rows: defaultdict[Layout, list[list[str]]] = defaultdict(list)
    # Not `splitlines`, which would also split at characters that a label may contain.
    for line in filter(wanted, piece.split("\n")):
        parts = _unescaped(_QUOTED.split(line)) if "\\" in line else line.split('"')
        rows[tuple(parts[:-1:2])].append(parts)
    for (line,) in rows.pop((), []):
        yield _bare(line)
    for layout, of_layout in rows.items():
        if {*map(len, of_layout)} != {2 * len(layout) + 1}:
            raise _unreadable(layout[0])
        name, names = _names(layout)
        columns = [*zip(*of_layout, strict=True)]
        values = np.array([_value(name, _TAIL.fullmatch(tail)) for tail in columns[-1]])
        yield SeriesTable(name, dict(zip(names, columns[1::2], strict=True)), values)


def _unescaped(parts: list[str]) -> list[str]:
    parts[1::2] = [_ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], label) for label in parts[1::2]]
    return parts


@lru_cache(1000)
def _names(layout: Layout) -> tuple[str, Sequence[str]]:
    """Return the name of a series and the names of its labels."""
    first, more = _FIRST.fullmatch(layout[0]), [_NEXT.fullmatch(part) for part in layout[1:]]
    labels = [found[found.lastindex or 0] for found in (first, *more) if found is not None]
    if first is None or len({*labels}) != len(layout):
        raise _unreadable(layout[0])
    return first[1], labels


def _value(name: str, tail: re.Match[str] | None) -> float:
    if tail is None:
        raise _unreadable(name)
    return float(tail[1])


def _bare(line: str) -> SeriesTable:
    """Read a series without labels."""
    found = _BARE.fullmatch(line)
    if found is None:
        raise _unreadable(line)
    return SeriesTable(found[1], {}, np.array([float(found[2])]))


def _unreadable(line: str) -> ValueError:
    return ValueError(f"a line of {re.split('[{ ]', line, maxsplit=1)[0]} is not in the Prometheus format")
