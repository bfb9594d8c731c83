"""The nbdkit plugin of thinpoold: nbdkit python thinpool.py pool=DIRECTORY."""

from thinpoold.nbd import *  # noqa: F403
