"""A simulated cache: the model of a server under generated or recorded traffic, without LMCache."""
