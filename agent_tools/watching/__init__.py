"""Looking after caches for days: look every few minutes, tune within the mode, notice what others changed, tell a webhook."""
