"""What the black-box tests stand on: a pool driven through the CLI, NBD clients, the checkers.

Nothing in here imports the product. A pool is made, started, killed and asked about through the
programs `thinpool` and `thinpoold`, its control socket, and NBD; so the same tests hold whatever
the inside looks like.

libnbd's Python module is Debian's `python3-libnbd`. It is a compiled module of the system
interpreter and is published nowhere else, and a virtual environment does not see the system's
packages. `libnbd.py` loads just that module from its place, so the environment needs neither
`--system-site-packages` nor a path file: `/usr/bin/python3 -m venv` and the Debian package are
enough.
"""
