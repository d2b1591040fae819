"""The verbs: everything that can be done with the caches of a registry, each in one async call.

The doors, tools and graphs above reach the rooms below through `Operations` alone. Run its methods on the I/O loop (`io_loop`).
The verbs that read are in `read`, those that advise in `advise`, those that change settings in `change`, those that judge a
change in `verify`, and those that change what is stored in `stored`. A verb that predicts, verifies or draws imports what it
needs when it is called, so that `status` starts fast.
"""

from functools import cache

from agent_tools.caches.registry import Registry
from agent_tools.caches.settings import Settings

from .advise import Advise
from .change import Change
from .stored import Stored
from .verify import Verify


class Operations(Advise, Verify, Change, Stored):
    """All operations on the caches of one registry.

    Methods that take a `cache` take its name in the registry. `window_seconds` is the length of a window that ends now: the call
    waits for what earlier readings do not cover, and ``None`` means everything since the cache process started. `progress` is
    called with one short sentence per step while a call waits.
    """


@cache
def shared_operations() -> Operations:
    """Return the operations on the operator's own caches. One per process, so an embedded server is shared too."""
    return Operations(Registry(Settings.load()))
