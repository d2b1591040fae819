"""The error of predicting from text without a tokenizer, on real tokenizers and real texts of several languages.

Run from the repository root, with a folder for each language that holds man pages (plain or gzip) or source code, and
tokenizers::

    apt-get download manpages manpages-de manpages-zh      # unpack each with dpkg-deb -x PACKAGE FOLDER
    pip download --no-deps dashscope                       # its wheel has dashscope/resources/qwen.tiktoken
    PYTHONPATH=. python benchmarks/text.py --tokenizer qwen.tiktoken --tokenizer tokenizer.json \
        English=manpages German=manpages-de Chinese=manpages-zh "Python code"=/usr/lib/python3/dist-packages

Each language gives a log of chat conversations: shared system prompts, documents that several conversations quote, and turns
that repeat what was said before. The log is read with the tokenizer and without it. The error is the difference of hit rates of
an LRU: of an unlimited one, and over caches of 1/50 of the distinct tokens up to all of them. Results go to
``results/text.json`` and ``.md``. A ``.tiktoken`` file is turned into a ``tokenizer.json`` first.
"""

import argparse
import base64
import gzip
import json
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from agent_tools.prediction.hit_rate_curve import hit_rate_curve
from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.readers import read_trace

RESULTS = Path(__file__).parent / "results"
CONVERSATIONS, TURNS = 100, 5
SYSTEMS, DOCUMENTS = 6, 30
MOST_TEXT = 3_000_000
"""Characters that are read of a language."""
SHARES = np.geomspace(0.02, 1, 25)
"""Capacities that are compared, as shares of the distinct tokens."""
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Qwen's tokenizer cuts text into words (dashscope, ``tokenizers/qwen_tokenizer.py``)."""


def text_of(folder: Path) -> str:
    """Return the prose of man pages, or source code as it is."""
    found, length = [], 0
    for path in sorted(folder.rglob("*")):
        if path.suffix not in {".gz", ".py"} or not path.is_file() or length > MOST_TEXT:
            continue
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8", "ignore")
        found.append(text if path.suffix == ".py" else prose(text))
        length += len(found[-1])
    return "\n".join(found)


def prose(page: str) -> str:
    """Return a man page without the marks of its markup."""
    lines = [line for line in page.splitlines() if not line.startswith(("'\\\"", '.\\"', ".SH", ".TH"))]
    text = "\n".join(re.sub(r"^\.[A-Za-z]+ ?", "", line) for line in lines)
    return re.sub(r"\\f[A-Z]|\\&|\\\(..", "", text).replace("\\-", "-").replace("\\ ", " ")


def conversations(text: str, path: Path) -> None:
    """Write a log of conversations made of this text."""
    draw, at = random.Random(5), 0  # noqa: S311  a workload

    def part(least: int, most: int) -> str:
        nonlocal at
        length = draw.randrange(least, most)
        if at + length > len(text):
            at = draw.randrange(1000)
        at += length
        return text[at - length : at]

    systems = [part(2000, 8000) for _ in range(SYSTEMS)]
    documents = [part(2000, 10_000) for _ in range(DOCUMENTS)]
    lines = []
    for number in range(CONVERSATIONS):
        said = [{"role": "system", "content": systems[draw.randrange(SYSTEMS)]}]
        question = documents[int(DOCUMENTS * draw.random() ** 2)]
        start = 60.0 * number
        for turn in range(draw.randrange(1, 2 * TURNS)):
            said = [*said, {"role": "user", "content": question + part(100, 800)}]
            lines.append((start + 90 * turn, {"model": "m", "messages": said}))
            said = [*said, {"role": "assistant", "content": part(300, 2000)}]
            question = ""
    path.write_text(
        "".join(json.dumps({"timestamp": 1.76e9 + when} | body) + "\n" for when, body in sorted(lines, key=lambda one: one[0])),
        encoding="utf-8",
    )


def compared(name: str, exact: AccessLog, approximate: AccessLog) -> dict[str, Any]:
    """Return the errors of the approximation."""
    curve, other = hit_rate_curve(exact), hit_rate_curve(approximate)
    chunks = SHARES * exact.unique_chunks
    errors = [100 * (other.hit_rate(one) - curve.hit_rate(one)) for one in chunks]
    return {
        "language": name,
        "requests": len(exact),
        "tokens": int(exact.tokens.sum()),
        "token_ratio": float(approximate.tokens.sum() / exact.tokens.sum()),
        "ceiling": curve.ceiling(),
        "ceiling_error": 100 * (other.ceiling() - curve.ceiling()),
        "largest_error": max(errors, key=abs),
        "mean_error": float(np.mean(np.abs(errors))),
    }


def tokenizer_file(path: Path, folder: Path) -> Path:
    """Return a ``tokenizer.json``, made from a ``.tiktoken`` file if it is one."""
    if path.suffix != ".tiktoken":
        return path
    import tokenizers  # noqa: PLC0415  an extra
    from tokenizers import Regex, decoders, models, pre_tokenizers  # noqa: PLC0415

    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, path.read_text().splitlines())}
    shown = byte_names()
    vocabulary = {"".join(shown[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda one: one[1]):
        if len(token) > 1:
            left, right = halves(token, ranks, rank)
            merges.append(("".join(shown[byte] for byte in left), "".join(shown[byte] for byte in right)))
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    file = folder / f"{path.stem}.json"
    made.save(str(file))
    return file


def halves(token: bytes, ranks: dict[bytes, int], limit: int) -> tuple[bytes, bytes]:
    """Return the two parts that byte-pair encoding joins last to make this token."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        best = min(
            range(len(parts) - 1),
            key=lambda place: ranks.get(parts[place] + parts[place + 1], limit),
        )
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def byte_names() -> dict[int, str]:
    """Return the character by which byte-level encoding writes each byte (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def table(found: list[dict[str, Any]]) -> str:
    """Return the results as a page."""
    lines = [
        "# Predictions from text without a tokenizer: the error",
        "",
        f"4 bytes of UTF-8 count as a token. {found[0]['requests']} chat requests of each language, chunks of 256 tokens. Errors"
        " are differences of hit rates to those with the tokenizer, points: of an unlimited cache, and over LRU caches of 1/50 of"
        " the distinct tokens up to all of them. The largest error is where the curve is steepest. Tokens are ours against the"
        " tokenizer's.",
        "",
        "Texts: man pages of Debian's manpages, manpages-de and manpages-zh, and Python's asyncio. qwen.tiktoken is of dashscope"
        " 2.0.2, claude.json the tokenizer.json of anthropic 0.38.0.",
        "",
        "| text | tokenizer | tokens | hit rate, unlimited | error, unlimited | mean error by size | largest error by size |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {one['language']} | {one['tokenizer']} | {one['token_ratio'] - 1:+.0%} | {one['ceiling']:.1%}"
        f" | {one['ceiling_error']:+.2f} | {one['mean_error']:.1f} | {one['largest_error']:+.1f} |"
        for one in found
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure each language with each tokenizer, and write the results."""
    given = argparse.ArgumentParser()
    given.add_argument("--tokenizer", type=Path, action="append", required=True)
    given.add_argument("texts", nargs="+", help="LANGUAGE=FOLDER")
    asked = given.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = {path.name: tokenizer_file(path, Path(folder)) for path in asked.tokenizer}
        for name, _, where in (one.partition("=") for one in asked.texts):
            log = Path(folder) / "log.jsonl"
            conversations(text_of(Path(where)), log)
            approximate = read_trace(log)
            for tokenizer, file in files.items():
                found.append({"tokenizer": tokenizer} | compared(name, read_trace(log, tokenizer=file), approximate))
                print(found[-1], flush=True)
    (RESULTS / "text.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "text.md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
