"""The prompts that MCP clients offer their users, often as slash commands."""

from typing import NamedTuple

from agent_tools.plain import plain


class Prompt(NamedTuple):
    """A text for the model, with the name of a cache in it."""

    description: str
    template: str

    def text(self, cache: str) -> str:
        """Return the text for one cache."""
        return self.template.replace("CACHE", plain(cache))


PROMPTS = {
    "check": Prompt(
        "What is wrong with a cache, if anything.",
        "Look at the LMCache cache CACHE: status, then diagnosis. Quote the figures with their window. Change nothing. Say in a"
        " few sentences whether it is healthy and what it earns.",
    ),
    "tune": Prompt(
        "Make a cache better, one approved change at a time.",
        "See whether the LMCache cache CACHE should be changed. Read status and recommendation. If a change is advised, show its"
        " plan, with old and new values and what it costs, and ask me before you make it. Afterwards measure a window and say"
        " whether it helped; offer the undo if it did not.",
    ),
    "what_changed": Prompt(
        "Who changed a cache, why, and whether it helped.",
        "List the changes of the LMCache cache CACHE, the latest first: what, by whom, why, and whether it was verified or"
        " undone. If its hit rate is lower than before a change, say which one and how to undo it.",
    ),
}
