"""A test suite as web projects have them: each test starts a server on an address of the machine's own, asks it, and ends it.

argv: an own address that is not loopback, whose servers take ports from 7000 on; the others take what is free.
"""

import http.client
import http.server
import socket
import socketserver
import sys
import threading
import unittest

OWN = sys.argv[1]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"here")


class Server(socketserver.TCPServer):
    allow_reuse_address = True

    def __init__(self, host, port):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)


class Servers(unittest.TestCase):
    """Filled in below: a test for each server."""


def case(host, port):
    def test(self):
        with Server(host, port) as server:
            answering = threading.Thread(target=server.handle_request)
            answering.start()
            client = http.client.HTTPConnection(host, server.server_address[1], timeout=20)
            client.request("GET", "/")
            self.assertEqual(client.getresponse().read(), b"here")
            client.close()
            answering.join()

    return test


for number in range(200):
    setattr(Servers, f"test_loopback_{number}", case("127.0.0.1", 0))
for number in range(100):
    setattr(Servers, f"test_loopback_v6_{number}", case("::1", 0))
for number in range(50):
    setattr(Servers, f"test_own_address_{number}", case(OWN, 7000 + number))

unittest.main(argv=["suite"])
