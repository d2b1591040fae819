"""What `lmcache-agent demo` and `demo-engine` run."""
