"""Web servers: `login=HOST:PORT` is the stand-in for an industrial gateway, a page with one password field; `site=HOST:PORT` is an ordinary site.

A site has `/crawl`, a page that links to 300 addresses, and `/page`, one with a picture from each of 60 hosts; every other path is a manual or,
named `.gif`, a picture.

The gateway is a stand-in for testing a refusal in front of it. It is no copy of any product's page.
"""

import base64
import json
import socket
import socketserver
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import journal

PASSWORD = "not-in-any-list"
FORM = b"<form method=post action=/login><input type=password name=password><button>Sign in</button></form>\n"
DOCUMENTATION = b"<h1>Gateway manual</h1><p>The administrator's password is set at first start.</p>\n"
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
FAR = [f"203.0.113.{n}" for n in range(1, 251)] + [f"198.51.100.{n}" for n in range(100, 150)]
CRAWL = "".join(f"<a href='http://{host}/'>{host}</a>\n" for host in FAR).encode()
PICTURES = "".join(f"<img src='http://h{n}.lab/picture.gif'>\n" for n in range(1, 61))
COUNT = "<script>onload = () => document.title = [...document.images].filter(image => image.naturalWidth).length + ' pictures'</script>\n"
PAGE = ("<!doctype html>" + PICTURES + COUNT).encode()


def document(path):
    """What stands at a path of an ordinary site."""
    if path == "/crawl":
        return "text/html", CRAWL
    if path == "/page":
        return "text/html", PAGE
    if path.endswith(".gif"):
        return "image/gif", GIF
    return "text/html", DOCUMENTATION


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer is one write: in two, the second would wait for the client's delayed acknowledgement.
    wbufsize = -1

    def log_message(self, *_):
        pass

    def answer(self, status, body, kind="text/html"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        kind, body = ("text/html", FORM) if self.server.login else document(self.path)
        self.answer(200, body, kind)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        guess = urllib.parse.parse_qs(body).get("password", [""])[0]
        journal.write("guess", self.server.server_address, self.client_address, right=guess == PASSWORD)
        self.answer(200 if guess == PASSWORD else 401, json.dumps({"ok": guess == PASSWORD}).encode())


class Site(ThreadingHTTPServer):
    daemon_threads = True
    # As many as a browser or a crawler asks at once.
    request_queue_size = 128

    def __init__(self, host, port, login):
        self.login = login
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    def server_bind(self):
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Not HTTPServer's own, which asks a name server for the name of its address.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def get_request(self):
        connection, peer = super().get_request()
        journal.write("accept", connection.getsockname(), peer)
        return connection, peer


def main():
    journal.open_journal(sys.argv[1])
    for argument in sys.argv[2:]:
        kind, address = argument.split("=", 1)
        host, port = address.rsplit(":", 1)
        site = Site(host.strip("[]"), int(port), kind == "login")
        threading.Thread(target=site.serve_forever, daemon=True).start()
    journal.ready()
    threading.Event().wait()


main()
