"""The report: a web page with advice, evidence, pictures and the history of changes."""
