"""Finds the records of a zip archive: as much of the format as uncompressed records need.

`zipfile` reads a central directory of any size and inflates compressed records; a checkpoint needs neither.
Source: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3 (zip64).
"""

import struct
from dataclasses import dataclass
from io import BufferedReader

from sd_core.errors import ModelError
from sd_core.formats.keys import show

# Bytes of a central directory. That of a full v1.x training checkpoint has about half a megabyte.
MAX_DIRECTORY = 64 * 2**20

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")
_ENCRYPTED = 1
_STORED = 0


@dataclass(frozen=True)
class Record:
    """One file of an archive. `header` is the byte offset of its local header, `size` its length in bytes."""

    name: str
    header: int
    size: int
    plain: bool  # neither compressed nor encrypted


def read_directory(file: BufferedReader, size: int) -> dict[str, Record]:
    """All records by name. ModelError if the archive is damaged, truncated or implausible."""
    try:
        offset, length = _find_directory(file, size)
        if length > MAX_DIRECTORY:
            raise ModelError(f"the archive's directory has {length} bytes: not a checkpoint")
        records = _entries(_read_at(file, offset, length, size))
    except struct.error:
        raise ModelError("the archive's directory is damaged") from None
    return records


def data_offset(file: BufferedReader, record: Record, size: int) -> int:
    """The byte offset of a record's data. ModelError unless it is uncompressed, unencrypted and inside the file."""
    if not record.plain:
        raise ModelError(f"the record {show(record.name)} is compressed or encrypted, as PyTorch never writes it")
    header = _LOCAL.unpack(_read_at(file, record.header, _LOCAL.size, size))
    if header[0] != b"PK\x03\x04":
        raise ModelError(f"the record {show(record.name)} has no header where the archive's directory says")
    start = record.header + _LOCAL.size + int(header[-2]) + int(header[-1])
    if start + record.size > size:
        raise ModelError(f"the record {show(record.name)} reaches beyond the file's end: the file is incomplete")
    return start


def _find_directory(file: BufferedReader, size: int) -> tuple[int, int]:
    tail = min(size, _END.size + 0xFFFF)
    data = _read_at(file, size - tail, tail, size)
    found = data.rfind(b"PK\x05\x06")
    if found < 0 or found + _END.size > tail:
        raise ModelError("the archive has no directory at its end: the file is incomplete, copy or download it again")
    end = _END.unpack_from(data, found)
    length, offset = int(end[5]), int(end[6])
    locator = size - tail + found - _END64_LOCATOR.size
    if locator >= 0:
        signature, _, end64, _ = _END64_LOCATOR.unpack(_read_at(file, locator, _END64_LOCATOR.size, size))
        if signature == b"PK\x06\x07":
            record = _END64.unpack(_read_at(file, end64, _END64.size, size))
            if record[0] != b"PK\x06\x06":
                raise ModelError("the archive's directory is damaged")
            length, offset = int(record[8]), int(record[9])
    return offset, length


def _entries(directory: bytes) -> dict[str, Record]:
    records: dict[str, Record] = {}
    position = 0
    while position < len(directory):
        entry = _ENTRY.unpack_from(directory, position)
        if entry[0] != b"PK\x01\x02":
            raise ModelError("the archive's directory is damaged")
        flags, method, packed, unpacked = entry[5], entry[6], entry[10], entry[11]
        name_length, extra_length, comment_length, header = entry[12], entry[13], entry[14], entry[18]
        position += _ENTRY.size
        name = directory[position : position + name_length].decode("utf-8", "replace")
        extra = directory[position + name_length : position + name_length + extra_length]
        position += name_length + extra_length + comment_length
        unpacked, packed, header = _wide(extra, (unpacked, packed, header))
        if name in records:
            raise ModelError(f"the archive holds two records named {show(name)}")
        plain = method == _STORED and not flags & _ENCRYPTED and packed == unpacked
        records[name] = Record(name, header, unpacked, plain)
    return records


def _wide(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sizes and offset; those that do not fit 32 bits come from the zip64 extra field, in its order."""
    wide = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    numbers = iter(struct.unpack_from(f"<{len(wide) // 8}Q", wide))
    first, second, third = (next(numbers, value) if value == 0xFFFFFFFF else value for value in values)
    return first, second, third


def _read_at(file: BufferedReader, offset: int, length: int, size: int) -> bytes:
    if offset + length > size:
        raise ModelError("the archive points beyond its own end: the file is incomplete or damaged")
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise ModelError("the file was truncated while it was read")
    return data
