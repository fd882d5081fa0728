"""Reaches for many targets as one program would, and says how many of them the kernel let go out.

argv: how (`tcp`, `udp`, `udp-connect`, `icmp`, `syn`), at once how many, then HOST:PORT words, or HOST[A-B]:PORT[A-B] for ranges of
both. A refusal by the far end is an attempt that went out; only the kernel's EPERM is one that did not. Prints one line of JSON:
{"out": n, "refused": n, "first_refused": index or null}.
"""

import asyncio
import itertools
import json
import re
import socket
import struct
import sys

PLAIN = re.compile(r"^([\d.]+?)(?:\[(\d+)-(\d+)\])?:(\d+)(?:-(\d+))?(?:x(\d+))?$")


def targets(words):
    for word in words:
        host, first, last, port, port_last, times = PLAIN.match(word).groups()
        hosts = [host] if first is None else [f"{host}{number}" for number in range(int(first), int(last) + 1)]
        ports = range(int(port), int(port_last or port) + 1)
        for target in itertools.product(hosts, ports):
            yield from itertools.repeat(target, int(times or 1))


def diagonal(count):
    return ((f"10.50.{1 + number // 200}.{1 + number % 200}", 6000 + number) for number in range(count))


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(host, port):
    """One SYN from a raw socket, past every connect hook."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    probe.connect((host, port))
    source, far = socket.inet_aton(probe.getsockname()[0]), socket.inet_aton(host)
    header = struct.pack("!HHIIBBHHH", 40000 + port % 20000, port, 1, 0, 5 << 4, 2, 1024, 0, 0)
    pseudo = source + far + struct.pack("!BBH", 0, 6, len(header))
    header = header[:16] + struct.pack("!H", checksum(pseudo + header)) + header[18:]
    raw.sendto(header, (host, 0))


def icmp(host, _):
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    packet = struct.pack("!BBHHH", 8, 0, 0, 7, 7)
    raw.sendto(packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:], (host, 0))


def udp(host, port):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", (host, port))


def udp_connect(host, port):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect((host, port))


def went(act, host, port):
    try:
        act(host, port)
    except PermissionError:
        return False
    return True


async def tcp(host, port):
    try:
        async with asyncio.timeout(3):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except PermissionError:
        return False
    except (OSError, TimeoutError):
        pass
    return True


async def all_tcp(list_of, at_once):
    gate = asyncio.Semaphore(at_once)

    async def one(target):
        async with gate:
            return await tcp(*target)

    return await asyncio.gather(*(one(target) for target in list_of))


def main():
    how, at_once, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    list_of = list(diagonal(int(words[0][len("diagonal:") :])) if words[0].startswith("diagonal:") else targets(words))
    if how == "tcp":
        results = asyncio.run(all_tcp(list_of, at_once))
    else:
        act = {"udp": udp, "udp-connect": udp_connect, "icmp": icmp, "syn": syn}[how]
        results = [went(act, *target) for target in list_of]
    refused = [index for index, went_out in enumerate(results) if not went_out]
    print(json.dumps({"out": len(results) - len(refused), "refused": len(refused), "first_refused": refused[0] if refused else None}))


main()
