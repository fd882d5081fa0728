"""Guesses at the gateway's login over connections that stay open, as an agent would write it.

Usage: spray.py HOST PORT GUESSES [BYTES [CONNECTIONS]]: that many guesses on each connection, each in a request of about BYTES bytes.
With more than one connection it is always the same socket, disconnected and connected once more.
Prints {"answered": [per connection], "errno": null | the error that ended it}.
"""

import http.client
import json
import socket
import struct
import sys

host, port, guesses = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
size = int(sys.argv[4]) if len(sys.argv) > 4 else 0
connections = int(sys.argv[5]) if len(sys.argv) > 5 else 1


def disconnect(sock):
    """connect(2) with AF_UNSPEC, which the socket module has no word for."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), struct.pack("H14x", 0), 16) != 0:
        raise OSError(ctypes.get_errno(), "disconnect")


def main():
    answered, errno = [], None
    sock = socket.socket()
    sock.settimeout(20)
    try:
        for number in range(connections):
            if number:
                disconnect(sock)
            answered.append(0)
            sock.connect((host, port))
            for guess in range(guesses):
                body = f"password=guess-{number}-{guess}&pad=" + "x" * size
                head = f"POST /login HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
                sock.sendall((head + body).encode())
                response = http.client.HTTPResponse(sock, method="POST")
                response.begin()
                response.read()
                answered[-1] += 1
    except OSError as error:
        errno = error.errno if error.errno is not None else -1
    print(json.dumps({"answered": answered, "errno": errno}))


main()
