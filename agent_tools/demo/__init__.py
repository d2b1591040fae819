"""The demos that `lmcache-agent demo` and `lmcache-agent demo-engine` run."""
