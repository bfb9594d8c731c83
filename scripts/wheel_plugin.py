"""Hatch build hook: a wheel carries nbdkit's script, an editable install reads the checkout's.

nbdkit loads the plugin by path, not by import, so it lives in `plugins/` of the source tree. In a
wheel it becomes `thinpoold/_plugin/thinpool.py`, which keeps the wheel's top-level names to the two
import packages. An editable install must not get a copy: it would go stale.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PluginHook(BuildHookInterface[Any]):
    """Adds the nbdkit script to wheels that are not editable."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"]["plugins/thinpool.py"] = "thinpoold/_plugin/thinpool.py"
