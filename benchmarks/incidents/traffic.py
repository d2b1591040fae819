"""Requests to provoke incidents with. Sizes are chunks of 256 tokens, each 32 KiB of KV: 32 of them are one MB."""

from collections.abc import Iterator, Sequence
from itertools import chain, count, cycle

from real_logs import log_of

from agent_tools.workload.access_log import AccessLog
from agent_tools.workload.generate import AgentTraffic

Prompt = range | list[int]


def agents(requests: int = 700, *, conversations: int = 40, tenants: int = 1, seed: int = 1) -> AccessLog:
    """Agents that talk in turns, 24 chunks a prompt, 10 of them new; 40 conversations at once want about 32 MB."""
    return AgentTraffic(
        requests=requests, conversations=conversations, tenants=tenants, turns=6, tool_tokens=1500, spread=0.3, seed=seed
    ).generate()


class Documents:
    """Prompts that share nothing with each other."""

    def __init__(self) -> None:
        self._given = count()

    def new(self, chunks: int) -> range:
        """One that nobody asked for before; `chunks` is at most 10,000."""
        start = 10_000 * next(self._given)
        return range(start, start + chunks)


def in_turn(documents: Documents, *, at_once: int, times: int, chunks: int) -> Iterator[Prompt]:
    """Without end: so many documents are asked for in turn, each so many times, then as many new ones."""
    while True:
        together = [documents.new(chunks) for _ in range(at_once)]
        yield from together * times


def mixed(
    requests: int,
    *streams: tuple[Iterator[Prompt], int],
    tail: int = 0,
    first: Sequence[Prompt] = (),
    tenants: tuple[str, ...] = ("",),
) -> AccessLog:
    """The first requests of several streams: of each so many, then of the next, and again.

    Each prompt has `tail` tokens more; `first` comes before all; tenants take turns.
    """
    order = cycle(chain.from_iterable([stream] * weight for stream, weight in streams))
    return log_of(*first, *(next(next(order)) for _ in range(requests)), tail=tail, tenants=tenants)


def all_new(documents: Documents, chunks: int) -> Iterator[Prompt]:
    """Without end: prompts that nobody asks for twice."""
    while True:
        yield documents.new(chunks)


def over_and_over(prompts: Sequence[Prompt]) -> Iterator[Prompt]:
    """Without end: the same prompts in the same order."""
    return cycle(prompts)
