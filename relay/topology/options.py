"""Options of a stream or a lane consumer that provisioning does not set: which of them break the promise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.topology.fields import Field, Remedy, is_off


@dataclass(slots=True)
class Options:
    """What the options of one stream or consumer come to."""

    put_back: dict[str, str] = field(default_factory=dict[str, str])
    """Fields to be reset to what the server has without the option, and why."""
    refusals: list[str] = field(default_factory=list[str])
    """What cannot be undone, and stops everything."""
    warnings: list[str] = field(default_factory=list[str])
    """What cannot be undone or is not known, and lets the rest go on."""


def judge_options(
    what: str, fields: Mapping[str, Field], wanted: Mapping[str, Any], found: Mapping[str, Any], make_anew: str
) -> Options:
    """Look at each field of `found` that is not in `wanted`.

    Args:
        what: the stream or consumer in words, such as `stream JOB_STATUS`.
        fields: the table of its kind.
        wanted: the configuration that the relay wants.
        found: the configuration that the server has.
        make_anew: how to get it without the option, in words.
    """
    options = Options()
    name = what.rpartition(" ")[2]
    for key, value in found.items():
        if key in wanted or is_off(value):
            continue
        known = fields.get(key)
        if known is None:
            options.warnings.append(
                f"{what} has {key} {value}, which this version of the relay does not know: find out whether "
                "updates can get lost by it, and upgrade the relay"
            )
        elif not known.harms(name, value):
            continue
        elif known.remedy is Remedy.PUT_BACK:
            options.put_back[key] = known.why
        else:
            text = f"{what} has {key} {value}: {known.why}; nats-server does not let it be undone: {make_anew}"
            (options.refusals if known.remedy is Remedy.REFUSE else options.warnings).append(text)
    return options
