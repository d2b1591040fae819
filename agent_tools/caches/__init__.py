"""The caches an operator has named: their settings, the registry of names, and the history of readings."""
