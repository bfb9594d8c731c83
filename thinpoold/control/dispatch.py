"""From a line of the control socket to the line that answers it.

Invariants

1. Whatever the line holds and whatever a method raises, an answer comes out; nothing propagates.
2. Methods that change the pool run one at a time, whichever connection they come from, so that
   what a method checked still holds when it acts. Those that only look do not wait for them; nor
   does anybody wait for what a method leaves to do when its change is made.

Thread-safety: `answer` and `call` may be called from any thread.
"""

import contextlib
import logging
import threading

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
        self._changing = threading.Lock()

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
        with self._changing if method.changes else contextlib.nullcontext():
            result = method.run(self._host, params)
        return result() if callable(result) else result

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
