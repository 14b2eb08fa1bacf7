"""Pure decisions: order, limits, retries, matching. No I/O, no clock, no randomness of their own."""
