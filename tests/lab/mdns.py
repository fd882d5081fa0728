"""Asks by multicast DNS for services nearby, by IPv4 and IPv6, and listens as one who would answer: its own questions come back to it.

argv: the interface, and its IPv4 address. Prints {"heard": n}; exit code 1 where not each of its 40 questions was heard.
"""

import json
import socket
import struct
import sys

from dnslib import DNSRecord

PORT = 5353
QUESTIONS = [DNSRecord.question(f"_service{n}._tcp.local", "PTR").pack() for n in range(20)]


def bound(family, address):
    both = socket.socket(family, socket.SOCK_DGRAM)
    both.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    both.bind((address, PORT))
    both.settimeout(20)
    return both


def v4(own):
    both, group = bound(socket.AF_INET, ""), socket.inet_aton("224.0.0.251")
    both.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + socket.inet_aton(own))
    both.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
    both.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    return both, ("224.0.0.251", PORT)


def v6(interface):
    both, index = bound(socket.AF_INET6, "::"), socket.if_nametoindex(interface)
    both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, "ff02::fb") + struct.pack("@I", index))
    both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    return both, ("ff02::fb", PORT, 0, index)


def heard(both, group):
    count = 0
    for question in QUESTIONS:
        both.sendto(question, group)
        count += both.recv(1500) == question
    return count


def main():
    interface, own = sys.argv[1:]
    count = heard(*v4(own)) + heard(*v6(interface))
    print(json.dumps({"heard": count}))
    sys.exit(count != 2 * len(QUESTIONS))


main()
