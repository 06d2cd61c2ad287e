#!/usr/bin/env python3
"""Prints so many free ports of loopback: tests/free_ports.py COUNT.

They lie below those that the kernel hands out by itself (from 32768 on by default), so that none is given away between
its choice and the start of its process, or while that is down.
"""

import random
import socket
import sys

RANGE = range(20_000, 32_000)


def free_ports(count):
    found = []
    for port in random.sample(RANGE, len(RANGE)):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    sys.exit(f"no {count} free ports in {RANGE}")


if __name__ == "__main__":
    print(*free_ports(int(sys.argv[1])))
