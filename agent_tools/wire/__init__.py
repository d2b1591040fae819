"""How LMCache and engines are reached: HTTP and the Prometheus text format."""
