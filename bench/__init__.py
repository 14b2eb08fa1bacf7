"""Measures the relay beside its peers and the floors of its cost: `python -m bench --help`, `make bench`."""
