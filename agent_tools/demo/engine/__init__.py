"""What a tuned cache is worth in seconds: a real vLLM on this machine's CPU, in front of the LMCache that is tuned."""
