"""The tool by which the model reports what it found and did, a call for each cache. Scores rest on it and on the change log."""

from dataclasses import dataclass, field

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, ConfigDict

from agent_tools.models import SymptomCode

NAME = "report_finding"


class Finding(BaseModel):
    """What was found at one cache."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    cache: str
    """Name of the cache, as `lmcache_list_caches` gives it."""
    symptoms: list[SymptomCode]
    """Codes of what is wrong, as the tools name them; ["nothing_wrong"] if nothing is."""
    told: str
    """What you did and why, and what the operator has to do: exact settings, flags or commands, as the tools state them."""


@dataclass
class Answers:
    """The reports of one run."""

    caches: frozenset[str]
    given: dict[str, Finding] = field(default_factory=dict)
    """The last report of each cache."""

    def tool(self) -> BaseTool:
        """Return the tool that the model reports with."""
        return StructuredTool.from_function(
            func=self._take,
            name=NAME,
            description="Report what is wrong with one cache, what you did about it, and what only its operator can do."
            " Call it once for every cache, when you are done with the cache; a second report replaces the first.",
            args_schema=Finding,
            handle_validation_error=True,
        )

    def _take(self, **given: object) -> str:
        finding = Finding.model_validate(given)
        if finding.cache not in self.caches:
            return f"there is no cache of that name; the caches are {', '.join(sorted(self.caches))}"
        self.given[finding.cache] = finding
        left = sorted(self.caches - self.given.keys())
        return f"taken; still to report: {', '.join(left)}" if left else "taken; every cache is reported"
