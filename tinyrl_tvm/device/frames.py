# SPDX-License-Identifier: Apache-2.0
"""The frames in which host and device speak: `src/rpc.h` of a project describes them.

magic b1 7e | version | kind | sequence u32 | length u32 | payload | CRC-32 of all before it
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

MAGIC = b"\xb1\x7e"
VERSION = 1
HELLO, ASK, REPORT = 0x01, 0x02, 0x03
GREETED, ANSWERED, NOT_GREETED, REPORTED = 0x81, 0x82, 0x83, 0x84

MOST_TEXT_BYTES = 1 << 20

HEADER = struct.Struct("<2sBBII")
CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Frame:
    kind: int
    sequence: int
    payload: bytes = b""
    version: int = VERSION

    def to_bytes(self) -> bytes:
        body = HEADER.pack(MAGIC, self.version, self.kind, self.sequence, len(self.payload)) + self.payload
        return body + CRC.pack(zlib.crc32(body))


class FrameReader:
    """Finds frames in a stream that may lose, invent and change bytes. What is no frame is passed over byte by byte, so
    that a damaged frame never hides the one behind it. `longest_payload` bounds what a damaged length makes us wait
    for. `passed_over` is the end of what was no frame: garbage, or text that a device prints."""

    def __init__(self, longest_payload: int) -> None:
        self.longest_payload = longest_payload
        self.passed_over = bytearray()
        self._bytes = bytearray()

    def feed(self, received: bytes) -> list[Frame]:
        self._bytes += received
        found, start = [], 0
        while (begin := self._bytes.find(MAGIC[:1], start)) >= 0:
            self.passed_over += self._bytes[start:begin]
            start = begin
            rest = bytes(self._bytes[start : start + HEADER.size + self.longest_payload + CRC.size])
            wanted = self._bytes_wanted(rest)
            if len(rest) < wanted:
                break
            if wanted == 0 or zlib.crc32(rest[: wanted - CRC.size]) != CRC.unpack_from(rest, wanted - CRC.size)[0]:
                self.passed_over += self._bytes[start : start + 1]
                start += 1
                continue
            _, version, kind, sequence, _ = HEADER.unpack_from(rest)
            frame = Frame(kind, sequence, rest[HEADER.size : wanted - CRC.size], version)
            start += wanted
            found.append(frame)
        else:
            self.passed_over += self._bytes[start:]
            start = len(self._bytes)
        self._bytes = self._bytes[start:]
        del self.passed_over[:-MOST_TEXT_BYTES]
        return found

    def _bytes_wanted(self, rest: bytes) -> int:
        """Of the frame that `rest` begins with, as far as it tells; 0 when it begins with none."""
        if not rest.startswith(MAGIC[: len(rest)]):
            return 0
        if len(rest) < HEADER.size:
            return HEADER.size
        length = HEADER.unpack_from(rest)[-1]
        return HEADER.size + length + CRC.size if length <= self.longest_payload else 0
