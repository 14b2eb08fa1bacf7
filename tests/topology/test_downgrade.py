"""What counts as a downgrade."""

import pytest

from relay.topology.downgrade import find_downgrades

S = 10**9
THREE = {
    "JOB_STATUS": {"num_replicas": 3, "max_age": 9 * S},
    "JOB_DLQ": {"num_replicas": 3, "max_age": 0},
    "KV_RELAY_LEASES": {"num_replicas": 3, "max_age": 15 * S},
}


def changed(**fields):
    return {name: config | fields for name, config in THREE.items()}


@pytest.mark.parametrize(
    ("wanted", "actual"),
    [(THREE, {}), (THREE, THREE), (THREE, changed(num_replicas=1, max_age=5 * S)), (THREE, {"X": {}})],
)
def test_none(wanted, actual):
    """New streams, equal values and higher ones are no downgrade."""
    assert [] == list(find_downgrades(wanted, actual))


def test_both():
    """With both settings missing, each is named, with the value that is in force and what to do."""
    wanted = changed(num_replicas=1, max_age=5 * S)
    del wanted["JOB_DLQ"]
    replicas, lease_ttl = find_downgrades(wanted, THREE)
    assert replicas == (
        "RELAY_REPLICAS 3 -> 1 (num_replicas of JOB_STATUS, KV_RELAY_LEASES): if 3 is right, set RELAY_REPLICAS=3 where"
        " this runs; if you want less, run `relay provision --downgrade`"
    )
    assert lease_ttl == (
        "RELAY_LEASE_TTL 15 -> 5 (max_age of KV_RELAY_LEASES): if 15 is right, set RELAY_LEASE_TTL=15 where this runs;"
        " if you want less, run `relay provision --downgrade`"
    )


def test_one_stream_alone():
    """If only one stream has more copies, as after an interrupted change, it is named alone."""
    actual = changed(num_replicas=1) | {"JOB_DLQ": THREE["JOB_DLQ"]}
    [text] = find_downgrades(changed(num_replicas=1), actual)
    assert text.startswith("RELAY_REPLICAS 3 -> 1 (num_replicas of JOB_DLQ): ")
