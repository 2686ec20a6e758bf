"""Ports at which the processes of a test can meet while other tests do the same."""

import itertools
import os
import socket

FIRST, COUNT = 10000, 7000  # below the test cluster's, those derived from jobs, and those of outgoing connections
_numbers = itertools.count()


def free_port():
    """Return a port that nobody uses, and that no other test process takes: each tries its own numbers first.

    A port that the system picks may serve an outgoing connection, of which gloo makes many, before it is listened at.
    """
    while True:
        port = FIRST + (101 * os.getpid() + next(_numbers)) % COUNT
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
