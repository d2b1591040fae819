"""No LMCache: the exact model of a server under generated or recorded traffic."""
