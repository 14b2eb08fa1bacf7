"""Carries job status updates from NATS JetStream to the Facilitator."""
