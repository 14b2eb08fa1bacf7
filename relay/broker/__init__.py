"""The NATS side: connection, topology, pull loop, settlement."""
