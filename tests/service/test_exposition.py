from collections import Counter

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from relay.observability.metrics import Metrics
from relay.service.exposition import merge


def parsed(text):
    """Every sample with its family, labels and value; and how often each family occurs."""
    families = list(text_string_to_metric_families(text))
    samples = [
        (family.name, family.type, family.documentation, sample.name, sorted(sample.labels.items()), sample.value)
        for family in families
        for sample in family.samples
    ]
    return samples, Counter(family.name for family in families)


@pytest.mark.parametrize("workers", [(0,), (0, 1), (3, 10, 0)])
def test_everything_once_with_its_worker(workers):
    """Of several workers' metrics every sample is there with its worker's number, and every family once."""
    texts = {}
    for worker in workers:
        metrics = Metrics(lanes=2)
        metrics.acknowledged(0.001 * worker)
        metrics.at_hand(1, worker)
        texts[worker] = metrics.render().decode()
    samples, families = parsed(merge(texts))
    expected = [
        (*rest, sorted([*labels, ("worker", str(worker))]), value)
        for worker, text in texts.items()
        for *rest, labels, value in parsed(text)[0]
    ]
    assert sorted(expected) == sorted(samples)
    assert set(families.values()) == {1}


def test_awkward_text():
    """Braces, quotes, commas, blanks and line ends in help and label values stay what they are."""
    registry = CollectorRegistry()
    awkward = 'a "b", {c} \\ # HELP x y\n# TYPE x z\nd 1'
    Gauge("g", awkward, ["l"], registry=registry).labels(awkward).set(2)
    PrometheusCounter("plain", "without labels", registry=registry).inc()
    samples, _ = parsed(merge({7: generate_latest(registry).decode()}))
    assert [
        ("g", "gauge", awkward, "g", [("l", awkward), ("worker", "7")], 2),
        ("plain", "counter", "without labels", "plain_total", [("worker", "7")], 1),
    ] == [sample for sample in samples if not sample[3].endswith("_created")]


def test_a_family_that_only_one_has():
    """Workers of two versions are put together all the same."""
    assert (
        '# HELP a x\n# TYPE a gauge\na{worker="0"} 1\na{worker="1"} 2\n# HELP b y\n# TYPE b gauge\nb{worker="1"} 3\n'
        == merge(
            {
                0: "# HELP a x\n# TYPE a gauge\na 1\n",
                1: "# HELP a x\n# TYPE a gauge\na 2\n# HELP b y\n# TYPE b gauge\nb 3\n",
            }
        )
    )


def test_nobody():
    """Without workers there is nothing."""
    assert "" == merge({})
