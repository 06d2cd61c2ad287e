"""Relays TCP untouched, and notes which OTLP requests the client sent: both ends speak to each other, not to us.

Usage: tap.py FILE http|grpc LISTEN_PORT TARGET_PORT [http|grpc LISTEN_PORT TARGET_PORT]…
"""

import gzip
import os
import socket
import sys
import threading
import traceback

import h2.config
import h2.connection
import h2.events

import otlp


class Http1:
    """Takes a client's bytes; yields (signal, body, is JSON) for each whole request."""

    def __init__(self):
        self.pending = b""

    def take(self, data):
        self.pending += data
        while (request := self.next()) is not None:
            yield request

    def next(self):
        head, separator, rest = self.pending.partition(b"\r\n\r\n")
        if not separator:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body, rest = self.chunks(rest)
        else:
            length = int(headers.get("content-length", "0"))
            body, rest = (rest[:length], rest[length:]) if len(rest) >= length else (None, rest)
        if body is None:
            return None
        self.pending = rest
        signal = first.split(" ")[1].removeprefix("/v1/")
        is_json = headers.get("content-type", "").startswith("application/json")
        return signal, otlp.inflate(body, headers.get("content-encoding")), is_json

    @staticmethod
    def chunks(rest):
        body = b""
        while True:
            line, separator, rest = rest.partition(b"\r\n")
            if not separator:
                return None, b""
            size = int(line.split(b";")[0], 16)
            if len(rest) < size + 2:
                return None, b""
            body, rest = body + rest[:size], rest[size + 2 :]
            if size == 0:
                return body, rest


class Grpc:
    def __init__(self):
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.connection.initiate_connection()
        self.calls = {}

    def take(self, data):
        for event in self.connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                headers = {bytes(name): bytes(value) for name, value in event.headers}
                self.calls[event.stream_id] = (otlp.GRPC_METHODS[headers[b":path"].decode()], bytearray())
            elif isinstance(event, h2.events.DataReceived):
                self.calls[event.stream_id][1].extend(event.data)
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                signal, frame = self.calls.pop(event.stream_id)
                if int.from_bytes(frame[1:5], "big") != len(frame) - 5:
                    raise ValueError("not one whole message in a unary call")
                body = bytes(frame[5:])
                yield signal, gzip.decompress(body) if frame[0] else body, False


def pump(source, target, each=None):
    try:
        while data := source.recv(1 << 16):
            if each:
                each(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One side has gone: so shall the other.
        source.close()
        target.close()


def relay(client, target_port, parser, file):
    server = socket.create_connection(("127.0.0.1", target_port))

    def note(data):
        try:
            for signal, body, is_json in parser.take(data):
                otlp.write(file, otlp.rows(signal, body, is_json))
        except Exception:
            # A tap that cannot read must not look like a client that sent nothing.
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=pump, args=(server, client), daemon=True).start()
    pump(client, server, note)


def listen(protocol, port, target_port, file):
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            client, _ = listener.accept()
            parser = Http1() if protocol == "http" else Grpc()
            threading.Thread(target=relay, args=(client, target_port, parser, file), daemon=True).start()


def main():
    path, *routes = sys.argv[1:]
    with open(path, "a", encoding="utf-8") as file:
        threads = [
            threading.Thread(target=listen, args=(routes[n], int(routes[n + 1]), int(routes[n + 2]), file))
            for n in range(0, len(routes), 3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
