"""Recorded requests, gathered piece by piece from any format, as an access log.

Readers fill columns. What all formats need is here once: dense ids, incomplete last blocks, ids that are not chained, times of
closed-loop sessions, order in time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agent_tools.errors import WorkloadError
from agent_tools.plain import plain
from agent_tools.workload.access_log import AccessLog, in_time_order

from .block_ids import BlockNumbers, chained, first_unchained, is_dense, leading, prefixes_by_depth
from .times import order_remarks, placed, with_time_remarks

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReadOptions:
    """What a person says about a file that it does not say itself."""

    chunk_size: int | None = None
    """Tokens per chunk."""
    skip_bad_lines: bool = False
    """Leave broken lines out and count them, instead of raising."""
    chain: bool = False
    """Take ids for single blocks, and chain them."""
    time_unit: float | None = None
    """Seconds per unit of the file's times; by default the unit of its format."""
    starts_per_second: float = 1.0
    """Starts of sessions a second, for a file without times."""
    tokenizer: Path | None = None
    """A ``tokenizer.json``, for files that hold text."""


@dataclass(frozen=True)
class Columns:
    """Some requests, column by column."""

    ids: Int64
    """(ids,) block ids of all requests, one request after the other."""
    counts: Int64
    """(requests,) how many ids each request has."""
    tokens: Int64
    """(requests,) prompt length, tokens."""
    seconds: Floats
    """(requests,) start of each request, seconds; NaN if it depends on the session's turn before, or is not stated."""
    outputs: Int64
    """(requests,) tokens of each answer."""
    think: Floats
    """(requests,) seconds between the answer to the turn before and this request; NaN if not stated."""
    sessions: list[object]
    """(requests,) name of each request's session; ``None`` for no session."""
    models: list[str]
    """(requests,) model that each request names; "" for none."""
    numbers: Int64
    """(requests,) line of each request in its file."""


@dataclass
class Requests:
    """The requests of one trace. Readers call `add`, and at the end `log`."""

    source: str
    """The format, in words."""
    options: ReadOptions
    assumed: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    bad_lines: int = 0
    unit: float = 1.0
    """Seconds in the unit that the file's times were read in."""

    def __post_init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._numbers = BlockNumbers()
        self._models: dict[object, int] = {}
        self._sessions: dict[object, int] = {}

    def __len__(self) -> int:
        return sum(len(piece.tokens) for piece in self._pieces)

    def add(self, columns: Columns, *, path: Path, namespaces: Int64 | None = None) -> None:
        """Add requests of one file.

        Args:
            columns: The requests.
            path: Their file.
            namespaces: (ids,) namespace of each id: the same id in two namespaces is two blocks. Default: one for all.
        """
        ids = self._numbers.of(columns.ids, namespaces)
        self._pieces.append(
            _Piece(
                path,
                ids,
                columns.counts,
                columns.tokens,
                columns.seconds,
                columns.outputs.astype(np.int32),
                columns.think,
                _numbered(columns.sessions, self._sessions),
                _numbered(columns.models, self._models).astype(np.int16),
                columns.numbers,
            )
        )

    def block_size(self, path: Path) -> int:
        """Return the tokens per block that agree with every request: each lists the floor or ceiling of ``tokens / size`` ids.

        Raises:
            WorkloadError: No power of two agrees, or several do.
        """
        tokens, listed = self._column("tokens"), self._column("counts")
        sizes = [size for size in BLOCK_SIZES.tolist() if _agrees(size, tokens, listed).all()]
        if len(sizes) == 1:
            return int(sizes[0])
        if sizes:
            reason = f"its requests are too short to distinguish blocks of {sizes[0]} tokens from blocks of {sizes[1]}"
        else:
            reason = "no power of two fits the hash_ids of every line"
        msg = f"the tokens per block of {path} cannot be determined: {reason}. Give them with chunk_size (--chunk-size)."
        raise WorkloadError(msg)

    def too_few_ids(self, size: int) -> list[tuple[Path, int, str]]:
        """Leave out requests that list fewer ids than they have whole blocks. Return file, line and what is wrong with each."""
        wrong: list[tuple[Path, int, str]] = []
        for place, piece in enumerate(self._pieces):
            whole = piece.tokens // size
            good = piece.counts >= whole
            if good.all():
                continue
            wrong += [
                (piece.path, int(number), f"{listed} hash_ids for {blocks} whole blocks of {size} tokens")
                for number, listed, blocks in zip(piece.numbers[~good], piece.counts[~good], whole[~good], strict=True)
            ]
            self._pieces[place] = piece.only(good)
        return wrong

    def log(self, path: Path, size: int) -> AccessLog:
        """Return the requests as a log with chunks of `size` tokens, in the order of time.

        Raises:
            WorkloadError: The ids do not stand for prefixes, and the options do not ask to chain them.
        """
        tokens, listed = self._column("tokens"), self._column("counts")
        whole = np.minimum(listed, tokens // size)
        offsets = np.concatenate(([0], np.cumsum(whole)))
        chunk_ids = leading(self._column("ids"), listed, whole)
        chunk_ids = self._prefixes(path, chunk_ids, offsets)
        sessions = self._column("sessions") if self._sessions else None
        think = self._column("think")
        stated: Floats = self._column("seconds").astype(np.float64)
        seconds, assumed = placed(stated, sessions, think, self._column("outputs"), self.options.starts_per_second)
        self.assumed += assumed
        if sessions is None and not assumed:
            self.remarks += order_remarks(seconds, self._requests_of_files())
        log = AccessLog(
            chunk_size=size,
            chunk_ids=chunk_ids,
            offsets=offsets,
            tokens=tokens,
            timestamps=seconds,
            tenants=np.zeros(len(tokens), np.int16),
            models=self._column("models"),
            model_names=tuple(map(str, self._models)),
            bad_lines=self.bad_lines,
            remarks=tuple(self.remarks),
            source=self.source,
            assumed=tuple(self.assumed),
            sessions=sessions,
            think_seconds=think if np.isfinite(think).any() else None,
        )
        log = in_time_order(dense(log))
        return log if np.isnan(stated).all() else with_time_remarks(log, self.unit)

    def _column(self, name: str) -> Any:  # noqa: ANN401  an array whose type depends on the name
        return np.concatenate([getattr(piece, name) for piece in self._pieces])

    def _requests_of_files(self) -> list[int]:
        return [sum(len(piece.tokens) for piece in pieces) for _, pieces in groupby(self._pieces, lambda piece: piece.path)]

    def _prefixes(self, path: Path, ids: npt.NDArray[np.int32], offsets: Int64) -> npt.NDArray[np.int32]:
        if self.options.chain:
            self.assumed.append("ids stand for single blocks and were chained")
            return chained(ids, offsets)
        unique = int(ids.max()) + 1 if len(ids) else 0
        found = first_unchained(ids, offsets, unique)
        if found is None:
            return ids
        by_depth = prefixes_by_depth(ids, offsets)
        if by_depth is not None:
            self.remarks.append("an id at two depths of a prompt was counted as two blocks")
            return by_depth
        number, where = self._column("numbers")[found[0]], found[1] + 1
        raise WorkloadError(
            f"the hash_ids of {path} do not stand for prefixes: the {_th(where)} id of line {number} follows another id elsewhere"
            " or comes twice in one request. A KV cache reuses a block only behind the same blocks, so nothing can be predicted"
            " from them as they are. If each id is the hash of one block's own tokens, say so with chain (--chain)"
        )


BLOCK_SIZES = 2 ** np.arange(3, 17)
"""Block sizes in tokens that a trace is checked for: 8 to 65,536."""


@dataclass(frozen=True)
class _Piece:
    path: Path
    ids: npt.NDArray[np.int32]
    counts: Int64
    tokens: Int64
    seconds: Floats
    outputs: npt.NDArray[np.int32]
    think: Floats
    sessions: npt.NDArray[np.int32]
    models: npt.NDArray[np.int16]
    numbers: Int64

    def only(self, good: npt.NDArray[np.bool_]) -> "_Piece":
        columns = ("counts", "tokens", "seconds", "outputs", "think", "sessions", "models", "numbers")
        return replace(self, ids=self.ids[np.repeat(good, self.counts)], **{name: getattr(self, name)[good] for name in columns})


def dense(log: AccessLog) -> AccessLog:
    """Return the log with chunk ids numbered by first appearance and without gaps."""
    if is_dense(log.chunk_ids):
        return log
    return log.select(np.arange(len(log)))


def _agrees(size: int, tokens: Int64, listed: Int64) -> npt.NDArray[np.bool_]:
    agrees: npt.NDArray[np.bool_] = (listed == tokens // size) | (listed == -(-tokens // size))
    return agrees


def _numbered(names: Sequence[object], known: dict[object, int]) -> npt.NDArray[np.int32]:
    """Return the number of each name, and -1 for ``None``."""
    distinct = dict.fromkeys(names)
    fresh = [name for name in distinct if name is not None and name not in known]
    known.update(zip(fresh, range(len(known), len(known) + len(fresh)), strict=True))
    if len(distinct) == 1:
        return np.full(len(names), known.get(names[0], -1), np.int32)
    return np.fromiter(map(known.get, names, repeat(-1)), np.int32, len(names))


def _th(number: int) -> str:
    return f"{number}{'th' if 10 <= number % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def shown_models(log: AccessLog) -> str:
    """Return the models of a log in a few words; empty if it names none."""
    names = [plain(name) for name in log.model_names if name]
    return "" if not names else ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
