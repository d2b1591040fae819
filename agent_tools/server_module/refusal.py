"""The one error of this package that callers see: asked for what cannot be done, and why."""


class Refusal(Exception):  # noqa: N818
    """Answered as a problem; nothing was changed, unless the message says so."""

    def __init__(self, status: int, detail: str) -> None:
        """An HTTP status and one or two sentences: what was asked, and what can be done instead."""
        super().__init__(detail)
        self.status = status
