"""Reads packed labels of a cache with pyarrow and NumPy, by FORMAT.md alone. Prints JSON, one entry a row."""
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.ipc


class Planes:
    """Arrays of whole numbers, one after the other, each as byte planes."""

    def __init__(self, packed):
        self.packed, self.at = packed, 0

    def byte(self):
        self.at += 1
        return self.packed[self.at - 1]

    def length(self):
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def plane(self, count):
        stored = self.byte()
        if stored == 1:
            return np.full(count, self.byte(), np.uint32)
        size = self.length()
        content = self.packed[self.at : self.at + size]
        self.at += size
        if stored == 2:
            content = pa.decompress(content, decompressed_size=count, codec="zstd", asbytes=True)
        assert stored in (0, 2) and len(content) == count
        return np.frombuffer(content, np.uint8).astype(np.uint32)

    def read(self, count, size):
        numbers = np.zeros(count, np.uint32)
        if count > 0:
            for byte in range(size):
                numbers |= self.plane(count) << np.uint32(8 * byte)
        return numbers

    def finish(self):
        assert self.at == len(self.packed)


def id_bytes(vocab_size):
    return 2 if vocab_size <= 1 << 16 else 3 if vocab_size <= 1 << 24 else 4


def split(values, counts):
    return np.split(values, np.cumsum(counts)[:-1]) if len(counts) else []


def read_topk(packed, positions, policy, vocab_size):
    dtype = policy.get("logprobDtype", "float32")
    planes = Planes(packed)
    counts = planes.read(positions, 2)
    total = int(counts.sum())
    ids = split(planes.read(total, id_bytes(vocab_size)), counts)
    size = {"float32": 4, "float16": 2, "uint16": 2, "uint8": 1}[dtype]
    differences = split(planes.read(total, size), counts)
    codes = [np.cumsum(part.astype(np.uint64)).astype(np.uint64) % (1 << 8 * size) for part in differences]
    if dtype == "float32":
        logprobs = [part.astype(np.uint32).view(np.float32) for part in codes]
    elif dtype == "float16":
        logprobs = [part.astype(np.uint16).view(np.float16).astype(np.float32) for part in codes]
    else:
        if dtype == "uint8":
            odds = planes.read(positions, 2).astype(np.uint16).view(np.float16).astype(np.float64)
            distances = [-4 * np.log1p(-part.astype(np.float64) / 256) for part in codes]
        else:
            stored = planes.read(positions, 3).astype(np.int64)
            odds = np.where(stored % 2 == 0, stored // 2, -(stored + 1) // 2) / 4096
            odds = np.where(stored == 0xFFFFFF, np.inf, odds)
            distances = [part.astype(np.float64) / 1024 for part in codes]
        logprobs = [
            (-np.log1p(np.exp(-odd)) - np.log(np.exp(-part).sum()) - part).astype(np.float32)
            for odd, part in zip(odds, distances)
        ]
    columns = []
    for _ in policy["temperatures"]:
        column = planes.read(positions, 4)
        if dtype == "float32":
            columns.append(column.view(np.float32))
        else:
            signed = column.astype(np.int64)
            columns.append((np.where(signed % 2 == 0, signed // 2, -(signed + 1) // 2) / 4096).astype(np.float32))
    planes.finish()
    return {"ids": ids, "logprobs": logprobs, "log_z": list(np.stack(columns, 1)) if positions else []}


def read_sampled(packed, positions, vocab_size):
    planes = Planes(packed)
    counts = planes.read(positions, 2)
    total = int(counts.sum())
    ids = split(planes.read(total, id_bytes(vocab_size)), counts)
    draws = split(planes.read(total, 2), counts)
    planes.finish()
    return {"ids": ids, "draws": draws}


def main(cache):
    manifest = json.load(open(f"{cache}/manifest.json", encoding="utf-8"))
    description = manifest["description"]
    vocab_size = description["teacher"]["vocabSize"]
    rows = []
    for shard in manifest["shards"]:
        tables = {}
        for group in ("rows", "topk", "sampled"):
            with pa.memory_map(f"{cache}/{shard['files'][group]['path']}") as source:
                tables[group] = pa.ipc.open_file(source).read_all()
            tables[group].validate(full=True)
        for i in range(shard["rowCount"]):
            mask = tables["rows"]["loss_mask"][i].as_py()
            positions = len(mask) - 1 if description["positions"] == "all" else sum(mask)
            topk, sampled = (tables[group]["packed"][i].as_py() for group in ("topk", "sampled"))
            labels = {
                "topk": read_topk(topk, positions, description["labels"]["topk"], vocab_size),
                "sampled": read_sampled(sampled, positions, vocab_size),
            }
            rows.append({"row_id": tables["topk"]["row_id"][i].as_py(), **labels})
    print(json.dumps(rows, default=lambda value: value.tolist()))


main(sys.argv[1])
