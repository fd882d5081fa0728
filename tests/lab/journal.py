"""One JSON line for every connection and datagram that a lab server gets, in order, flushed one by one."""

import asyncio
import json
import sys
import threading
import time

_lock = threading.Lock()
_file = None


def open_journal(path):
    global _file
    _file = open(path, "a", encoding="utf-8")


def write(event, local, peer, **more):
    line = {"event": event, "local": _text(local), "peer": _text(peer), "at_ms": int(time.time() * 1000), **more}
    with _lock:
        _file.write(json.dumps(line) + "\n")
        _file.flush()


def _text(address):
    if not address:
        return ""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ready():
    print(json.dumps({"ready": True}), flush=True)


class JournalLoop(asyncio.SelectorEventLoop):
    """An event loop whose servers journal each connection, its bytes and its end, whatever protocol they speak."""

    async def create_server(self, protocol_factory, *args, **kwargs):
        return await super().create_server(lambda: _watch(protocol_factory()), *args, **kwargs)


def _watch(protocol):
    made, received, lost = protocol.connection_made, protocol.data_received, protocol.connection_lost
    seen = {"bytes": 0}

    def connection_made(transport):
        seen["local"] = transport.get_extra_info("sockname")
        seen["peer"] = transport.get_extra_info("peername")
        write("accept", seen["local"], seen["peer"])
        made(transport)

    def data_received(data):
        seen["bytes"] += len(data)
        received(data)

    def connection_lost(error):
        write("closed", seen.get("local"), seen.get("peer"), bytes=seen["bytes"])
        lost(error)

    protocol.connection_made, protocol.data_received, protocol.connection_lost = connection_made, data_received, connection_lost
    return protocol


def main(serve):
    """Runs `serve(*arguments)` on a journalling loop: argv is the journal's path, then the arguments."""
    open_journal(sys.argv[1])
    with asyncio.Runner(loop_factory=JournalLoop) as runner:
        runner.run(serve(*sys.argv[2:]))
