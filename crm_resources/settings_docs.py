"""The table of settings in `docs/settings.md`, written from the settings object; a test fails when it is stale.

`python -m crm_resources.settings_docs` rewrites it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from crm_resources.generated_block import with_block
from crm_resources.settings import REPOSITORY, Settings

PAGE = REPOSITORY / "docs" / "settings.md"
BEGIN = "<!-- settings: written by `make contracts` -->"
END = "<!-- settings end -->"


def settings_table() -> str:
    """Markdown table: variable, default, meaning."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, Path):
            default = f"{default.relative_to(REPOSITORY)} in the checkout"
        shown = "" if default is None or isinstance(default, SecretStr) else f"`{default}`"
        lines.append(f"| `CRM_{name.upper()}` | {shown} | {(field.description or '').replace('|', '/')} |")
    return "\n".join(lines)


def up_to_date(page: Path = PAGE) -> str:
    """The page's text with today's table.

    Raises:
        ValueError: a mark is missing.
    """
    return with_block(page, BEGIN, END, settings_table())


if __name__ == "__main__":
    PAGE.write_text(up_to_date())
