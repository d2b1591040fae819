"""LMCache inside vLLM or SGLang, reached over its internal API."""
