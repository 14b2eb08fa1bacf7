"""Measures the relay beside its floors and its peers: `python -m bench --help`, `make bench`."""
