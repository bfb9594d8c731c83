"""The control socket: JSON-RPC 2.0, one message a line, both ways.

`jsonrpc` is the protocol alone, `methods` what can be asked of a pool, `server` the daemon's side
and `client` the command line's. docs/control-protocol.md is generated from them.
"""
