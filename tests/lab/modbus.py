"""Modbus/TCP servers with tank levels, one per address given as HOST:PORT (an IPv6 host in brackets). The levels are invented."""

import asyncio

import journal
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

TANK_LEVELS = [412, 388, 405, 397] * 8


async def serve(*addresses):
    running = []
    for address in addresses:
        host, port = address.rsplit(":", 1)
        device = SimDevice(id=0, simdata=SimData(0, values=TANK_LEVELS, datatype=DataType.REGISTERS))
        server = ModbusTcpServer(device, address=(host.strip("[]"), int(port)))
        await server.listen()
        running.append(server)
    journal.ready()
    await asyncio.Event().wait()


journal.main(serve)
