"""What a cache is asked: access logs, traces, generated traffic, and replay into a real server."""
