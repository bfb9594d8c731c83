"""thinpoold: device-mapper thin provisioning in user space, served over NBD.

The package holds the daemon of a pool and the command line. The metadata library beneath it is
`thinmeta`, which knows neither of them.
"""

__version__ = "0.1.0"
