"""The requests of a cache: access logs, traces, generated traffic, and replay into a real server."""
