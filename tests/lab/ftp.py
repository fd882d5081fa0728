"""FTP servers that refuse every password, one for each HOST:PORT: something that guessing tools can guess at."""

import asyncio

import journal

ANSWERS = {b"USER": b"331 password\r\n", b"PASS": b"530 no\r\n", b"QUIT": b"221 bye\r\n"}


async def talk(reader, writer):
    writer.write(b"220 lab\r\n")
    while line := await reader.readline():
        writer.write(ANSWERS.get(line[:4].upper(), b"502 no\r\n"))
        await writer.drain()
    writer.close()


async def serve(*addresses):
    servers = []
    for address in addresses:
        host, port = address.rsplit(":", 1)
        servers.append(await asyncio.start_server(talk, host, int(port)))
    journal.ready()
    await asyncio.gather(*(server.serve_forever() for server in servers))


journal.main(serve)
