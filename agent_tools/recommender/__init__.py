"""Diagnose a cache, recommend changes, and verify whether a change helped."""
