"""How a cache stands against our change log: what our changes left in force, and what is different now."""

from typing import Any

from agent_tools.plain import MESSAGE, names_cut, plain

from .config import CacheConfig, Frozen


class Departure(Frozen):
    """A setting that is not as our last change of it left it."""

    setting: str
    """Name of the setting."""
    ours: Any
    """The value that our last change left."""
    in_force: Any
    """The value in force; ``None`` if it is unknown."""
    change_id: str
    """Our last change of the setting."""
    restarted: bool
    """Whether the server was started again since that change."""
    lost: bool
    """Whether a restart lost the change: the server started again with the value from before our changes."""

    @property
    def key(self) -> str:
        """Which change of which setting this is about."""
        return f"{self.setting} {self.change_id}"

    def __str__(self) -> str:
        ours, now = (plain(names_cut(value), MESSAGE) for value in (self.ours, self.in_force))
        if self.lost:
            return f"a restart lost {self.setting} {ours} of {self.change_id}; {now} is in force"
        how = "the server was started again with" if self.restarted else "somebody else set"
        return f"{how} {self.setting} {now}; {self.change_id} had set {ours}"


class Standing(Frozen):
    """How a cache stands against our change log."""

    server: str
    """Identity of the server process; another one stands for a restart."""
    config: CacheConfig
    """The settings in force."""
    departures: tuple[Departure, ...] = ()
    """Settings that are not as our changes left them."""
