"""Trace files as blocks of whole lines: plain, gzip or zstd. Recognises cut files and reports a broken line by its number.

A file may come from anybody. Memory is bounded whatever the file holds, and only regular files are read: a pipe or a device
might never end.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from agent_tools.errors import WorkloadError

from .complaints import in_words
from .memory import GB, available_bytes
from .unpack import UTF8_MARK, CutShortError, DamagedFileError, unpacked

_Record = TypeVar("_Record", bound=msgspec.Struct)

_READ_BYTES = 2**22  # blocks that stay in the processor cache are read 1.5 times as fast as whole files
LONGEST_LINE = 2**26
"""Bytes of the longest line that is read. A lookup of ten million tokens in chunks of 16 has 45 million."""


@dataclass(frozen=True)
class Block:
    """Consecutive lines of a file."""

    first_line: int
    """Number of the first line, from 1."""
    data: bytes
    """The lines. Each ends with a newline, except perhaps the last line of the file."""
    lines: int
    """Number of lines."""
    end_is_missing: bool = False
    """Whether the file ends here without a newline."""


@dataclass
class Source:
    """One trace file, and how to treat its broken lines."""

    path: Path
    skip_bad_lines: bool = False
    """Count broken lines and leave them out, instead of raising."""
    live: bool = False
    """A server may still be writing the file, so a half-written last line is no error."""
    bad_lines: int = 0
    """Broken lines left out so far."""
    memory_per_byte: float = 0.0
    """Memory that the reader keeps for each byte of text; 0 if it keeps nothing."""
    read_bytes: int = field(default_factory=lambda: _READ_BYTES)
    """Bytes that are read at once. Less is faster where a Python object is made of each part of the text."""
    cut: CutShortError | None = None
    """What to say of a packed file that was cut short, once its end was reached."""

    def blocks(self) -> Iterator[Block]:
        """Yield the file in order, in blocks of about 4 MiB that end at the end of a line.

        Raises:
            WorkloadError: The file cannot be read, is not a regular file, has a line longer than `LONGEST_LINE`, is damaged, is a
                gzip file that was cut short, or holds more text than fits into memory.
        """
        line, rest, left = 1, bytearray(), self._most_text()
        for piece in self.pieces():
            left -= len(piece)
            if left < 0:
                raise WorkloadError(self._too_much())
            end = piece.rfind(b"\n") + 1
            if not end:
                rest += piece
                if len(rest) > LONGEST_LINE:
                    raise WorkloadError(self._too_long(line))
                continue
            view = memoryview(piece)
            block = Block(line, b"".join((rest, view[:end])), lines=piece.count(b"\n"))
            yield block
            line, rest = line + block.lines, bytearray(view[end:])
        if rest:
            yield Block(line, bytes(rest), lines=1, end_is_missing=True)

    def bad_line(self, number: int, reason: object) -> None:
        """Count a broken line if broken lines are skipped.

        Raises:
            WorkloadError: Broken lines are not skipped.
        """
        if not self.skip_bad_lines:
            msg = f"{self.path}, line {number}: {reason}. Correct the line, or leave broken lines out with --skip-bad-lines."
            raise WorkloadError(msg)
        self.bad_lines += 1

    def records(
        self, block: Block, decoder: "msgspec.json.Decoder[_Record]", quick: "msgspec.json.Decoder[_Record] | None" = None
    ) -> tuple[list[_Record], npt.NDArray[np.int64]]:
        """Return the requests of a block, and the line number of each. Blank lines are passed over.

        Args:
            block: The lines.
            decoder: Accepts what is a request.
            quick: Accepts most requests, and is tried first.

        Raises:
            WorkloadError: The decoder does not accept a line, and broken lines are not skipped.
        """
        for one in (decoder,) if quick is None else (quick, decoder):
            try:
                found = one.decode_lines(block.data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if len(found) == block.lines:
                return found, np.arange(block.first_line, block.first_line + block.lines)
        return self._one_by_one(block, decoder)

    def _one_by_one(self, block: Block, decoder: "msgspec.json.Decoder[_Record]") -> tuple[list[_Record], npt.NDArray[np.int64]]:
        found, numbers = [], []
        lines = block.data.split(b"\n")
        for number, line in enumerate(lines, start=block.first_line):
            if not line.strip():
                continue
            try:
                found.append(decoder.decode(line.removeprefix(UTF8_MARK)))  # files with marks were joined
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                half_written = self.live and block.end_is_missing and number == block.first_line + len(lines) - 1
                if not half_written:
                    self.bad_line(number, in_words(error, line))
            else:
                numbers.append(number)
        return found, np.array(numbers, dtype=np.int64)

    def pieces(self) -> Iterator[bytes]:
        """Yield the unpacked text in pieces of any size.

        Raises:
            WorkloadError: The file cannot be read, is not a regular file, is damaged, or was cut short.
        """
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):  # before it is opened: opening a pipe waits for a writer
                msg = f"{self.path} is not a regular file, so it might never end; copy what it holds to a file and name that file"
                raise WorkloadError(msg)
            with self.path.open("rb") as file:
                yield from unpacked(self.path, file, self.read_bytes)
        except OSError as error:
            msg = f"cannot read {self.path}: {error.strerror or error}"
            raise DamagedFileError(msg) from error
        except CutShortError as error:
            self.cut = error
            if not self.skip_bad_lines:
                raise
            self.bad_lines += 1
            self.live = True  # the rest of the last line is the broken line just counted

    def _most_text(self) -> float:
        """Return how many bytes of text the reader can keep in the memory that is available now."""
        available = available_bytes()
        return available / self.memory_per_byte if available is not None and self.memory_per_byte else float("inf")

    def _too_much(self) -> str:
        return (
            f"{self.path} holds more text than fits into memory ({(available_bytes() or 0) / GB:.1f} GB are available); split the"
            " file and read a part of it"
        )

    def _too_long(self, line: int) -> str:
        return (
            f"{self.path}, line {line} is longer than {LONGEST_LINE // 2**20} MiB, so it is not a request; name a log or a trace"
            " with one request a line"
        )
