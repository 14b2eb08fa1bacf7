"""What has changed under a running relay, or is otherwise than its settings say."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from relay.topology.comparison import Config, differences
from relay.topology.copies import count_missing, find_lost
from relay.topology.fields import follows_a_setting, setting_of
from relay.topology.plan import Actual, Step, Verb, Wanted, make_lasting_plan

_NS_PER_S: Final = 1_000_000_000
_REMEDY: Final = "run `relay provision`"


@dataclass(frozen=True, slots=True)
class Drift:
    """How the server differs from what a running relay needs, in words for an operator."""

    troubles: tuple[str, ...]
    """What `relay provision` would mend or refuse."""
    warnings: tuple[str, ...]
    """Options that it leaves as they are, lost copies, and values of settings that are others here."""
    missing_copies: int = 0
    """How many copies of streams and lane consumers are lost, away or behind."""
    ack_wait_s: float | None = None
    """The shortest `ack_wait` of the lane consumers; None if none has one."""


def find_drift(wanted: Wanted, actual: Actual) -> Drift:
    """What has changed under a running relay. Fields that follow a setting may have another value than here."""
    lasting = Wanted(
        wanted.lanes,
        {name: _as_found(name, config, actual.streams.get(name)) for name, config in wanted.streams.items()},
        {
            name: _as_found(name, config, actual.consumers[name])
            for name, config in wanted.consumers.items()
            if name in actual.consumers
        },
    )
    plan = make_lasting_plan(lasting, actual)
    harmful, harmless = [step for step in plan.steps if _harms(step)], [step for step in plan.steps if not _harms(step)]
    waits_ns = [info["config"]["ack_wait"] for info in actual.consumers.values() if "ack_wait" in info["config"]]
    return Drift(
        tuple(f"{text}; {_REMEDY}" for text in (*plan.refusals, *(step.difference for step in harmful))),
        (
            *plan.warnings,
            *(f"{step.difference}; {_REMEDY}" for step in harmless if step.difference),
            *_other_settings(wanted, actual),
            *find_lost(actual.streams, actual.consumers),
        ),
        count_missing(actual.streams, actual.consumers),
        min(waits_ns) / _NS_PER_S if waits_ns else None,
    )


def _harms(step: Step) -> bool:
    return step.verb is Verb.CREATED or any(change.vital or change.harm for change in step.changes)


def _as_found(name: str, wanted: Config, info: Config | None) -> Config:
    """`wanted`, but with the actual values of fields that follow a setting."""
    if info is None:
        return wanted
    found: Config = info["config"]
    return {key: found.get(key) if follows_a_setting(name, key) else value for key, value in wanted.items()}


def _other_settings(wanted: Wanted, actual: Actual) -> Iterator[str]:
    """A text for each setting whose value is another one in the streams and consumers. A relay goes by theirs."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for both in ((wanted.streams, actual.streams), (wanted.consumers, actual.consumers)):
        for name, config in both[0].items():
            found: Config = both[1][name]["config"] if name in both[1] else config
            ours = {key: config[key] for key in config if setting_of(name, key) is not None}
            for change in differences(ours, found):
                names.setdefault((str(setting_of(name, change.field)), change.old, change.new), []).append(name)
    for (variable, old, new), where in names.items():
        yield (
            f"{variable} is {new} here, and {old} in {', '.join(where)}, which is what counts: start the relays with "
            f"{old}, or run `relay provision` with {new}"
        )
