"""The path of an update: from its lane through one Facilitator connection to its settlement.

    source ─on_delivery→ lane ─pump→ facilitator ─on_answered→ verdict ─→ ack
                          ▲                                       ├─→ wait at the lane's gate, go again
                          └── put back, when a connection is lost └─→ dead letters, then term

    dispatcher.py       the lanes of one connection: what goes out next, and what becomes of what was answered
    feed.py             one lane and its source: how it is taken over, held, and given back
    dead_lettering.py   the way into the dead-letter stream

Nothing in here opens a socket: what it works with comes in through the Protocols of core/ports.py.
"""
