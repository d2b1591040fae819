"""An `lmcache server`: one that an operator runs, or a private one of our own."""
