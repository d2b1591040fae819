"""Fixtures of this folder."""

from watched import on, prod, restartable

__all__ = ["on", "prod", "restartable"]
