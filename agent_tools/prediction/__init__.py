"""Predictions of what a setting would give, computed from an access log.

* `hit_rate_curve`: the exact curve over all L1 sizes for an ideal LRU cache; `live_window` keeps it for a running server.
* `server_model`, `server_prediction`: `lmcache server` over time, one setting at a time, with an interval.
* `in_process_model`: in-process LMCache. `clairvoyant`: the best that any eviction policy could do.
* `chunk_size`: the same log with larger chunks.
"""
