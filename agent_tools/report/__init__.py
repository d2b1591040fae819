"""The report: one web page with advice, evidence, pictures and the history of changes."""
