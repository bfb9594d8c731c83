"""The pools of the tests of the command line, for those here."""

from tests.integration.cli.conftest import module_pools, rig

__all__ = ["module_pools", "rig"]
