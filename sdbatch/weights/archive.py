"""The directory of a zip archive as torch writes it: members stored as they are, never compressed.

Only the directory is read. Compressed members, overlaps and endless directories are refused from it, so a zip bomb
costs nothing. Source: the ZIP application note (end record, zip64 records, central directory).
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from sdbatch.weights.header import FlawError, Limits, shown, to_size

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_MEMBER = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x1


class Member(NamedTuple):
    """One stored file of the archive."""

    size: int
    """In bytes."""
    offset: int
    """Of its local header."""


def read_directory(descriptor: int, size: int, limits: Limits) -> dict[str, Member]:
    """The members of an archive by name.

    Raises: FlawError when it is cut off, compressed, encrypted, or holds more than the file can.
    """
    start, length = _find_directory(descriptor, size)
    if length > limits.pickle_bytes or start + length > size:
        raise FlawError(f"its directory should have {to_size(length)}, which it cannot have. Download it again.")
    directory = os.pread(descriptor, length, start)
    members: dict[str, Member] = {}
    position = 0
    while position < len(directory):
        if len(members) >= limits.archive_members:
            raise FlawError(f"holds more than {limits.archive_members} members. No checkpoint does: do not use it.")
        position = _read_member(directory, position, members)
    total = sum(member.size for member in members.values())
    if total > size:
        raise FlawError(f"its members claim {to_size(total)}, but the file has {to_size(size)} (a zip bomb?). Do not use it.")
    return members


def read_member(descriptor: int, member: Member, limit: int) -> bytes:
    """The bytes of a stored member.

    Raises: FlawError when it is larger than `limit` or its place is made up.
    """
    if member.size > limit:
        raise FlawError(f"its pickle has {to_size(member.size)}, more than {to_size(limit)}. No checkpoint needs that: do not use it.")
    local = os.pread(descriptor, _LOCAL.size, member.offset)
    if len(local) < _LOCAL.size or local[:4] != b"PK\x03\x04":
        raise FlawError("a member of the archive is not where its directory says. Download it again.")
    *_, name_length, extra_length = _LOCAL.unpack(local)
    content = os.pread(descriptor, member.size, member.offset + _LOCAL.size + name_length + extra_length)
    if len(content) < member.size:
        raise FlawError("a member of the archive is cut off. Download it again.")
    return content


def _find_directory(descriptor: int, size: int) -> tuple[int, int]:
    """Offset and length of the central directory."""
    tail_start = max(0, size - 0xFFFF - _END.size)
    tail = os.pread(descriptor, size - tail_start, tail_start)
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) - place < _END.size:
        raise FlawError(f"{to_size(size)} present, but the end of the archive is missing (truncated download?). Download it again.")
    *_, length, start, _ = _END.unpack_from(tail, place)
    locator = place - _END64_LOCATOR.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        where = _END64_LOCATOR.unpack_from(tail, locator)[2]
        record = os.pread(descriptor, _END64.size, where) if where < size else b""
        if len(record) < _END64.size or record[:4] != b"PK\x06\x06":
            raise FlawError("the end of the archive is damaged. Download it again.")
        *_, length, start = _END64.unpack(record)
    return start, length


def _read_member(directory: bytes, position: int, members: dict[str, Member]) -> int:
    """Read one entry of the directory; returns where the next begins."""
    if directory[position : position + 4] != b"PK\x01\x02" or len(directory) - position < _MEMBER.size:
        raise FlawError("the directory of the archive is damaged. Download it again.")
    fields = _MEMBER.unpack_from(directory, position)
    flags, method = fields[3], fields[4]
    packed, unpacked, name_length, extra_length, comment_length = fields[8:13]
    name_end = position + _MEMBER.size + name_length
    name = directory[position + _MEMBER.size : name_end].decode("utf-8", "replace")
    extra = directory[name_end : name_end + extra_length]
    unpacked, packed, offset = _widen(extra, (unpacked, packed, fields[16]))
    if method != 0 or packed != unpacked or flags & _ENCRYPTED:
        raise FlawError(
            f"member {shown(name, 60)} is compressed ({to_size(packed)} -> {to_size(unpacked)}); torch never writes that "
            "(a zip bomb?). Do not use it."
        )
    if name in members:
        raise FlawError(f"holds {shown(name, 60)} twice. Do not use it.")
    members[name] = Member(unpacked, offset)
    return name_end + extra_length + comment_length


def _widen(extra: bytes, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """Put the 64-bit values of the zip64 field in place of those that did not fit in 32 bits."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        if tag == 1:
            values = iter(struct.unpack_from(f"<{min(length, len(extra) - position - 4) // 8}Q", extra, position + 4))
            first, second, third = (next(values, size) if size == 0xFFFFFFFF else size for size in sizes)
            return first, second, third
        position += 4 + length
    return sizes
