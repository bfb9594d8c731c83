"""`thinpool attach` and `thinpool detach`."""

import os
from typing import Any

import click

from thinpoold.attach import nbdclient, records, verbs
from thinpoold.attach.devices import parse_nbd_device
from thinpoold.attach.errors import AttachFailed, AttachRefused
from thinpoold.attach.records import Attachment
from thinpoold.attach.verbs import PATIENCE_SECONDS, Wanted
from thinpoold.cli import output
from thinpoold.cli.options import Name, Text, chosen_pool, json_option, verb
from thinpoold.progress import Progress

_FOR_A_NEW_ONE = (
    *("device", "read_only", "mount", "mount_options", "user"),
    *("connections", "block_size", "timeout"),
)


@verb("attach")
@click.argument("volume", metavar="VOL", type=Name())
@click.option("--device", metavar="/dev/nbdN", help="The nbd device to use. [one that is free]")
@click.option("--read-only", is_flag=True, help="Nothing can be written through the device.")
@click.option("--mount", metavar="DIR", help="Mount it there.")
@click.option(
    "-o", "--mount-options", metavar="OPTIONS", help="Options for the mount, as mount -o."
)
@click.option("--user", is_flag=True, help="Without root and the kernel's nbd: nbdfuse.")
@click.option(
    "--connections",
    metavar="N",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Connections to the daemon.",
)
@click.option(
    "--block-size",
    metavar="BYTES",
    type=click.Choice(["512", "1024", "2048", "4096"]),
    default="512",
    show_default=True,
    help="The device's logical block size.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.IntRange(0, 1 << 31),
    default=PATIENCE_SECONDS,
    show_default=True,
    help="How long I/O waits for a daemon that is gone before it fails.",
)
@click.option("--refresh", is_flag=True, help="Tell the kernel the size of an attached volume.")
@json_option
@click.pass_context
def attach(
    context: click.Context,
    volume: str,
    device: str | None,
    read_only: bool,
    mount: str | None,
    mount_options: str | None,
    user: bool,
    connections: int,
    block_size: str,
    timeout: int,
    refresh: bool,
    pool: str | None,
    as_json: bool,
) -> None:
    """Make the volume VOL a block device of this machine, and print the device.

    The pool must run. While its daemon is stopped, upgraded or dead, I/O waits, and goes on when it
    is back, without an error. After a resize, --refresh gives the kernel the new size; nothing
    needs to be unmounted.

    --user works without root: it prints a loop device where this user may make one, and otherwise
    a file that reads and writes as the volume. --refresh makes that anew, and prints it again;
    nobody may use it meanwhile.

    \b
    Examples:
      thinpool -p mypool attach disk
      thinpool -p mypool attach disk --mount /mnt
      thinpool -p mypool attach disk --refresh && resize2fs /dev/nbd0

    Exit status: 0 attached; 1 refused (no such volume, the pool does not run, the device is in
    use, no nbd module) or failed, and then nothing stays attached.
    """
    paths = chosen_pool(pool)
    if refresh:
        _no_others(context)
        attachment = verbs.find(paths, volume)
        with Progress(f"connecting {attachment.device} anew"):
            attachment, size = verbs.refresh(paths, attachment)
        _tell(attachment, as_json, size=size)
        return
    if user and device is not None:
        raise click.UsageError("--device and --user exclude each other", context)
    if mount_options is not None and mount is None:
        raise click.UsageError("--mount-options needs --mount", context)
    if mount is not None and not os.path.isdir(mount):
        raise AttachRefused(f"cannot mount at {mount}: there is no such directory; make it first")
    wanted = Wanted(
        device=parse_nbd_device(device) if device is not None else None,
        read_only=read_only,
        user=user,
        connections=connections,
        block_size=int(block_size),
        patience=timeout,
    )
    with Progress(f"attaching {volume}"):
        attachment = verbs.attach(paths, volume, wanted)
        if mount is not None:
            _mount(attachment, mount, mount_options)
    _tell(attachment, as_json)


@verb("detach")
@click.argument("what", metavar="VOL|DEVICE", type=Text())
@click.option("--unmount", is_flag=True, help="Unmount it first, wherever it is mounted.")
@click.option("--force", is_flag=True, help="Do without the daemon: what is unwritten is lost.")
@json_option
def detach(what: str, unmount: bool, force: bool, pool: str | None, as_json: bool) -> None:
    """Take the device of an attached volume away again.

    One that is mounted, or in use otherwise, is refused, and it is said by whom. A DEVICE or file
    is named by its path, and needs no pool.

    --unmount has the file system write what it has not written yet, so the daemon must answer: it
    is refused where it does not. --force is for a daemon that is gone for good: whoever has the
    device open gets errors, and what the daemon had not been given is lost. With --unmount it also
    takes a file system away that is in use.

    \b
    Examples:
      thinpool -p mypool detach disk
      thinpool detach /dev/nbd0 --unmount
      thinpool detach /dev/nbd0 --unmount --force

    Exit status: 0 detached; 1 refused (it is not attached, it is mounted, the daemon that is to be
    written to does not answer) or failed.
    """
    attachment = verbs.find(None if "/" in what else chosen_pool(pool), what)
    with Progress(f"detaching {attachment.device}"):
        left = verbs.detach(attachment, unmount=unmount, force=force)
    if left:
        output.note(f"{attachment.device} is free when who has it lets go: {', '.join(left)}")
    if as_json:
        output.emit_json({"device": attachment.device, "volume": attachment.volume})


def _no_others(context: click.Context) -> None:
    """Raise click.UsageError when --refresh comes with options of a first attach."""
    for name in _FOR_A_NEW_ONE:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise click.UsageError(f"{option} and --refresh exclude each other", context)


def _mount(attachment: Attachment, point: str, options: str | None) -> None:
    """Mount what was attached, or detach it again."""
    try:
        if attachment.block_device is None:
            raise AttachFailed(
                f"cannot mount {attachment.device}: it is no block device, and this user may not "
                "make a loop device; leave --mount out"
            )
        given = [*(["ro"] if attachment.read_only else []), *([options] if options else [])]
        command = [nbdclient.find("mount", "mount"), *(["-o", ",".join(given)] if given else [])]
        nbdclient.run([*command, "--", attachment.device, point])
    except BaseException:
        verbs.detach(attachment)
        raise


def _tell(attachment: Attachment, as_json: bool, size: int | None = None) -> None:
    if not as_json:
        output.emit(attachment.device)
        return
    current = records.reread(attachment) or attachment
    device = current.block_device
    document: dict[str, Any] = {
        "device": current.device,
        "volume": current.volume,
        "size": size if size is not None or device is None else device.size,
        "read_only": current.read_only,
        "connections": current.connections,
        "mounts": current.mounts(),
        "pid": current.pid,
    }
    output.emit_json(document)
