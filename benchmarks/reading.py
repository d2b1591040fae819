"""How fast each trace format is read on one core, and how much memory that takes.

Run from the repository root::

    python benchmarks/reading.py [--mb 200] [--only NAME]

Each file is generated (names, hashes and texts are random), read three times in a process of its own on one core, and deleted.
Speed is of the file's bytes, from opening to the finished `AccessLog`, without the start of the process and the compilation of
kernels. `orjson.loads` of each line of the same file, in turn with our readings, tells how fast the machine was (vLLM's log holds
no JSON, so its lines are only read). Results go to ``results/reading.json`` and ``.md``.
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

RESULTS = Path(__file__).parent / "results"
REPEATS = 3
"""Readings of each file; the fastest counts."""
WANTED = 150
"""MB/s that each format must reach."""
CHUNKS = 60
"""Most new chunks of a request, unless the format says otherwise."""
WORDS = tuple("".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz", k=3 + n % 7)) for n in range(4000))  # noqa: S311


class Prefixes:
    """Requests that share prefixes: half of them go on from an earlier one."""

    def __init__(self, seed: int, chunks: int = CHUNKS) -> None:
        self.chunks = chunks
        self.draw = random.Random(seed)  # noqa: S311  a workload
        self.number = 0
        self.recent: list[tuple[int, list[int]]] = []

    def __iter__(self) -> Iterator[tuple[int, int, list[int]]]:
        """Yield number, session and block ids of each request."""
        fresh = 0
        while True:
            if self.recent and self.draw.random() < 0.5:
                session, before = self.recent[self.draw.randrange(len(self.recent))]
            else:
                session, before = self.number, []
            more = self.draw.randrange(4, self.chunks)
            ids = [*before[: 5 * self.chunks], *range(fresh, fresh + more)]
            fresh += more
            self.recent = [*self.recent[-40:], (session, ids)]
            yield self.number, session, ids
            self.number += 1


def lookups(seed: int) -> Iterator[str]:
    """LMCache's lookup log."""
    names = Hashes(64)
    head = '"model_name": "m", "chunk_size": 256, "dtypes": ["torch.bfloat16"], "shapes": [[2, 32, 256, 1024]]'
    for number, _, ids in Prefixes(seed):
        listed = ", ".join(names[one] for one in ids)
        yield (
            f'{{"timestamp": {1.76e9 + number / 7:.3f}, "request_id": "r-{number}", {head}, "seq_len": {len(ids) * 256 + 9},'
            f' "chunk_hashes": [{listed}]}}\n'
        )


def statistics(seed: int) -> Iterator[str]:
    """Chunk statistics of in-process LMCache."""
    names = Hashes(16)
    for number, _, ids in Prefixes(seed):
        listed = ", ".join(names[one] for one in ids)
        yield f'{{"timestamp": {1.76e9 + number / 7:.3f}, "lookup_id": "r-{number}", "chunk_hashes": [{listed}]}}\n'


def mooncake(seed: int) -> Iterator[str]:
    """Mooncake."""
    for number, _, ids in Prefixes(seed):
        yield f'{{"timestamp": {number * 140}, "input_length": {len(ids) * 512}, "output_length": 80, "hash_ids": {ids}}}\n'


def bailian(seed: int) -> Iterator[str]:
    """Qwen-Bailian."""
    for number, _, ids in Prefixes(seed):
        yield (
            f'{{"chat_id": {number}, "parent_chat_id": -1, "timestamp": {number * 0.14:.3f}, "input_length": {len(ids) * 16},'
            f' "output_length": 80, "type": "text", "turn": 1, "hash_ids": {ids}}}\n'
        )


def sessions(seed: int) -> Iterator[str]:
    """AIPerf, a request a line."""
    known: set[int] = set()
    for number, session, ids in Prefixes(seed):
        when = f'"delay": {number % 900}' if session in known else f'"timestamp": {number * 140}'
        known.add(session)
        lengths = f'"input_length": {len(ids) * 512}, "output_length": 80'
        yield f'{{"session_id": "s{session}", {when}, {lengths}, "hash_ids": {ids}}}\n'


def turns(seed: int) -> Iterator[str]:
    """AIPerf, a session a line."""
    for number, session, ids in Prefixes(seed):
        parts = [ids[: len(ids) // 2], ids]
        told = ", ".join(
            f'{{"timestamp": {number * 140 + 9000 * place}, "input_length": {len(one) * 512},'
            f' "output_length": 80, "hash_ids": {one}}}'
            for place, one in enumerate(parts)
        )
        yield f'{{"session_id": "s{session}-{number}", "turns": [{told}]}}\n'


def weka(seed: int) -> Iterator[str]:
    """Weka, a conversation a line; coding agents have a thousand blocks of 64 tokens a request."""
    for number, _, ids in Prefixes(seed, 600):
        parts = [ids[: len(ids) // 3 + 1], ids[: len(ids) // 2 + 1], ids]
        told = ", ".join(
            f'{{"t": {place * 9.5}, "in": {len(one) * 64}, "out": 80, "type": "s", "model": "m", "hash_ids": {one}}}'
            for place, one in enumerate(parts)
        )
        yield f'{{"id": "c{number}", "block_size": 64, "hash_id_scope": "local", "requests": [{told}]}}\n'


def openai(seed: int) -> Iterator[str]:
    """OpenAI requests, text by characters."""
    for number, _, ids in Prefixes(seed):
        messages = [{"role": "user", "content": text_of(one)} for one in ids[-20:]]
        yield json.dumps({"timestamp": 1.76e9 + number, "model": "m", "messages": messages}) + "\n"


def sharegpt(seed: int) -> Iterator[str]:
    """ShareGPT, a conversation a line."""
    for number, _, ids in Prefixes(seed):
        said = [{"from": ("human", "gpt")[place % 2], "value": text_of(one)} for place, one in enumerate(ids[:6])]
        yield json.dumps({"id": str(number), "conversations": said}) + "\n"


def vllm(seed: int) -> Iterator[str]:
    """Write vLLM's request log."""
    for number, _, ids in Prefixes(seed):
        prompt = " ".join(text_of(one) for one in ids[-20:])
        clock = f"10:{number // 60 % 60:02}:{number % 60:02}"
        yield f"INFO 11-28 {clock} logger.py:42] Received request r-{number}: prompt: {prompt!r}, params: x\n"


class Hashes:
    """The hash of each id, made once."""

    def __init__(self, digits: int) -> None:
        self.digits, self.known = digits, list[str]()

    def __getitem__(self, number: int) -> str:
        while number >= len(self.known):
            self.known.append(f'"0x{random.Random(len(self.known)).getrandbits(4 * self.digits):0{self.digits}x}"')  # noqa: S311
        return self.known[number]


def text_of(number: int) -> str:
    """Some text, the same for the same number."""
    draw = random.Random(number)  # noqa: S311  a workload
    return " ".join(draw.choices(WORDS, k=80))


FORMATS: dict[str, Callable[[int], Iterator[str]]] = {
    "lookup log": lookups, "chunk statistics": statistics, "Mooncake": mooncake, "Qwen-Bailian": bailian,
    "AIPerf, a request a line": sessions, "AIPerf, a session a line": turns, "Weka": weka, "OpenAI text": openai,
    "ShareGPT": sharegpt, "vLLM request log": vllm,
}  # fmt: skip


def written(name: str, path: Path, size: int) -> None:
    """Write a file of about this many bytes: a part with its own ids, repeated with other ids would hide nothing, so none is."""
    with path.open("w", encoding="utf-8") as file:
        done = 0
        for line in FORMATS[name](7):
            done += file.write(line)
            if done >= size:
                return


def read(path: Path, warm: Path) -> dict[str, Any]:
    """Read a file on one core; called in a process of its own."""
    from agent_tools.workload.readers import read_trace  # noqa: PLC0415

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    read_trace(warm)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = peer = float("inf")
    for _ in range(REPEATS):  # other programs share the caches and the memory of the machine
        busy = time.process_time()
        log = read_trace(path)
        cpu = min(cpu, time.process_time() - busy)
        busy = time.process_time()
        with path.open("rb") as file:
            for line in file:
                if line[:1] == b"{":
                    orjson.loads(line)
        peer = min(peer, time.process_time() - busy)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "mb": path.stat().st_size / 1e6, "cpu_seconds": cpu, "orjson_cpu_seconds": peer, "requests": len(log),
        "chunks": len(log.chunk_ids), "memory_mb": (peak - before) / 1024,
    }  # fmt: skip


def measured(name: str, size: int) -> dict[str, Any]:
    """Generate, read in a process of its own, delete."""
    with tempfile.TemporaryDirectory() as folder:
        path, warm = Path(folder) / "log.jsonl", Path(folder) / "warm.jsonl"
        written(name, path, size)
        written(name, warm, 200_000)
        command = [sys.executable, __file__, "--read", str(path), str(warm)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return {"format": name, "mb_per_cpu_second": found["mb"] / found["cpu_seconds"], **found}


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure all formats and write the results."""
    given = argparse.ArgumentParser()
    given.add_argument("--mb", type=float, default=200)
    given.add_argument("--only", action="append")
    given.add_argument("--read", nargs=2)
    asked = given.parse_args()
    if asked.read:
        print(json.dumps(read(*map(Path, asked.read))))
        return
    lines = [
        "# Reading traces: speed and memory",
        "",
        f"Python {platform.python_version()}, one core of {os.cpu_count()} ({processor()}), files of about {asked.mb:g} MB, the"
        f" fastest of three readings, from the page cache. Wanted: {WANTED} MB/s. Speed is per second of processor time.",
        "",
        "| format | MB | requests | chunks | MB/s | orjson.loads by line, MB/s | memory, MB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    found = []
    for name in asked.only or FORMATS:
        one = measured(name, round(asked.mb * 1e6))
        found.append(one)
        lines.append(
            f"| {name} | {one['mb']:.0f} | {one['requests']:,} | {one['chunks']:,} | {one['mb_per_cpu_second']:.0f}"
            f" | {one['mb'] / one['orjson_cpu_seconds']:.0f} | {one['memory_mb']:.0f} |"
        )
        print(lines[-1], flush=True)
    if not asked.only:
        (RESULTS / "reading.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (RESULTS / "reading.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
