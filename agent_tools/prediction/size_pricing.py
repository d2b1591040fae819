"""What a size of a tier costs and saves: time to first token, GPU hours and money, where a person stated what they depend on."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from agent_tools.models.config import MB_IN_A_GB, Frozen
from agent_tools.models.cost import Positive

from .cost import GB
from .engine_cache import EngineCache

Share = Annotated[float, Field(ge=0, le=1)]
HOURS_A_MONTH = 730.0
MS = 1000.0


class Terms(Frozen):
    """What a person states about speed and prices, in any one currency. Everything is optional."""

    prefill_tokens_per_second: Positive | None = None
    """Prompt tokens that one engine, all its GPUs together, computes per second."""
    gpus: Annotated[int, Field(gt=0)] = 1
    """GPUs of the engine."""
    l1_load_gb_per_second: Positive | None = None
    """Bandwidth of loading KV from L1, GB/s (1e9 bytes). ``None``: loading takes no time, and a note says so."""
    l2_load_gb_per_second: Positive | None = None
    """Bandwidth of loading KV from L2, GB/s. ``None``: as from L1."""
    l1_gb_month: Positive | None = None
    """Price of one GB (2**30 bytes) of L1 for a month."""
    l2_gb_month: Positive | None = None
    """Price of one GB of L2 for a month."""
    gpu_hour: Positive | None = None
    """Price of one GPU for an hour."""


class SizeRow(Frozen):
    """One size of one tier, the other tiers being as given. Shares are of the prompt tokens in whole chunks."""

    tier: Literal["L0", "L1", "L2"]
    """The tier whose size varies."""
    l0_tokens: int | None
    """Tokens that the engine's own cache holds; ``None`` if the GPU's memory is not given."""
    l1_mb: Annotated[float, Field(ge=0)]
    """L1, MB (2**20 bytes); 0 without LMCache."""
    l2_mb: Annotated[float, Field(ge=0)]
    """L2, MB; 0 without an L2."""
    engine_share: Share
    """Share that the engine's own cache serves."""
    hit_rate: Share
    """Token hit rate that LMCache's own counters will show."""
    saved: Share
    """Share that LMCache saves beyond the engine's own cache."""
    ttft_ms: float | None
    """Mean time to first token without queueing, ms; ``None`` without a prefill speed."""
    price_month: float | None
    """Price of L1 and L2 together, a month; ``None`` without their prices."""
    gpu_hours_month: float | None
    """GPU hours that LMCache saves a month at the log's rate of requests; ``None`` without a prefill speed or times."""
    net_month: float | None
    """Price of these GPU hours less the price of the tiers; ``None`` if one of them is unknown."""

    @property
    def size_mb(self) -> float:
        """Return the size that varies, MB; 0 for L0, whose size is in tokens."""
        return {"L0": 0.0, "L1": self.l1_mb, "L2": self.l2_mb}[self.tier]


class Seen(NamedTuple):
    """What all rows need of the log."""

    tokens: int
    whole: int
    requests: int
    requests_a_second: float | None


@dataclass(frozen=True)
class Pricing:
    """Turns shares into time and money."""

    terms: Terms
    seen: Seen
    bytes_per_token: float

    def row(
        self, tier: Literal["L0", "L1", "L2"], l0: EngineCache | None, sizes: tuple[float, float], served: "Served"
    ) -> SizeRow:
        own = 0.0 if l0 is None else l0.share
        price, hours = self._price(tier, *sizes), None if tier == "L0" else self._gpu_hours(served.saved)
        known = price is not None and hours is not None and self.terms.gpu_hour is not None
        return SizeRow(
            tier=tier,
            l0_tokens=None if l0 is None else l0.tokens,
            l1_mb=sizes[0],
            l2_mb=sizes[1],
            engine_share=own,
            hit_rate=served.hit_rate,
            saved=served.saved,
            ttft_ms=self._ttft(own, served),
            price_month=price,
            gpu_hours_month=hours,
            net_month=hours * self.terms.gpu_hour - price if known else None,  # type: ignore[operator]  # as checked
        )

    def _ttft(self, own: float, served: "Served") -> float | None:
        speed = self.terms.prefill_tokens_per_second
        if speed is None or not self.seen.requests:
            return None
        computed = self.seen.tokens - (own + served.saved) * self.seen.whole
        l1 = self.terms.l1_load_gb_per_second
        l2 = self.terms.l2_load_gb_per_second or l1
        loading = sum(
            share * self.seen.whole * self.bytes_per_token / (bandwidth * GB)
            for share, bandwidth in ((served.saved - served.from_l2, l1), (served.from_l2, l2))
            if bandwidth is not None
        )
        return MS * (computed / speed + loading) / self.seen.requests

    def _price(self, tier: str, l1_mb: float, l2_mb: float) -> float | None:
        terms = self.terms
        if tier == "L0" or terms.l1_gb_month is None or (l2_mb and terms.l2_gb_month is None):
            return None
        return l1_mb / MB_IN_A_GB * terms.l1_gb_month + l2_mb / MB_IN_A_GB * (terms.l2_gb_month or 0.0)

    def _gpu_hours(self, saved: float) -> float | None:
        speed, rate = self.terms.prefill_tokens_per_second, self.seen.requests_a_second
        if speed is None or rate is None:
            return None
        tokens_a_second = saved * self.seen.whole / self.seen.requests * rate
        return tokens_a_second / speed * self.terms.gpus * HOURS_A_MONTH

    def unknown(self) -> dict[str, str]:
        """Say for each figure that is ``None`` in every row why."""
        terms, found = self.terms, {}
        if terms.prefill_tokens_per_second is None:
            found["ttft_ms"] = "needs the prefill speed (--prefill-tokens-per-second); measure it at the engine"
            found["gpu_hours_month"] = "needs the prefill speed (--prefill-tokens-per-second)"
        elif self.seen.requests_a_second is None:
            found["gpu_hours_month"] = "needs times in the log, to know how much traffic there is"
        if terms.l1_gb_month is None:
            found["price_month"] = "needs the price of a GB of L1 for a month (--l1-gb-month)"
        elif terms.l2_gb_month is None:
            found["price_month of L2"] = "needs the price of a GB of L2 for a month (--l2-gb-month)"
        if terms.gpu_hour is None or found:
            found["net_month"] = "needs the prefill speed, the prices of the tiers and of a GPU hour (--gpu-hour)"
        return found


class Served(NamedTuple):
    """What LMCache serves, as shares of the whole-chunk prompt tokens."""

    hit_rate: float = 0.0
    saved: float = 0.0
    from_l2: float = 0.0
    """The part of `saved` that is loaded from L2."""
