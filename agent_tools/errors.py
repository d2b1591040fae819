"""The errors that a caller, or a model, can act on.

LMCacheToolError                 base class; the tools pass the text to the model
+-- UnknownCacheError            caches.toml has no cache of that name
+-- UnreachableError             nothing answered; nothing was changed
+-- NotLMCacheError              something else answers at that address
|   +-- MissingRouteError        the server has no such route: another version of LMCache, or something else
+-- RefusedError                 LMCache answered with an error
+-- UnsupportedError             this deployment cannot do that; says what can be done instead
|   +-- NothingToChangeError     the cache already is as wanted
+-- OutOfBoundsError             the change is outside the operator's bounds
+-- ForbiddenError               the caller's token does not give the right to do that
+-- TooManyRequestsError         the caller has too many requests in progress; says when to ask again
+-- StalePlanError               the cache has changed since the plan was made
+-- BusyError                    another change is under way on this cache
+-- CooldownError                the last change is too recent to be judged
+-- UnknownChangeError           there is no change with that id, or it cannot be undone
+-- OutcomeUnknownError          a change was sent and its outcome is unknown; it is never retried
+-- RecordError                  the change log cannot be written; a change that cannot be on record is not made
+-- CacheDiedError               the cache process ended during the operation
+-- WorkloadError                a trace or access log cannot be read
+-- SettingsError                the operator's own settings are wrong
"""

from .plain import sentence


class LMCacheToolError(Exception):
    """Base class of all errors of this package. ``str(error)`` says what was asked, what answered, and what to do next.

    The text is one line without secrets, even if it repeats a server's answer. Models, logs and pages can show it as it is.
    """

    code = "error"

    def __init__(self, said: object) -> None:
        super().__init__(sentence(said))


class UnknownCacheError(LMCacheToolError):
    """Raised when caches.toml has no cache of the given name."""

    code = "unknown_cache"


class UnreachableError(LMCacheToolError):
    """Raised when nothing answers at the cache's address. Nothing was changed."""

    code = "unreachable"


class NotLMCacheError(LMCacheToolError):
    """Raised when something answers at the address, but it is not the LMCache admin API."""

    code = "not_lmcache"


class MissingRouteError(NotLMCacheError):
    """Raised when the server does not have the route: it is another version of LMCache, or something else."""


class RefusedError(LMCacheToolError):
    """Raised when LMCache answers with an error status. `status` is the HTTP status code."""

    code = "refused"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnsupportedError(LMCacheToolError):
    """Raised when the deployment cannot do what was asked. The message says what it can do instead."""

    code = "unsupported"


class NothingToChangeError(UnsupportedError):
    """The cache already is as wanted; there is nothing to change."""

    code = "nothing_to_change"


class OutOfBoundsError(LMCacheToolError):
    """Raised when a change lies outside the operator's bounds."""

    code = "out_of_bounds"


class ForbiddenError(LMCacheToolError):
    """Raised when the caller's token does not give the right to do what was asked."""

    code = "forbidden"


class TooManyRequestsError(LMCacheToolError):
    """Raised when a caller has too many requests in progress. `retry_after` is the number of seconds to wait."""

    code = "too_many_requests"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StalePlanError(LMCacheToolError):
    """Raised when the cache has changed since the plan was made. Make a new plan."""

    code = "stale_plan"


class BusyError(LMCacheToolError):
    """Raised when another change is under way on this cache."""

    code = "busy"


class CooldownError(LMCacheToolError):
    """Raised when the last change is too recent for its effect to be judged."""

    code = "cooldown"


class UnknownChangeError(LMCacheToolError):
    """Raised when the log has no such change, or nothing of the change is left to undo."""

    code = "unknown_change"


class OutcomeUnknownError(LMCacheToolError):
    """Raised when a change was sent and no clear answer came. The change may or may not be in force; it is never retried."""

    code = "outcome_unknown"


class RecordError(LMCacheToolError):
    """The change log cannot be written."""

    code = "not_recorded"


class CacheDiedError(LMCacheToolError):
    """Raised when the cache process ended during the operation. The message holds its last known state."""

    code = "cache_died"


class WorkloadError(LMCacheToolError):
    """Raised when a trace or access log cannot be read. The message names the file and line."""

    code = "bad_workload"


class SettingsError(LMCacheToolError):
    """Raised when caches.toml or another setting of the operator is wrong."""

    code = "bad_settings"
