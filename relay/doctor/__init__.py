"""`relay doctor`: its checks, by what they look at, and how they are run."""
