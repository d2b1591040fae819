"""Claims about the conversations that are sent to the engine."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_tools.demo.engine.chat_traffic import ChatAnswer, ChatRequest, ChatTraffic
from agent_tools.demo.engine.demo import Phase, own_cache_tokens, settings_for, ttft_of
from agent_tools.demo.engine.tiny_model import WORDS, Shape

SMALL = ChatTraffic(conversations=4, turns=3, system_words=300, document_words=500, turn_words=100, answer_words=10)


def words(request: ChatRequest) -> list[str]:
    """All that a request says, one token each, with who says it."""
    return list(itertools.chain.from_iterable((f"<|{one['role']}|>", *one["content"].split()) for one in request.messages))


def of_each_conversation(requests: list[ChatRequest]) -> Iterator[list[ChatRequest]]:
    for number in {one.conversation for one in requests}:
        yield [one for one in requests if one.conversation == number]


def test_the_same_seed_asks_the_same_and_another_one_something_else() -> None:
    assert SMALL.requests() == SMALL.requests()
    others = SMALL.with_seed(1).requests()
    mine = {" ".join(words(one)) for one in SMALL.requests()}
    assert not mine & {" ".join(words(one)) for one in others}


def test_a_conversations_prompt_is_the_beginning_of_its_next_one() -> None:
    requests = SMALL.requests()
    assert len(requests) == 4 * 3
    for turns in of_each_conversation(requests):
        assert [one.turn for one in turns] == [0, 1, 2]
        for earlier, later in itertools.pairwise(turns):
            assert words(later)[: len(words(earlier))] == words(earlier)
            assert len(words(later)) == len(words(earlier)) + 100 + 10 + 2, "a turn, an answer, and who said each"


def test_all_conversations_share_the_system_prompt_and_nothing_after_it() -> None:
    first = [words(turns[0]) for turns in of_each_conversation(SMALL.requests())]
    shared = 1 + SMALL.system_words
    assert len({tuple(one[: shared + 1]) for one in first}) == 1
    assert len({one[shared + 1] for one in first}) > 1
    assert words(SMALL.with_seed(7).requests()[0])[:shared] == first[0][:shared], "another seed has the same agent"


def test_the_conversations_are_in_progress_at_the_same_time() -> None:
    order = [one.conversation for one in ChatTraffic().requests()]
    returns = sum(a != b for a, b in itertools.pairwise(order))
    assert returns > len(order) / 2


def test_the_distinct_tokens_are_about_what_a_cache_of_everything_holds() -> None:
    last = [words(turns[-1]) for turns in of_each_conversation(SMALL.requests())]
    distinct = SMALL.system_words + sum(len(one) - SMALL.system_words for one in last)
    assert SMALL.tokens == pytest.approx(distinct, rel=0.05)


def test_every_word_is_one_token_of_the_tiny_model() -> None:
    assert len(set(WORDS)) == len(WORDS) == 8000
    said = {word for one in SMALL.requests() for word in words(one)}
    assert said - {"<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"} <= set(WORDS)


def test_the_first_l1_is_too_small_for_the_workload_and_the_operator_allows_one_that_is_not() -> None:
    settings = settings_for(SMALL, Path("not used"))
    (cache,) = settings.caches.values()
    needed = SMALL.tokens * Shape().kv_bytes_per_token / 2**20
    assert cache.embedded.l1_size_mb < needed / 2
    assert (cache.bounds.max_size_mb or 0) > needed / 0.8, "LMCache's default watermark"
    assert cache.engine is not None


def test_the_engines_own_cache_is_a_third_of_the_workload_and_holds_any_prompt_of_it() -> None:
    assert own_cache_tokens(ChatTraffic()) == ChatTraffic().tokens // 3
    for traffic in (SMALL, ChatTraffic(), ChatTraffic(conversations=1)):
        longest = max(len(words(one)) for one in traffic.requests())
        assert longest == pytest.approx(traffic.longest_prompt, rel=0.06)
        assert longest < own_cache_tokens(traffic)


def answer(ttft: float | None, started: float = 0.0) -> ChatAnswer:
    error = None if ttft is not None else "APIConnectionError: refused"
    return ChatAnswer(0, 0, started=started, ttft=ttft, total=(ttft or 0) + 0.5, error=error)


def test_times_are_those_of_the_requests_that_were_answered() -> None:
    times = ttft_of([answer(0.1), answer(0.3), answer(None), answer(0.2)])
    assert (times.mean, times.p50) == pytest.approx((200, 200))
    with pytest.raises(ValueError, match="refused"):
        ttft_of([answer(None)])


def test_a_phase_lasts_until_its_last_answer_has_ended() -> None:
    phase = Phase("before", [answer(0.1, started=10.0), answer(0.2, started=11.0), answer(None, started=12.0)])
    assert phase.seconds == pytest.approx(2.5)
    assert phase.errors == ["APIConnectionError: refused"]
