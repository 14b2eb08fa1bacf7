"""Whole relays in virtual time: the real worker, pull loop, connection and ownership between models of what is outside.

schedule.py     what happens when, made from one seed; and how a failing schedule is made smaller
world.py        runs a schedule, and judges it by the book
book.py         the oracle: what was published, stored, buried, acknowledged, and what may never be
blame.py        which drops of a connection an update has to answer for
worker.py       one relay process, put together as relay/app.py does it
clock.py        virtual time, and processes that can be killed and stopped in it
network.py      connections that delay, stall, lose and break
client.py       the model of the NATS client, with nats-py's own subscriptions and messages
jetstream.py    the model of nats-server, by its subjects: the status stream, the dead-letter stream
consumer.py     the model of a lane's consumer: pulls, deliveries, acknowledgements
leases.py       the model of the lease bucket, and what stands for relay/broker/leases.py
facilitator.py  the Facilitator: the rules and faults of relay/local, in virtual time
seam.py         the only place that reaches into relay/: clock, log, and the Facilitator's socket
bugs.py         bugs to plant, which the simulation must find
"""
