"""HTTP/1.1, WebSocket and server-sent events over the API's socket: bounded, typed, without ``socket`` or ``json``.

Pure parsing stands apart from the sockets (http, websocket, events), so that fuzzers drive it with bytes.
"""
