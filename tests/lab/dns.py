"""A name server: `many.lab` and, inside, `many.inside.lab` have 12 A and 12 AAAA records, `web.lab` and `h1.lab` to `h60.lab` one A record,
everything else is unknown."""

import sys
import threading

import journal
from dnslib import AAAA, QTYPE, RCODE, RR, A
from dnslib.server import BaseResolver, DNSLogger, DNSServer

NAMES = {
    "many.lab.": ([f"203.0.113.{n}" for n in range(10, 22)], [f"2001:db8:113::{n}" for n in range(10, 22)]),
    "many.inside.lab.": ([f"10.50.13.{n}" for n in range(1, 13)], [f"fd00:50::{n}" for n in range(1, 13)]),
    "web.lab.": (["198.51.100.10"], []),
    **{f"h{n}.lab.": ([f"203.0.113.{100 + n}"], []) for n in range(1, 61)},
}


class Resolver(BaseResolver):
    def resolve(self, request, handler):
        journal.write("datagram", handler.server.server_address, handler.client_address)
        reply = request.reply()
        v4, v6 = NAMES.get(str(request.q.qname).lower(), (None, None))
        if v4 is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.A:
            reply.add_answer(*(RR(request.q.qname, QTYPE.A, rdata=A(a), ttl=1) for a in v4))
        elif request.q.qtype == QTYPE.AAAA:
            reply.add_answer(*(RR(request.q.qname, QTYPE.AAAA, rdata=AAAA(a), ttl=1) for a in v6))
        return reply


def main():
    journal.open_journal(sys.argv[1])
    host, port = sys.argv[2].rsplit(":", 1)
    DNSServer(Resolver(), address=host, port=int(port), logger=DNSLogger("-request,-reply,-truncated,-error")).start_thread()
    journal.ready()
    threading.Event().wait()


main()
