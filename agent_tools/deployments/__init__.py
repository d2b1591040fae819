"""The LMCaches there are, behind one protocol."""
