"""docs/configuration.md, compared with the settings. Run this file as a script to write its table again."""

from pathlib import Path

from pages import ROOT, between

from relay.contract.settings_table import settings_table

PAGE = ROOT / "docs/configuration.md"


def settings_markdown() -> str:
    """The table of settings as the page must have it."""
    rows = [("variable", "default", "allowed", "what for"), ("---",) * 4]
    rows += [(f"`{row.variable}`", f"`{row.default}`" * bool(row.default), *row[2:]) for row in settings_table()]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def test_settings():
    """The table agrees with settings.py: each variable with its default, its range and its meaning."""
    assert settings_markdown() == between("settings", PAGE.read_text()), (
        f"run python {Path(__file__).relative_to(ROOT)}"
    )


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().replace(between("settings", PAGE.read_text()), settings_markdown()))
