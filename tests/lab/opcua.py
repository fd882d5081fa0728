"""An OPC UA server with one variable, a pump's speed. The number is invented."""

import asyncio
import logging

import journal
from asyncua import Server, ua

logging.disable(logging.WARNING)


async def serve(address):
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://{address}/")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    space = await server.register_namespace("urn:lab:pump-station")
    pump = await server.nodes.objects.add_object(space, "pump-3")
    await pump.add_variable(ua.NodeId("pump-3.speed", space), "speed", 1470)
    async with server:
        journal.ready()
        await asyncio.Event().wait()


journal.main(serve)
