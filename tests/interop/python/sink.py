"""Takes OTLP over HTTP and gRPC, decodes it with the official protocol package, and writes what came (see otlp.py).

Usage: sink.py HTTP_PORT GRPC_PORT FILE
"""

import sys
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc

import otlp


def http_handler(file):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            chunked = self.headers.get("transfer-encoding", "") == "chunked"
            body = self.chunks() if chunked else self.rfile.read(int(self.headers["content-length"]))
            body = otlp.inflate(body, self.headers.get("content-encoding"))
            content_type = self.headers.get("content-type", "application/x-protobuf")
            is_json = content_type.startswith("application/json")
            otlp.write(file, otlp.rows(self.path.removeprefix("/v1/"), body, is_json))
            answer = b"{}" if is_json else b""
            self.send_response(200)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def chunks(self):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, *_):
            pass

    return Handler


class Methods(grpc.GenericRpcHandler):
    """Unparsed messages in, the empty message (which is success) out."""

    def __init__(self, file):
        self.file = file

    def service(self, details):
        signal = otlp.GRPC_METHODS.get(details.method)
        if signal is None:
            return None

        def export(body, _context):
            otlp.write(self.file, otlp.rows(signal, body))
            return b""

        return grpc.unary_unary_rpc_method_handler(export)


def main():
    http_port, grpc_port, path = sys.argv[1:4]
    with open(path, "a", encoding="utf-8") as file:
        server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Methods(file)])
        server.add_insecure_port(f"127.0.0.1:{grpc_port}")
        server.start()
        ThreadingHTTPServer(("127.0.0.1", int(http_port)), http_handler(file)).serve_forever()


if __name__ == "__main__":
    main()
