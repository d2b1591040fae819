"""Changing a cache safely: plan, apply, read back, record, undo."""
