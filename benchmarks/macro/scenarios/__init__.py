"""One file for each scenario; benchmarks/macro/catalogue.py lists them."""
