"""LMCache's coordinator and the servers it knows."""
