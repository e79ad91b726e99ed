"""Open a terminal for a program, and read the program's output."""

import fcntl
import os
import pty
import struct
import termios


def open_terminal(columns: int) -> tuple[int, int]:
    """Return (descriptor to read from, descriptor of the program's terminal)."""
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return reading, writing


def read_to_end(reading: int, writing: int) -> bytes:
    """Return all output of a program that has ended. Closes both descriptors, of a terminal or of a pipe."""
    os.close(writing)
    output = b""
    try:
        while block := os.read(reading, 2**16):
            output += block
    except OSError:  # the end of output on a terminal
        pass
    os.close(reading)
    return output
