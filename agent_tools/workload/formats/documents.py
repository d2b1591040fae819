"""JSON documents: one for each line, a whole file that is one document, or a whole file that is a list of them."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from agent_tools.errors import WorkloadError
from agent_tools.plain import plain
from agent_tools.workload.complaints import in_words
from agent_tools.workload.lines import Source
from agent_tools.workload.memory import check_fits
from agent_tools.workload.unpack import DamagedFileError

from .requests import ReadOptions, Requests

_Document = TypeVar("_Document")
LARGEST = 2**30
"""Bytes of the largest file that is read as one document."""
MOST_OF_A_LINE = 2**26
MEMORY_PER_BYTE = 4.0
READ_BYTES = 2**20
"""Bytes of a file that are decoded at once."""
LIST = re.compile(rb"\[\s*(\{|$)")
"""The beginning of a list of objects. Lines of a program's log may begin with a bracket too."""
ONE_A_LINE = "write one request a line, for example with jq -c '{}' {}"


def documents(
    files: Sequence[Path],
    decoder: "msgspec.json.Decoder[_Document]",
    requests: Requests,
    options: ReadOptions,
    quick: "msgspec.json.Decoder[_Document] | None" = None,
) -> Iterator[tuple[Path, int, _Document]]:
    """Yield file, line and document, in order. Broken ones are counted in `requests`, or raise.

    `quick` is a decoder that accepts most documents, and is tried first where a document is a line.

    Raises:
        WorkloadError: A document is broken and broken ones are not skipped, or a file cannot be read.
    """
    for path in files:
        source = Source(path, options.skip_bad_lines, read_bytes=READ_BYTES)
        if one_a_line(path):
            for block in source.blocks():
                found, numbers = source.records(block, decoder, quick)  # type: ignore[type-var]
                for number, document in zip(numbers.tolist(), found, strict=True):
                    yield path, number, document
        else:
            for place, raw in enumerate(_whole(path), start=1):
                try:
                    document = decoder.decode(raw)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:  # noqa: PERF203  one bad line is one line
                    source.bad_line(place, plain(in_words(error, whole="the document"), 300))
                else:
                    yield path, place, document
        requests.bad_lines += source.bad_lines


def one_a_line(path: Path) -> bool:
    """Return whether a file has a document a line: it begins with no list, and its first line is no part of a JSON object."""
    first = first_line(path)
    if not first.startswith(b"{"):
        return not LIST.match(first)
    try:
        msgspec.json.decode(first)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return False
    return True


def first_line(path: Path) -> bytes:
    """Return the first line that is not blank, or the beginning of a long one; empty for a file without text.

    Raises:
        DamagedFileError: The file is damaged or in another encoding, or is packed and was cut before its first line ends.
    """
    source, start = Source(path, skip_bad_lines=True), bytearray()
    for piece in source.pieces():
        start += piece if start else piece.lstrip()
        if (b"\n" in piece and start) or len(start) > MOST_OF_A_LINE or start[:1] == b"[":
            break
    line, end, _ = start.partition(b"\n")
    if source.cut is not None and not end:
        raise source.cut
    return bytes(line)


def _whole(path: Path) -> Iterator[msgspec.Raw]:
    """Yield the documents of a file that is one document, or a list of documents."""
    text = bytearray()
    check_fits([path], MEMORY_PER_BYTE)
    for piece in Source(path).pieces():
        text += piece
        if len(text) > LARGEST:
            raise WorkloadError(f"{path} is one JSON document of more than {LARGEST // 2**30} GiB: write one document a line")
    try:
        if text.lstrip()[:1] == b"[":
            yield from msgspec.json.decode(text, type=list[msgspec.Raw])
        else:
            yield msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if "trailing" in str(error):
            raise WorkloadError(
                f"{path} holds several JSON documents over many lines: {ONE_A_LINE.format('.', shlex.quote(str(path)))}"
            ) from error
        wrong = plain(in_words(error, text), 200)
        raise DamagedFileError(f"{path} is no whole JSON document ({wrong}): it was cut, fetch it again") from error
