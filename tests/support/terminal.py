"""A terminal that a program writes to, and what it wrote."""

import fcntl
import os
import pty
import struct
import termios


def open_terminal(columns: int) -> tuple[int, int]:
    """(descriptor to read from, descriptor that the program has as its terminal)."""
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return reading, writing


def read_to_end(reading: int, writing: int) -> bytes:
    """All that was written, once the program has ended; closes both descriptors, of a terminal or of a pipe."""
    os.close(writing)
    found = b""
    try:
        while block := os.read(reading, 2**16):
            found += block
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    os.close(reading)
    return found
