"""The value of a tuned cache in seconds: a real vLLM on this machine's CPU, in front of the LMCache that is tuned."""
