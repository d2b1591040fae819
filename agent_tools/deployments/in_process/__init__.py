"""In-process LMCache: LMCache inside vLLM or SGLang, reached through its internal API."""
