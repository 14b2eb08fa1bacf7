"""The commands of the pages that begin with `nats`: deploy/rehearsal/commands.py runs them, with the real `nats`."""

from commands import COMMANDS, commands_of_pages


def test_every_command_is_rehearsed():
    """The rehearsal knows each command of the pages, as it is written there, and no other."""
    assert sorted(commands_of_pages()) == sorted(COMMANDS)
