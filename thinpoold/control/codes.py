"""Error codes of the control socket: which exception becomes which, and what each means.

The one place where an exception turns into a JSON-RPC error. Codes are positive and never change
their meaning; `data.type` names the class for whoever wants it finer.

The metadata library is not imported: the command line talks to a running pool without it. Its
errors are told by the names of their classes.
"""

from dataclasses import dataclass

from thinpoold import errors
from thinpoold.control.jsonrpc import INTERNAL_ERROR, RpcError


@dataclass(frozen=True)
class Code:
    """One code: its number, the exception classes it stands for (by name), what it means."""

    number: int
    types: tuple[str, ...]
    meaning: str


# The first that fits an exception or one of its bases is taken, so children stand before parents.
CODES = (
    Code(2, ("NoSuchVolume", "NotFound"), "no such volume"),
    Code(3, ("VolumeExists", "AlreadyExists"), "the name is taken"),
    Code(4, ("VolumeInUse",), "clients have the volume open"),
    Code(1, ("UserError",), "the request cannot be met as it stands; nothing was touched"),
    Code(5, ("NoSpace", "NoDataSpace", "NoMetadataSpace"), "no room for data or metadata"),
    Code(6, ("PoolStopped", "Closed", "ReadOnlyStore"), "the pool's mode does not allow it"),
    Code(7, ("DeviceError", "StoreError", "OSError"), "the data device or the store failed"),
    Code(8, ("Corrupt", "UnsupportedFormat"), "the metadata is damaged, or of a newer format"),
    Code(9, ("ThinPoolError", "ThinMetaError"), "any other refusal or failure"),
)


class RemoteError(errors.ThinPoolError):
    """The daemon refused a request, or failed at it. `code` is the control socket's."""

    def __init__(self, message: str, code: int, type_name: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.type_name = type_name


def to_rpc(error: Exception) -> RpcError:
    """Return what a client is told of an exception; INTERNAL_ERROR for one nobody meant."""
    bases = [base.__name__ for base in type(error).__mro__]
    for code in CODES:
        if not set(code.types).isdisjoint(bases):
            return RpcError(code.number, one_line(error), {"type": type(error).__name__})
    return RpcError(
        INTERNAL_ERROR,
        f"internal error: {one_line(error)}; the daemon's log has the details",
        {"type": type(error).__name__},
    )


def from_rpc(error: RpcError) -> RemoteError:
    """Return the exception that the caller of a remote method gets."""
    type_name = error.data.get("type", "") if isinstance(error.data, dict) else ""
    return RemoteError(error.message, error.code, str(type_name))


def one_line(error: BaseException) -> str:
    """Return an exception's message without a line break; the class's name if it has none."""
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
