"""Generated traffic of multi-turn agents: shared system prompts, growing histories, tool outputs, pauses, several tenants."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from agent_tools.models.config import Frozen

from .access_log import AccessLog, renumber

_SPACE = 2**32
"""Chunk numbers reserved for each system prompt and each conversation, before they are renumbered."""

_Tokens = Annotated[int, Field(gt=0, le=2**24)]
_Seconds = Annotated[float, Field(ge=0, le=86_400)]


class AgentTraffic(Frozen):
    """Agents that talk in turns. Every turn sends the whole conversation so far as its prompt.

    A conversation begins with one of its tenant's system prompts, chosen by popularity. Each turn appends a person's message or a
    tool's output, then the model's answer. A conversation ends after its turns, or when the next turn would not fit into the
    context; then another one takes its place. A log-normal factor varies lengths and pauses around their means.
    """

    requests: Annotated[int, Field(gt=0, le=10_000_000)] = 2_000
    """Number of requests (turns) to generate."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The same seed and parameters give the same traffic on every machine."""
    chunk_size: _Tokens = 256
    """Tokens per chunk."""
    tenants: Annotated[int, Field(gt=0, le=1_000)] = 2
    """Number of tenants. Each has its own cache salt, so they share nothing, not even equal system prompts."""
    conversations: Annotated[int, Field(gt=0, le=100_000)] = 24
    """Number of open conversations at any time, over all tenants."""
    system_prompts: Annotated[int, Field(gt=0, le=10_000)] = 4
    """Number of system prompts of each tenant (the agents that it runs)."""
    prompt_skew: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Popularity of the system prompts: the k-th is chosen in proportion to ``k ** -prompt_skew``; 0 is uniform."""
    system_tokens: _Tokens = 2_000
    """Mean length of a system prompt with its tool descriptions, tokens."""
    turns: Annotated[float, Field(ge=1, le=10_000)] = 10
    """Mean number of turns in a conversation."""
    user_tokens: _Tokens = 80
    """Mean length of a person's message, tokens."""
    tool_tokens: _Tokens = 600
    """Mean length of a tool's output, tokens."""
    answer_tokens: _Tokens = 200
    """Mean length of the model's answer or tool call, tokens."""
    tool_share: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of the turns after the first that answer a tool's output instead of a person."""
    think_seconds: _Seconds = 20
    """Mean pause before a person's next message, seconds."""
    tool_seconds: _Seconds = 2
    """Mean duration of a tool call, seconds."""
    answer_tokens_per_second: Annotated[float, Field(gt=0)] = 60
    """The model's answering speed, tokens per second."""
    spread: Annotated[float, Field(ge=0, le=3)] = 0.7
    """Standard deviation of the logarithm of every length and pause. 0: all lengths and pauses equal their means."""
    context_tokens: _Tokens = 32_000
    """Longest prompt, tokens. A conversation that would exceed it ends."""

    @model_validator(mode="after")
    def _fits(self) -> "AgentTraffic":
        if self.context_tokens < 2 * (self.system_tokens + self.user_tokens):
            msg = (
                f"context_tokens ({self.context_tokens}) must be at least twice system_tokens + user_tokens"
                f" ({self.system_tokens} + {self.user_tokens}), otherwise conversations end before they begin"
            )
            raise ValueError(msg)
        return self

    def generate(self) -> AccessLog:
        """Return the traffic as an access log: one lookup per turn, from time 0, sorted by time."""
        traffic = _Traffic(self)
        turns = np.array([traffic.next_turn() for _ in range(self.requests)])
        tokens, milliseconds, tenants, prompts, conversations, system_tokens = turns.T
        counts = tokens // self.chunk_size
        offsets = np.concatenate(([0], np.cumsum(counts)))
        index = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        in_system_prompt = (index + 1) * self.chunk_size <= np.repeat(system_tokens, counts)
        owners = np.where(in_system_prompt, np.repeat(prompts, counts), np.repeat(conversations, counts))
        chunk_ids, _ = renumber(owners * _SPACE + index)
        return AccessLog(
            chunk_size=self.chunk_size,
            chunk_ids=chunk_ids,
            offsets=offsets,
            tokens=tokens,
            timestamps=(milliseconds - milliseconds[0]) / 1000,
            tenants=tenants.astype(np.int16),
            models=np.zeros(len(tokens), dtype=np.int16),
            tenant_names=tuple(f"tenant-{number + 1}" for number in range(self.tenants)) if self.tenants > 1 else ("",),
        )


@dataclass
class _Conversation:
    number: int
    tenant: int
    prompt: int
    """Number of the conversation's system prompt, over all tenants."""
    tokens: int
    """Length of the prompt of the conversation's next turn, tokens."""
    turns_left: int


class _Traffic:
    """The open conversations, and which of them speaks next."""

    def __init__(self, settings: AgentTraffic) -> None:
        self._settings = settings
        self._random = np.random.Generator(np.random.PCG64(settings.seed))
        shares = np.arange(1, settings.system_prompts + 1) ** -settings.prompt_skew
        self._popularity = (np.cumsum(shares) / shares.sum()).tolist()
        prompts = settings.tenants * settings.system_prompts
        self._system_tokens = [min(self._tokens(settings.system_tokens), settings.context_tokens // 2) for _ in range(prompts)]
        self._next_number = prompts
        slots = range(settings.conversations)
        self._conversations = [self._begin(slot % settings.tenants) for slot in slots]
        self._turns = [(self._first_time(), slot) for slot in slots]
        heapify(self._turns)

    def next_turn(self) -> tuple[int, int, int, int, int, int]:
        """Return the next request: tokens, time (ms), tenant, system prompt, conversation, tokens of the system prompt."""
        milliseconds, slot = self._turns[0]
        now = self._conversations[slot]
        turn = (now.tokens, milliseconds, now.tenant, now.prompt, now.number, self._system_tokens[now.prompt])
        heapreplace(self._turns, (milliseconds + self._continue(slot), slot))
        return turn

    def _continue(self, slot: int) -> int:
        """Prepare the next turn of a slot, in a new conversation if needed. Return the milliseconds until then."""
        settings, now = self._settings, self._conversations[slot]
        answer = self._tokens(settings.answer_tokens)
        uses_tool = self._random.random() < settings.tool_share
        now.tokens += answer + self._tokens(settings.tool_tokens if uses_tool else settings.user_tokens)
        now.turns_left -= 1
        if now.turns_left == 0 or now.tokens > settings.context_tokens:
            self._conversations[slot], uses_tool = self._begin(now.tenant), False
        pause = (settings.tool_seconds if uses_tool else settings.think_seconds) * self._factor()
        return round(1000 * (answer / settings.answer_tokens_per_second + pause))

    def _begin(self, tenant: int) -> _Conversation:
        settings = self._settings
        prompt = tenant * settings.system_prompts + bisect_right(
            self._popularity, self._random.random(), hi=settings.system_prompts - 1
        )
        tokens = min(self._system_tokens[prompt] + self._tokens(settings.user_tokens), settings.context_tokens)
        number, self._next_number = self._next_number, self._next_number + 1
        return _Conversation(number, tenant, prompt, tokens, int(self._random.geometric(1 / settings.turns)))

    def _first_time(self) -> int:
        """Return when a slot's first conversation begins, ms. The slots start spread over the mean length of a conversation."""
        settings = self._settings
        pause = settings.tool_share * settings.tool_seconds + (1 - settings.tool_share) * settings.think_seconds
        turn = settings.answer_tokens / settings.answer_tokens_per_second + pause
        return round(1000 * settings.turns * turn * self._random.random())

    def _tokens(self, mean: int) -> int:
        return max(1, round(mean * self._factor()))

    def _factor(self) -> float:
        """Return a log-normal factor of mean 1."""
        spread = self._settings.spread
        return math.exp(self._random.normal(-spread * spread / 2, spread))
