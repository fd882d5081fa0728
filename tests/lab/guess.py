"""Guesses at an FTP login with asyncio, a connection for each guess, as an agent would write it.

Usage: guess.py HOST PORT GUESSES AT_ONCE [EVERY]: guess number n begins n times EVERY seconds after the first.
Prints one line of JSON: {"answered": guesses that the server answered, "out": n, "refused": n, "first_refused": index or null}; refused is what
the kernel's EPERM kept from going out.
"""

import asyncio
import json
import sys

host, port, guesses, at_once = sys.argv[1], *map(int, sys.argv[2:5])
every = float(sys.argv[5]) if len(sys.argv) > 5 else 0.0


async def guess(number, begin, gate):
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, begin + number * every - loop.time()))
    async with gate:
        try:
            async with asyncio.timeout(20):
                reader, writer = await asyncio.open_connection(host, port)
                await reader.readline()
                writer.write(b"USER operator\r\n")
                await reader.readline()
                writer.write(b"PASS invented-%d\r\n" % number)
                answer = await reader.readline()
                writer.close()
        except PermissionError:
            return None
        except (OSError, TimeoutError):
            return False
    return answer.startswith(b"530")


async def main():
    gate, begin = asyncio.Semaphore(at_once), asyncio.get_running_loop().time()
    results = await asyncio.gather(*(guess(number, begin, gate) for number in range(guesses)))
    refused = [number for number, result in enumerate(results) if result is None]
    answered = sum(result is True for result in results)
    first = refused[0] if refused else None
    print(json.dumps({"answered": answered, "out": guesses - len(refused), "refused": len(refused), "first_refused": first}))


asyncio.run(main())
