"""`relay doctor`: the checks, one module for each thing that they look at, and running them."""
