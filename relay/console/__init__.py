"""The web page of `relay console`: it shows the relay and acts on dead letters, over NATS alone."""
