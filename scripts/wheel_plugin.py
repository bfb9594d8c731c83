"""Hatch build hook: a wheel carries nbdkit's script and filter, an editable install does not.

nbdkit loads the plugin by path, not by import, so it lives in `plugins/` of the source tree. In a
wheel it becomes `thinpoold/_plugin/thinpool.py`, which keeps the wheel's top-level names to the two
import packages. An editable install must not get a copy: it would go stale. The filter goes along
as its source: what is built of it fits one version of nbdkit, and a wheel is for all machines.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PluginHook(BuildHookInterface[Any]):
    """Adds the script, and what the filter is built from, to wheels that are not editable."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        plugins = Path(self.root, "plugins")
        for source in (plugins / "thinpool.py", *sorted((plugins / "fastpath").glob("*"))):
            if source.is_file():
                name = source.relative_to(plugins)
                build_data["force_include"][str(source)] = f"thinpoold/_plugin/{name}"
