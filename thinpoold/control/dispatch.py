"""From a line of the control socket to the line that answers it.

Invariants

1. Whatever the line holds and whatever a method raises, an answer comes out; nothing propagates.
2. No method waits for another here. What a method checked still holds when it acts because it does
   both in one stay in the metadata lock (`Pool.changing`), which nobody waits in: so one that waits
   for space, for the disk or for a name service keeps no other command waiting.

Thread-safety: `answer` and `call` may be called from any thread.
"""

import logging

from thinpoold.control import jsonrpc
from thinpoold.control.codes import to_rpc
from thinpoold.control.jsonrpc import INTERNAL_ERROR, METHOD_NOT_FOUND, Json, Request, RpcError
from thinpoold.control.methods import METHODS, Host
from thinpoold.control.params import bind

log = logging.getLogger(__name__)


class Dispatcher:
    """Runs methods on a host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def answer(self, line: bytes) -> bytes:
        """Return the line that answers one line; nothing when all in it are notifications."""
        message = jsonrpc.parse(line)
        responses = [self._respond(call) for call in message.calls]
        return jsonrpc.join([one for one in responses if one is not None], message.batch)

    def call(self, name: str, given: dict[str, Json] | list[Json]) -> Json:
        """Run one method. Raises RpcError when it or its parameters make no sense, and what it
        raises."""
        method = METHODS.get(name)
        if method is None:
            known = ", ".join(METHODS)
            raise RpcError(METHOD_NOT_FOUND, f"no method {name[:40]!r}; there are: {known}")
        params = bind(method.params, given)
        return method.run(self._host, params)

    def _respond(self, call: Request | RpcError) -> bytes | None:
        if isinstance(call, RpcError):
            return jsonrpc.encode_error(call)
        try:
            result = self.call(call.method, call.params)
            return None if call.notification else jsonrpc.encode_result(call.id, result)
        except RpcError as error:
            rpc = error
        except Exception as error:
            rpc = to_rpc(error)
            if rpc.code == INTERNAL_ERROR:
                log.exception("control method %r", call.method)
        rpc.request_id = call.id
        return None if call.notification else jsonrpc.encode_error(rpc)
