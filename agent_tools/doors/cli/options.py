"""The options that several commands share."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

DEFAULT = "default"
"""The name that `Registry` gives to the default cache."""


class Mode(str, Enum):
    """How much a run may do without asking: the values of `agent_tools.models.Mode`, which takes long to import."""

    OBSERVE = "observe"
    RECOMMEND = "recommend"
    APPROVE = "approve"
    AUTO = "auto"


class ExitCode:
    """The exit codes that ``--help`` lists. 0 is success and 2 is Typer's own code for wrong usage."""

    FAILED = 1
    USAGE = 2
    A_PERSON_MUST_ACT = 3
    INTERRUPTED = 130


CacheName = Annotated[str, typer.Option("--cache", "-c", help="Name of the cache in caches.toml.")]
CacheOfChange = Annotated[
    str | None, typer.Option("--cache", "-c", help="Name of the cache. By default the change log says which cache it was.")
]
Url = Annotated[
    str | None, typer.Option(help="Address (http://host:port) of an `lmcache server`'s admin API, instead of a name.")
]
MaxSize = Annotated[float | None, typer.Option(help="With --url: the largest L1 size that may be set, MB.")]
ArenaFolder = Annotated[
    Path | None, typer.Option(help="With --url: a folder on the server's host for live L1 growth, e.g. /dev/shm.")
]
AccessLogFolder = Annotated[Path | None, typer.Option(help="With --url: the folder of the server's --lookup-hash-log-dir.")]
WindowSeconds = Annotated[
    float, typer.Option(min=0, help="Seconds to observe. 0 takes everything since the cache process started.")
]
VerifySeconds = Annotated[
    float, typer.Option(min=1, help="Longest wait after a change for as much traffic as before it, seconds.")
]
ModeOption = Annotated[
    Mode,
    typer.Option(
        help="observe: only read. recommend: also say what would help. approve: change the cache after you agree."
        " auto: change it within the bounds."
    ),
]
Reason = Annotated[str, typer.Option(help="Why. The change log keeps it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ChangeId = Annotated[str, typer.Argument(help="Id of the change; `changes` lists them.", show_default=False)]
