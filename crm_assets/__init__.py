"""The asset graph, one sub-package per layer in the order of the data. `build.py` assembles it."""
