"""The table of settings in the README, written from the settings object; a test fails when it is stale.

`python -m crm_resources.settings_docs` rewrites it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from crm_resources.settings import REPOSITORY, Settings

README = REPOSITORY / "README.md"
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


def with_table(text: str) -> str:
    """The text with the table between its marks brought up to date.

    Raises:
        ValueError: a mark is missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md must hold the marks {BEGIN!r} and {END!r}")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{settings_table()}\n{END}{tail}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
