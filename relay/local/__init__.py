"""The embedded nats-server, the Facilitator simulator and a source of traffic, for demo, tests and benchmarks."""
