"""System calls that Node does not have, for test/contracts/transport.ts: probe.py OPERATION ARGUMENTS, answers JSON."""
import ctypes
import json
import mmap
import os
import sys

libc = ctypes.CDLL(None, use_errno=True)


def attempt(action):
    """The action's result, or the error's number as {"errno": n}."""
    try:
        return action()
    except OSError as error:
        return {"errno": error.errno}


def lseek(path, whence, *positions):
    """lseek(2) from each position; 3 is SEEK_DATA, 4 SEEK_HOLE."""
    fd = os.open(path, os.O_RDONLY)
    return [attempt(lambda: os.lseek(fd, int(position), int(whence))) for position in positions]


def mapped(path):
    """The hash-like sum of a file's bytes as mmap(2) shows them, page by page from the end, as hexadecimal text."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        starts = range(0, len(pages), mmap.PAGESIZE)
        return "".join(reversed([pages[at : at + mmap.PAGESIZE].hex() for at in reversed(starts)]))


def xattr(call, path, name, *sizes):
    """getxattr(2) or listxattr(2) with buffers of the given sizes: [length, content in hex] or the error."""

    def once(size):
        buffer = ctypes.create_string_buffer(max(size, 1))
        if call == "get":
            length = libc.getxattr(path.encode(), name.encode(), buffer, size)
        else:
            length = libc.listxattr(path.encode(), buffer, size)
        if length < 0:
            return {"errno": ctypes.get_errno()}
        return [length, buffer.raw[: min(length, size)].decode()]

    return [once(int(size)) for size in sizes]


def inodes(directory):
    """Name and inode number of each entry as getdents(2) gives them, in its order."""
    return [[entry.name, entry.inode()] for entry in os.scandir(directory)]


OPERATIONS = {"lseek": lseek, "mapped": mapped, "xattr": xattr, "inodes": inodes}
print(json.dumps(OPERATIONS[sys.argv[1]](*sys.argv[2:])))
