"""The pages a reader sees: links lead somewhere, figures are those of the kept reports, `make help` is readable."""

import re
import subprocess
from pathlib import Path

import pytest

from crm_resources.settings import REPOSITORY
from tests.benchmarks import figures_table

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
CODE = re.compile(r"^( *)```.*?^\1```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
GROUPS = ["Every day", "Data", "Marketing", "Care", "Measuring"]


def links(page: Path) -> list[str]:
    """What the page links to inside the repository."""
    found = [markdown or html for markdown, html in LINK.findall(CODE.sub("", page.read_text()))]
    return [target for target in found if not target.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """The names GitHub gives to the page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def help_lines() -> list[str]:
    command = ["make", "help"]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return re.sub(r"\x1b\[\d*m", "", shown).splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path):
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_picture_is_shown_on_a_page():
    shown = {(page.parent / target).resolve() for page in PAGES for target in links(page)}
    assert {path for path in (REPOSITORY / "docs" / "images").iterdir() if path.resolve() not in shown} == set()


@pytest.mark.parametrize("page", figures_table.PAGES, ids=lambda page: page.name)
def test_figures_are_those_of_the_kept_reports(page: Path):
    assert figures_table.up_to_date(page) == page.read_text(), "run `make figures` and commit the pages"


def test_make_help_shows_its_groups_in_80_columns_with_the_daily_commands_first():
    lines = help_lines()
    assert [line for line in lines if line and not line.startswith((" ", "CRM_ENV"))] == GROUPS
    assert [line for line in lines if len(line) > 80] == []


def test_every_target_says_what_it_does():
    rules = set(re.findall(r"^([a-z][a-z-]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert rules == {line.split()[0] for line in help_lines() if re.match(r"  \S", line)}
