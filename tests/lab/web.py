"""Web servers: `login=HOST:PORT` is the stand-in for an industrial gateway, a page with one password field; `site=HOST:PORT` is an ordinary site.

The gateway is a stand-in for testing a refusal in front of it. It is no copy of any product's page.
"""

import json
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import journal

PASSWORD = "not-in-any-list"
FORM = b"<form method=post action=/login><input type=password name=password><button>Sign in</button></form>\n"
DOCUMENTATION = b"<h1>Gateway manual</h1><p>The administrator's password is set at first start.</p>\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer is one write: in two, the second would wait for the client's delayed acknowledgement.
    wbufsize = -1

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, FORM if self.server.login else DOCUMENTATION)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        guess = urllib.parse.parse_qs(body).get("password", [""])[0]
        journal.write("guess", self.server.server_address, self.client_address, right=guess == PASSWORD)
        self.answer(200 if guess == PASSWORD else 401, json.dumps({"ok": guess == PASSWORD}).encode())


class Site(ThreadingHTTPServer):
    daemon_threads = True

    def get_request(self):
        connection, peer = super().get_request()
        journal.write("accept", self.server_address, peer)
        return connection, peer


def main():
    journal.open_journal(sys.argv[1])
    for argument in sys.argv[2:]:
        kind, address = argument.split("=", 1)
        host, port = address.rsplit(":", 1)
        site = Site((host, int(port)), Handler)
        site.login = kind == "login"
        threading.Thread(target=site.serve_forever, daemon=True).start()
    journal.ready()
    threading.Event().wait()


main()
