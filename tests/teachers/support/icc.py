"""ICC profiles of Adobe RGB and of a grey channel, for tests of embedded profiles."""

import struct

import numpy as np

# Columns: the D50 XYZ of red, green and blue.
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
GAMMA = 563 / 256


def profile(colors: bytes = b"RGB ") -> bytes:
    """The ICC profile of Adobe RGB, or of a grey channel with its exponent."""

    def number(value):
        return struct.pack(">i", round(value * 65536))

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(GAMMA * 256)) + bytes(2)
    tags = {b"wtpt": b"XYZ " + bytes(4) + b"".join(map(number, (0.9642, 1.0, 0.8249)))}
    if colors == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, column in zip((b"r", b"g", b"b"), ADOBE.T, strict=True):
            tags[name + b"XYZ"] = b"XYZ " + bytes(4) + b"".join(map(number, column))
            tags[name + b"TRC"] = curve
    for name in (b"desc", b"cprt"):
        text = "test".encode("utf-16-be")
        tags[name] = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    content = struct.pack(">I", len(tags)) + table + body
    header = struct.pack(">I4sI4s4s4s", 128 + len(content), b"lcms", 0x04200000, b"mntr", colors, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(map(number, (0.9642, 1.0, 0.8249)))
    return header.ljust(128, b"\0") + content
