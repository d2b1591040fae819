"""The text of a trace file, piece by piece: plain, gzip or zstd, in UTF-8. What is damaged or encoded otherwise is refused."""

import gzip
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from agent_tools.errors import WorkloadError
from agent_tools.plain import plain

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_OTHERS = {
    b"PK\x03\x04": "a zip archive", b"BZh": "a bzip2 file", b"\xfd7zXZ": "an xz file", b"7z\xbc\xaf": "a 7-Zip archive",
    b"\x04\x22\x4d\x18": "an LZ4 file", b"PAR1": "a Parquet file",
}  # fmt: skip
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF8_MARK = b"\xef\xbb\xbf"
"""What Windows programs write before UTF-8. It is no part of the text."""
_START = 4
"""Bytes of a text from which its encoding is recognised."""


class DamagedFileError(WorkloadError):
    """Raised when a file cannot be read as it is: it is damaged, was cut short, is in another encoding, or is not readable."""


class CutShortError(DamagedFileError):
    """Raised at the end of a packed file that was cut short. What it still holds was yielded before."""


def unpacked(path: Path, file: BinaryIO, read_bytes: int) -> Iterator[bytes]:
    """Yield the text of an open file in pieces of any size, without a mark of UTF-8 at its beginning.

    Args:
        path: What messages call the file.
        file: The file, at its beginning.
        read_bytes: Bytes that are read at once.

    Raises:
        CutShortError: A gzip or zstd file ends too early.
        DamagedFileError: The packed data is damaged, or the file is packed or encoded in another way.
    """
    magic = file.read(_START + 2)
    file.seek(0)
    other = next((name for start, name in _OTHERS.items() if magic.startswith(start)), None)
    if other is not None:
        raise DamagedFileError(
            f"{path} is {other}: unpack it, or convert it to JSON lines; only gzip and zstd are read as they are"
        )
    if magic.startswith(_GZIP):
        pieces = _of_gzip(path, file, read_bytes)
    elif magic.startswith(_ZSTD):
        pieces = _of_zstd(path, file)
    else:
        pieces = iter(partial(file.read, read_bytes), b"")
    return _as_utf8(path, pieces)


def _as_utf8(path: Path, pieces: Iterator[bytes]) -> Iterator[bytes]:
    start = b""
    try:
        while len(start) < _START:
            start += next(pieces)
    except StopIteration:
        pieces = iter(())
    except CutShortError as error:
        pieces = _raising(error)
    if start.startswith(_UTF16_MARKS) or _has_zeros_between(start):
        raise DamagedFileError(f"{path} is in UTF-16, not in UTF-8: convert it with iconv -f UTF-16 -t UTF-8")
    yield start.removeprefix(UTF8_MARK)
    yield from pieces


def _raising(error: CutShortError) -> Iterator[bytes]:
    yield b""
    raise error


def _has_zeros_between(start: bytes) -> bool:
    """Return whether every second byte is zero, as in ASCII text in UTF-16."""
    return len(start) >= _START and any(
        start[first] and start[first + 2] and not start[1 - first] and not start[3 - first] for first in (0, 1)
    )


def _of_gzip(path: Path, file: BinaryIO, read_bytes: int) -> Iterator[bytes]:
    """Yield the text of a gzip file of one or more members."""
    text, piece, lines = gzip.GzipFile(fileobj=file), bytearray(), 0
    try:
        while part := text.read1(read_bytes):
            piece += part
            lines += part.count(b"\n")
            if len(piece) >= read_bytes:
                yield bytes(piece)
                piece = bytearray()
    except (zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, "gzip", error, lines) from error
    except EOFError as error:
        yield bytes(piece)
        raise _cut_short(path, "gzip", lines) from error
    yield bytes(piece)


def _of_zstd(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield the text of a zstd file of one or more frames."""
    import zstandard  # noqa: PLC0415  few traces are zstd files

    lines, unpacker = 0, zstandard.ZstdDecompressor().decompressobj()
    try:
        while packed := file.read(2**16):
            while packed:
                if unpacker.eof:
                    unpacker = zstandard.ZstdDecompressor().decompressobj()
                part = unpacker.decompress(packed)
                packed = unpacker.unused_data if unpacker.eof else b""
                lines += part.count(b"\n")
                yield part
    except zstandard.ZstdError as error:
        raise _damaged(path, "zstd", error, lines) from error
    if not unpacker.eof:
        raise _cut_short(path, "zstd", lines)


def _damaged(path: Path, kind: str, error: Exception, lines: int) -> DamagedFileError:
    return DamagedFileError(f"{path} is a damaged {kind} file ({plain(error)}) after {lines:,} whole lines; fetch it again")


def _cut_short(path: Path, kind: str, lines: int) -> CutShortError:
    if not lines:
        return CutShortError(
            f"{path} is a {kind} file that was cut short, or whose header is damaged: it holds no whole line. Fetch it again"
        )
    return CutShortError(
        f"{path} is a {kind} file that was cut short: {lines:,} lines are whole. Fetch it again, or use the whole lines with"
        " --skip-bad-lines."
    )
