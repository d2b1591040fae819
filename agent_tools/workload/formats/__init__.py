"""One file for each format of recorded requests that `readers` recognises."""
