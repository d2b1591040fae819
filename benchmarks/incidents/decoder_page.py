"""The metrics of an engine with another connector, which a replay does not have."""

import time
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

RECORDED_PAGE = Path(__file__).parents[2] / "tests" / "serving_engine" / "vllm_0_32_0.txt"
"""The metrics of a real vLLM 0.32.0."""


class DecoderPage:
    """The metrics of the decoder of a prefill-decode pair, which loads what the prefiller computed over another connector.

    It stands in for a vLLM with two connectors, for which this bench has no GPUs: a recorded page, whose counters of prompt
    tokens and of tokens loaded from outside grow with time.
    """

    def __init__(self, tokens_per_second: float) -> None:
        self._rate, self._began = tokens_per_second, time.time()
        self._page = RECORDED_PAGE.read_text()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await PlainTextResponse(self.page())(scope, receive, send)

    def page(self) -> str:
        """Return the page as it is now."""
        tokens = int((time.time() - self._began) * self._rate)
        grown = {
            "process_start_time_seconds": self._began,
            "vllm:external_prefix_cache_hits_total": tokens,
            "vllm:request_prompt_tokens_count": tokens // 6000,
            "vllm:request_prompt_tokens_sum": tokens * 1.05,
        }
        lines = []
        for line in self._page.splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            lines.append(f"{line.rpartition(' ')[0]} {grown[name]}" if name in grown else line)
        return "\n".join(lines) + "\n"
