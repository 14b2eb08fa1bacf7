"""Whole relays in virtual time: the real worker, pull loop, connection and ownership, and models of what is outside.

schedule.py     what happens when, made from one seed; and how a failing schedule is made smaller
world.py        runs a schedule, and checks the result with the book
book.py         the oracle: what was published, stored, dead-lettered, acknowledged, and which promises were broken
blame.py        which lost connections count as an update's own fault
worker.py       one relay process, put together as relay/service/app.py does it
clock.py        virtual time, and processes in it that can be killed and stopped
network.py      connections with delays, stalls, losses and breaks
client.py       the model of the NATS client, with nats-py's own subscriptions and messages
jetstream.py    the model of nats-server, by subject: the status stream, the dead-letter stream
consumer.py     the model of a lane's consumer: pulls, deliveries, acknowledgements
leases.py       the model of the lease bucket, and the replacement for relay/leases/leases.py
facilitator.py  the Facilitator: the rules and faults of relay/local, in virtual time
seam.py         the only place that replaces parts of relay/: clock, log, and the Facilitator's socket
bugs.py         planted bugs, which the simulation must find
"""
