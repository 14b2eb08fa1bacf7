"""Answers questions over NATS about the status of a job and the progress of its updates."""
