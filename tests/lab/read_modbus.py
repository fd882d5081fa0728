"""A Modbus client as an agent would write it: prints {"ok", "values" | "errno"} for HOST PORT."""

import json
import socket
import sys

from pymodbus.client import ModbusTcpClient

host, port = sys.argv[1], int(sys.argv[2])
try:
    # The library hides the error number of a connect: ask the socket itself first, through the same address.
    socket.create_connection((host, port), timeout=4).close()
    with ModbusTcpClient(host, port=port, timeout=4) as client:
        print(json.dumps({"ok": True, "values": client.read_holding_registers(0, count=4).registers}))
except OSError as error:
    print(json.dumps({"ok": False, "errno": error.errno}))
