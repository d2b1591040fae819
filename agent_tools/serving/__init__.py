"""The serving engine in front of a cache, as its own metrics tell: what a hit is worth, and when the cache is not the matter."""
