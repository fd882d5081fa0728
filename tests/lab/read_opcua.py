"""An OPC UA client as an agent would write it: prints {"ok", "value" | "errno"} for HOST PORT."""

import asyncio
import json
import logging
import sys

from asyncua import Client

logging.disable(logging.CRITICAL)


async def read(host, port):
    async with Client(f"opc.tcp://{host}:{port}/", timeout=4) as client:
        return await client.get_node("ns=2;s=pump-3.speed").read_value()


try:
    print(json.dumps({"ok": True, "value": asyncio.run(read(sys.argv[1], sys.argv[2]))}))
except OSError as error:
    print(json.dumps({"ok": False, "errno": error.errno}))
