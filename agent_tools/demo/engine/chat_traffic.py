"""Multi-turn agent conversations, the same each time, sent to an OpenAI server as streaming chat requests; each is timed.

The model's answers do not become part of a conversation. Scripted answers do, so the requests are the same whatever the model
says. Each prompt of a conversation is the beginning of its next prompt, and all conversations begin with the same system prompt.
"""

import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import anyio

from agent_tools.errors import UnsupportedError

from .tiny_model import WORDS

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Message = dict[str, Any]


@dataclass(frozen=True)
class ChatRequest:
    """One request: the conversation so far, with a new last message."""

    conversation: int
    turn: int
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class ChatAnswer:
    """The outcome of one request. Times are in seconds."""

    conversation: int
    turn: int
    started: float
    """Unix time at which the request was sent."""
    ttft: float | None
    """Time from sending the request to the first token; ``None`` if no token came."""
    total: float
    """Time from sending the request to the end of the answer."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the engine took from a cache, as it reports itself."""
    error: str | None = None


@dataclass(frozen=True)
class ChatTraffic:
    """Agents at work: each reads its own document and calls tools, turn after turn. Several agents work at the same time.

    Lengths are in words. Each word is one token of the tiny model.
    """

    conversations: int = 8
    turns: int = 6
    system_words: int = 520
    """Length of the system prompt, which all conversations share: who the agent is, and its tools."""
    document_words: int = 1800
    """Length of the document that an agent reads at the start of a conversation."""
    turn_words: int = 100
    """Length of a tool's output, new in each turn."""
    answer_words: int = 20
    """Length of the agent's scripted answer."""
    seed: int = 0
    """Seed of the documents and of the order. The system prompt is always the same."""

    def requests(self) -> list[ChatRequest]:
        """Return all requests in the order in which they are sent: the conversations interleave in random order."""
        chance = random.Random(self.seed)  # noqa: S311  not for cryptography
        order = [number for number in range(self.conversations) for _ in range(self.turns)]
        chance.shuffle(order)
        conversations = [self._conversation(number) for number in range(self.conversations)]
        return [next(conversations[number]) for number in order]

    @property
    def tokens(self) -> int:
        """Return about how many distinct tokens all prompts have: what a cache that holds everything would hold."""
        own = self.document_words + self.turns * (self.turn_words + self.answer_words)
        return self.system_words + self.conversations * own

    @property
    def longest_prompt(self) -> int:
        """Return about how many tokens the last prompt of a conversation has."""
        return self.system_words + self.document_words + self.turns * (self.turn_words + self.answer_words)

    def with_seed(self, seed: int) -> "ChatTraffic":
        """Return the same traffic with other documents, in another order."""
        return replace(self, seed=seed)

    def _conversation(self, number: int) -> Iterator[ChatRequest]:
        says = random.Random(f"{self.seed}/{number}")  # noqa: S311
        messages: list[Message] = [
            {"role": "system", "content": text(random.Random("system"), self.system_words)},  # noqa: S311
            {"role": "user", "content": text(says, self.document_words + self.turn_words)},
        ]
        for turn in range(self.turns):
            yield ChatRequest(number, turn, tuple(messages))
            call = {"id": f"call-{turn}", "type": "function", "function": {"name": "read", "arguments": "{}"}}
            messages += [
                {"role": "assistant", "content": text(says, self.answer_words), "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": text(says, self.turn_words)},
            ]


def text(chance: random.Random, words: int) -> str:
    """Return a text of the given number of words of the tiny model."""
    return " ".join(chance.choices(WORDS, k=words))


def client(base_url: str) -> "AsyncOpenAI":
    """Return an OpenAI client for a server on this machine, without a key. Retries are off because they would hide failures.

    Raises:
        UnsupportedError: The package openai is not installed.
    """
    try:
        from openai import AsyncOpenAI  # noqa: PLC0415  an extra
    except ImportError as error:
        raise UnsupportedError("the engine demo needs the package openai: `make demo-engine` installs it") from error
    return AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=600)


async def send(
    openai: "AsyncOpenAI",
    model: str,
    requests: Sequence[ChatRequest],
    *,
    clients: int = 1,
    answer_tokens: int = 4,
    pause: float = 0.0,
    on_answer: Callable[[ChatAnswer], None] = lambda _: None,
) -> list[ChatAnswer]:
    """Send all requests and return the answers in the order of sending. Each client sends its next request after an answer.

    Args:
        openai: The client to send with; see `client`.
        model: Name of the model on the server.
        requests: The requests. One client sends all requests of a conversation, so its turns follow each other.
        clients: Number of requests in progress at the same time. With one client, no request waits in the engine.
        answer_tokens: Length of each answer, tokens.
        pause: Seconds that each client waits after an answer, like an agent that runs a tool.
        on_answer: Called with each answer.
    """
    answers: list[ChatAnswer] = []

    async def work(mine: Sequence[ChatRequest]) -> None:
        for request in mine:
            answers.append(await _ask(openai, model, request, answer_tokens))
            on_answer(answers[-1])
            await anyio.sleep(pause)

    async with anyio.create_task_group() as tasks:
        for number in range(clients):
            tasks.start_soon(work, [one for one in requests if one.conversation % clients == number])
    return sorted(answers, key=lambda answer: answer.started)


async def _ask(openai: "AsyncOpenAI", model: str, request: ChatRequest, answer_tokens: int) -> ChatAnswer:
    """Send one request. An error becomes part of the answer."""
    from openai import OpenAIError  # noqa: PLC0415

    answer = ChatAnswer(request.conversation, request.turn, started=time.time(), ttft=None, total=0.0)
    began = time.perf_counter()
    try:
        stream: AsyncIterator[Any] = await openai.chat.completions.create(
            model=model,
            messages=list(request.messages),
            max_tokens=answer_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            # Options of vLLM: every answer has its full length, and each of its tokens arrives separately.
            extra_body={"ignore_eos": True, "skip_special_tokens": False},
        )
        async for event in stream:
            if answer.ttft is None and event.choices and event.choices[0].delta.content:
                answer = replace(answer, ttft=time.perf_counter() - began)
            if event.usage is not None:
                details = event.usage.prompt_tokens_details
                cached = (details.cached_tokens if details else None) or 0
                answer = replace(answer, prompt_tokens=event.usage.prompt_tokens, cached_tokens=cached)
    except OpenAIError as error:
        answer = replace(answer, error=f"{type(error).__name__}: {error}")
    return replace(answer, total=time.perf_counter() - began)
