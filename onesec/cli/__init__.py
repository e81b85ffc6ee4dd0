"""One file per command; the only printing code."""
