"""The path of an update: from its lane through one connection to the Facilitator to its settlement.

    consumer ─deliveries─► lane_run ─admit─► core/lane ◄─take─ facilitator/connection ─answers─► settlement ─► ack
                                                ▲                                                    │
                                                └─ put back, retry ──────────────────────────────────┤
                                                └─ dead letters ─► dead_letter_worker ─► term ◄──────┘

    consumer.py             the pull loop of a lane
    delivery.py             one delivery, and JetStream's verbs to settle it with
    lane_run.py             one lane that is driven: how it is taken over, held and given back
    lanes.py                the lanes of one connection, while this worker holds their leases
    settlement.py           what is done about each answer
    dead_letter_worker.py   writes updates to the dead-letter stream, then terminates them
    advisories.py           dead letters of what JetStream gave up on
    receipts.py             receipts of settled updates, for watching
    pushes.py               what the Facilitator pushes
    backlog.py              how far the lanes are behind

Every decision is made in core/; nothing here keeps state that decides. service/line.py puts the parts together.
"""
