"""Volumes as block devices of this machine: the kernel's nbd, or FUSE without it.

genl        generic netlink: messages and the socket
guard       what must not happen to a volume that is attached
kernel      what the nbd module is asked over it, and what it tells
devices     the nbd devices, as /sys/block shows them
mounts      who uses a block device: mounts, swap, holders, processes
nbdclient   nbd-client's command lines
handshake   an NBD connection made ready to be handed to the kernel
records     what this machine has attached
keeper      the process that stays with a device and reconnects it
fuse        attaching without root: nbdfuse, and a loop device where that is allowed
unmount     unmounting what was attached, also where its daemon is gone
verbs       attach, refresh and detach, as the command line calls them
"""
