"""How far a job's updates got, for whoever asks over NATS."""
