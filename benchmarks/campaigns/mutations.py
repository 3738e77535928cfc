"""Files changed by a seed: by their structure, and their bytes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import sqlite3
import struct
from pathlib import Path
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"),     "", "x", "../../canary", "/etc/passwd", "\x1b[31mred\n", "\u202etxt", "\ud800", "a" * 100_000,
    [], {}, [[]], [None],
    {"": 1}, [1, 2, 3], ["a", "a"], [0] * 10_000,
)  # fmt: skip
DTYPES = ("F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X9", 3)


def mutate_file(path: Path, draw: random.Random) -> str:
    """Change a file. Returns what was done, in words."""
    kinds = {".json": _json, ".safetensors": _safetensors, ".csv": _csv, ".jsonl": _lines, ".sqlite": _sqlite}
    if draw.random() < 0.25 or path.suffix not in kinds:
        done, content = mutate_bytes(path.read_bytes(), draw)
        path.write_bytes(content)
    else:
        done = kinds[path.suffix](path, draw)
    return f"{path.name}: {done}"


def mutate_bytes(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Bytes changed, cut, doubled, inserted or zeroed."""
    data = bytearray(content or b"0")
    what = draw.choice(
        ("flip", "flip many", "cut", "insert", "zero", "double", "numbers", "empty" if draw.random() < 0.1 else "cut")
    )
    at = draw.randrange(max(1, len(data)))
    near = draw.randrange(max(1, min(len(data), 200)))  # headers are where it hurts
    if what.startswith("flip"):
        for _ in range(1 if what == "flip" else draw.randint(2, 40)):
            data[draw.choice((near, draw.randrange(len(data))))] ^= 1 << draw.randrange(8)
    elif what == "cut":
        del data[at:]
    elif what == "insert":
        data[near:near] = draw.randbytes(draw.choice((1, 4, 100)))
    elif what == "zero":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif what == "double":
        data += data[: 1 << 20]
    elif what == "numbers" and len(data) > 8:
        near = min(near, len(data) - 8)
        order = draw.choice("<>") + draw.choice("IQ")
        data[near : near + struct.calcsize(order)] = struct.pack(
            order, draw.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 10**9))
        )
    else:
        data.clear()
    return what, bytes(data)


def mutate_value(value: Any, draw: random.Random) -> tuple[str, Any]:
    """One place of a JSON value replaced, removed, doubled or nested."""
    places = list(_places(value))
    if not places or draw.random() < 0.03:
        return "whole", draw.choice(HOSTILE)
    holder, key = draw.choice(places)
    what = draw.choice(("replace", "replace", "replace", "remove", "add", "nest", "type"))
    if what == "replace":
        holder[key] = draw.choice(HOSTILE)
    elif what == "remove":
        del holder[key]
    elif what == "add" and isinstance(holder, dict):
        holder[f"{key}x"] = holder[key]
    elif what == "nest":
        for _ in range(draw.choice((1, 5, 900))):
            holder[key] = [holder[key]]
    else:
        holder[key] = str(holder[key]) if not isinstance(holder[key], str) else len(holder[key])
    return f"{what} {key!r}"[:80], value


def resign_index(folder: Path) -> None:
    """Sizes and checksums of the files as index.json should say them."""
    about = folder / "index.json"
    try:
        said = json.loads(about.read_text())
        for name in said["files"]:
            content = (folder / name).read_bytes()
            said["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        about.write_text(json.dumps(said))
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return  # index.json itself was changed


def _places(value: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            waiting.append(holder[key])
    return found


def _json(path: Path, draw: random.Random) -> str:
    if draw.random() < 0.05:
        path.write_text("[" * 100_000 + "]" * 100_000)
        return "nested"
    done, value = mutate_value(json.loads(path.read_text()), draw)
    path.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))
    return done


def _lines(path: Path, draw: random.Random) -> str:
    lines = path.read_text().splitlines()
    at = draw.randrange(len(lines))
    done, value = mutate_value(json.loads(lines[at]), draw)
    lines[at] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")
    return done


def _safetensors(path: Path, draw: random.Random) -> str:
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    names = [name for name in header if name != "__metadata__"]
    tensor = header[draw.choice(names)]
    what = draw.choice(
        ("metadata", "header", "dtype", "shape", "offsets", "nan", "inf", "zeros", "rename", "same bytes", "more")
    )
    if what == "metadata" and header.get("__metadata__"):
        key = draw.choice(list(header["__metadata__"]))
        try:
            done, value = mutate_value(json.loads(header["__metadata__"][key]), draw)
            header["__metadata__"][key], what = json.dumps(value), f"metadata {done}"
        except ValueError:
            header["__metadata__"][key] = str(draw.choice(HOSTILE))
    elif what in ("metadata", "header"):
        what, header = mutate_value(header, draw)
    elif what == "dtype":
        tensor["dtype"] = draw.choice(DTYPES)
    elif what == "shape":
        tensor["shape"] = draw.choice(
            ([], [0], [1], [2**40], [2**62, 4], [-1], tensor["shape"][::-1], [*tensor["shape"], 1], "x")
        )
    elif what == "offsets":
        tensor["data_offsets"] = draw.choice(([0, 0], [0, 2**60], [5, 2], [0, len(data)], [-8, 8], []))
    elif what in ("nan", "inf", "zeros"):
        start, stop = tensor["data_offsets"]
        value = struct.pack("<f", {"nan": float("nan"), "inf": float("inf"), "zeros": 0.0}[what])
        data[start:stop] = (value * (stop - start))[: stop - start]
    elif what == "rename":
        old = draw.choice(names)
        header[draw.choice(("", "x", f"{old}.x", "\x1b[2J"))] = header.pop(old)
    elif what == "same bytes":
        tensor["data_offsets"] = header[draw.choice(names)]["data_offsets"]
    else:
        header["more"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
        data += bytes(4)
    text = json.dumps(header).encode()
    length = draw.choice((0, 1, 2**40, 2**63, len(text) - 1)) if draw.random() < 0.1 else len(text)
    path.write_bytes(struct.pack("<Q", length) + text + data)
    return what


def _csv(path: Path, draw: random.Random) -> str:
    rows = list(csv.reader(io.StringIO(path.read_text())))
    row = draw.choice(rows)
    what = draw.choice(("cell", "cell", "remove cell", "add cell", "remove row", "double row", "header", "nul"))
    if what == "cell":
        row[draw.randrange(len(row))] = str(draw.choice(HOSTILE))[:200_000].encode("utf-8", "replace").decode()
    elif what == "remove cell":
        row.pop()
    elif what == "add cell":
        row.append("x")
    elif what == "remove row":
        rows.remove(row)
    elif what == "double row":
        rows.append(row)
    elif what == "header":
        rows[0][draw.randrange(len(rows[0]))] = draw.choice(("", "path", "label", "x"))
    else:
        row[0] += "\0"
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path.write_text(text.getvalue())
    return what


SQL = (
    "DROP TABLE {t}", "DELETE FROM {t}", "DELETE FROM {t} WHERE rowid = 2", "ALTER TABLE {t} RENAME TO other",
    "CREATE TABLE more (x)", "INSERT INTO {t} SELECT * FROM {t}",
    "UPDATE {t} SET {c} = NULL", "UPDATE {t} SET {c} = -1",
    "UPDATE {t} SET {c} = 9223372036854775807", "UPDATE {t} SET {c} = 1.5", "UPDATE {t} SET {c} = 'x'",
    "UPDATE {t} SET {c} = zeroblob(100000)", "UPDATE {t} SET {c} = (SELECT {c} FROM {t} LIMIT 1)",
    "UPDATE {t} SET {c} = replace(hex(zeroblob(50000)), '0', '[')", "ALTER TABLE {t} DROP COLUMN {c}",
    "UPDATE {t} SET {c} = char(27) || '[2J'", "PRAGMA user_version = 99", "PRAGMA application_id = 7",
    "CREATE TRIGGER hostile AFTER INSERT ON {t} BEGIN DELETE FROM {t}; END",
)  # fmt: skip
VIEW = "CREATE VIEW {t} AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS {c} FROM n"


def _sqlite(path: Path, draw: random.Random) -> str:
    with sqlite3.connect(path) as base:
        tables = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = draw.choice(tables)
        columns = [row[1] for row in base.execute(f"PRAGMA table_info({table})")]
        names = {"t": table, "c": draw.choice(columns)}
        statement = draw.choice((*SQL, VIEW)).format(**names)
        try:
            if statement.startswith("CREATE VIEW"):
                base.execute(f"DROP TABLE {table}")
            base.execute(statement)
        except sqlite3.Error as error:
            return f"{statement} ({error})"
    return statement[:80]
