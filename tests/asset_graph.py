"""The live asset graph as plain data, and the graph that a picture of it says it shows."""

import json
from pathlib import Path

from crm_assets.definitions import defs

Graph = dict[str, dict[str, object]]
"""Asset key → its group, and the keys it depends on."""

PICTURE_TEXT = "asset graph"
"""Name of the text chunk of the PNG that holds the graph as JSON."""


def live_graph() -> Graph:
    """The graph of the code location as it is now."""
    nodes = defs.resolve_asset_graph()
    return {
        key.to_user_string(): {
            "group": nodes.get(key).group_name,
            "deps": sorted(parent.to_user_string() for parent in nodes.get(key).parent_keys),
        }
        for key in sorted(nodes.get_all_asset_keys())
    }


def pictured_graph(picture: Path) -> Graph:
    """The graph a picture was taken of.

    Raises:
        KeyError: it is not one of `make graph-picture`.
    """
    from PIL import Image

    with Image.open(picture) as image:
        return json.loads(image.text[PICTURE_TEXT])
