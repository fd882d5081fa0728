"""FTP servers that refuse every password, one for each HOST:PORT: something that guessing tools can guess at.

As common servers do, they hang up after three wrong passwords on one connection. Each guess is a line in the journal.
"""

import asyncio

import journal

WRONG_PASSWORDS = 3
ANSWERS = {b"USER": b"331 password\r\n", b"PASS": b"530 no\r\n", b"QUIT": b"221 bye\r\n"}


async def talk(reader, writer):
    local, peer = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
    wrong = 0
    writer.write(b"220 lab\r\n")
    while wrong < WRONG_PASSWORDS and (line := await reader.readline()):
        word = line[:4].upper()
        if word == b"PASS":
            wrong += 1
            journal.write("guess", local, peer, right=False)
        writer.write(ANSWERS.get(word, b"502 no\r\n"))
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
