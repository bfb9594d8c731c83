"""Loads libnbd's Python module from Debian's package, into any environment of /usr/bin/python3.

Invariants:
1. Only `libnbdmod` and `nbd` come from the system's packages: nothing else there is importable
   because of this module.
2. When the module can be imported in the ordinary way, that one is taken.

Thread-safety: import once, read-only afterwards. libnbd lets the GIL go while it waits.
"""

import importlib.machinery
import importlib.util
import sys
from typing import Any

SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"


def _load(name: str) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None:
        spec = importlib.machinery.PathFinder.find_spec(name, [SYSTEM_PACKAGES])
    if spec is None or spec.loader is None:
        raise ImportError(
            f"no module {name} for {sys.executable}: install python3-libnbd, and make the virtual "
            "environment from /usr/bin/python3 (scripts/setup does both)"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


_load("libnbdmod")
nbd: Any = _load("nbd")
