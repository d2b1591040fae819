"""The serving engine in front of a cache, seen through its metrics: what a hit is worth, and when the cache is not the limit."""
