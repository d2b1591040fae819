"""The errors a caller, or a model, can act on.

LMCacheToolError                 everything below; the tools hand its text to the model
+-- UnknownCacheError            no cache of that name in the operator's directory
+-- UnreachableError             nothing answered; nothing was changed
+-- NotLMCacheError              something else answers at that address
+-- RefusedError                 LMCache answered with an error; nothing was changed
+-- UnsupportedError             this deployment cannot do that; says what can be done instead
+-- OutOfBoundsError             outside the bounds the operator set
+-- StalePlanError               the cache is no longer as it was when the plan was made
+-- BusyError                    another change is under way on this cache
+-- CooldownError                the last change is too recent to judge it
+-- UnknownChangeError           no change of that id, or it cannot be undone
+-- OutcomeUnknownError          a change was sent and its outcome is not known; never retried
+-- CacheDiedError               the cache process ended during the operation
+-- WorkloadError                a trace or access log cannot be read
+-- SettingsError                the operator's own settings are wrong
"""

from .plain import sentence


class LMCacheToolError(Exception):
    """Base of all errors of this package. ``str(error)`` names what was asked, what answered, and what to do next.

    It is one line without secrets, whatever the answer of a server it repeats: a model, a log and a page may have it as it is.
    """

    code = "error"

    def __init__(self, said: object) -> None:
        super().__init__(sentence(said))


class UnknownCacheError(LMCacheToolError):
    """No cache of that name in the operator's directory."""

    code = "unknown_cache"


class UnreachableError(LMCacheToolError):
    """Nothing answered at the cache's address; nothing was changed."""

    code = "unreachable"


class NotLMCacheError(LMCacheToolError):
    """Something answers at the address, but it is not the LMCache admin API."""

    code = "not_lmcache"


class RefusedError(LMCacheToolError):
    """LMCache answered with an error status; `status` is the HTTP code."""

    code = "refused"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnsupportedError(LMCacheToolError):
    """The deployment cannot do this; the message says what can be done instead."""

    code = "unsupported"


class OutOfBoundsError(LMCacheToolError):
    """The change lies outside the operator's bounds."""

    code = "out_of_bounds"


class StalePlanError(LMCacheToolError):
    """The cache changed after the plan was made; make a new plan."""

    code = "stale_plan"


class BusyError(LMCacheToolError):
    """Another change is under way on this cache."""

    code = "busy"


class CooldownError(LMCacheToolError):
    """The last change is too recent for its effect to be judged."""

    code = "cooldown"


class UnknownChangeError(LMCacheToolError):
    """No such change in the log, or nothing of it is left to undo."""

    code = "unknown_change"


class OutcomeUnknownError(LMCacheToolError):
    """A change was sent and no clear answer came; it may or may not be in force. Never retried."""

    code = "outcome_unknown"


class CacheDiedError(LMCacheToolError):
    """The cache process ended during the operation; the message holds its last known state."""

    code = "cache_died"


class WorkloadError(LMCacheToolError):
    """A trace or access log that cannot be read; the message names the file and line."""

    code = "bad_workload"


class SettingsError(LMCacheToolError):
    """The operator's directory or settings file is wrong."""

    code = "bad_settings"
