"""`make graph-picture`: the asset graph in the web UI, as the README shows it.

Starts a webserver on the code location alone, with a Dagster home that is thrown away; no service is needed. The graph that
is shown is written into the picture as well, so that a unit test can tell when the picture is out of date.
"""

import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, PngImagePlugin
from playwright.sync_api import Page, expect, sync_playwright

from crm_resources.settings import REPOSITORY
from crm_resources.waiting import PATIENCE_SECONDS, ProcessLife, wait_for
from deploy.local import dagster
from tests.asset_graph import PICTURE_TEXT, live_graph
from tests.browser.chromium import CHROMIUM, FLAGS

PICTURE = REPOSITORY / "docs" / "images" / "lineage.png"
HEIGHT, WIDTH, WIDTH_WITH_LIST = 900, 700, 900
"""Pixels. The graph from top to bottom fits with its text in full size; the list of groups beside it, which repeats it, is put away."""
QUIET = "telemetry: {enabled: false}\nnux: {enabled: false}\n"
LOOK = {"asset-graph-direction": '"vertical"', "large-screen-nav-open": "false", "dagster-nav-collapsed": "true"}
"""What a person would choose by three clicks; the UI keeps it in the browser."""


def main(to: Annotated[Path, typer.Option(help="File to write.")] = PICTURE) -> None:
    """Take a picture of the asset graph with its groups closed."""
    if CHROMIUM is None:
        typer.echo("error: no Chromium here; install it (Debian: `apt install chromium fonts-dejavu-core`)", err=True)
        raise typer.Exit(1)
    graph = live_graph()
    with webserver() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH_WITH_LIST, "height": HEIGHT}, base_url=url)
        show_groups(page, Counter(str(node["group"]) for node in graph.values()))
        shot = page.screenshot()
        browser.close()
    text = PngImagePlugin.PngInfo()
    text.add_text(PICTURE_TEXT, json.dumps(graph, sort_keys=True), zip=True)
    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").quantize(256).save(to, pnginfo=text, optimize=True)
    typer.echo(f"wrote {to}")


def show_groups(page: Page, groups: Counter[str]) -> None:
    """Open the lineage of everything, and wait until each group is there with the number of its assets."""
    page.set_default_timeout(PATIENCE_SECONDS * 1000)
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    page.add_init_script("".join(f"localStorage.setItem({json.dumps(key)}, {json.dumps(value)});" for key, value in LOOK.items()))
    page.goto("/asset-groups")
    page.get_by_placeholder("Jump to…").locator("xpath=following::button[1]").click()
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    for group, assets in groups.items():
        node = page.locator("svg foreignObject").filter(has_text=group)
        expect(node.first).to_have_text(re.compile(rf"{assets}$"))
    page.wait_for_timeout(1000)  # the graph glides to its place


@contextmanager
def webserver() -> Iterator[str]:
    """A webserver of its own on the code location; yields its address and ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "dagster.yaml").write_text(QUIET)
        command = [Path(sys.executable).with_name("dagster-webserver"), "-h", "127.0.0.1", "-p", str(port), "-w", "workspace.yaml"]
        environ = {**os.environ, "DAGSTER_HOME": home}
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            life = ProcessLife()
            wait_for(
                lambda: dagster.webserver_answers(port),
                lambda: life(process.pid) if process.poll() is None else None,
                lambda why: RuntimeError(f"the webserver does not answer: {why}; run `make validate`"),
            )
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    typer.run(main)
