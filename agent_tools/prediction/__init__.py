"""What a setting would give, computed from an access log.

* `hit_rate_curve`: every L1 size at once, exact, for an ideal LRU cache; `live_window` keeps it for a running server.
* `server_model`, `server_prediction`: `lmcache server` as it is, one setting at a time, in time, with its interval.
* `engine_model`: LMCache embedded in an engine. `clairvoyant`: the best that any policy could do.
* `chunk_size`: the same log with larger chunks.
"""
