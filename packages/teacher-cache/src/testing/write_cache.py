"""Writes a small complete cache with pyarrow, by FORMAT.md alone."""
import hashlib
import json
import os
import sys

import pyarrow as pa
import pyarrow.ipc

cache = sys.argv[1]


def write(path, table):
    full = f"{cache}/{path}"
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with pa.ipc.new_file(full, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return listed(path)


def listed(path):
    content = open(f"{cache}/{path}", "rb").read()
    return {"path": path, "sizeBytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


rows = pa.table(
    {
        "row_id": pa.array(["a", "b"]),
        "input_ids": pa.array([[5, 6, 7], [1, 2]], pa.list_(pa.int32())),
        "loss_mask": pa.array([[0, 0, 1], [0, 1]], pa.list_(pa.int8())),
        "task": pa.array(["math", None]),
        "split": pa.array([None, "test"]),
        "source": pa.array([None, None], pa.string()),
        "answer": pa.array(["7", "2"]),
    }
)
topk = pa.table(
    {
        "row_id": pa.array(["a", "b"]),
        "ids": pa.array([[[3, 1]], [[2]]], pa.list_(pa.list_(pa.int32()))),
        "logprobs": pa.array([[[-0.5, -1.5]], [[-0.25]]], pa.list_(pa.list_(pa.float32()))),
        "log_z": pa.array([[[0.0, 1.1]], [[0.0, 0.9]]], pa.list_(pa.list_(pa.float32(), 2))),
    }
)
hidden = pa.table(
    {
        "row_id": pa.array(["a", "b"]),
        "values": pa.array([[[1, -2, 127]], [[0, 5, 6]]], pa.list_(pa.list_(pa.int8(), 3))),
        "token_scale": pa.array([[0.5], [0.25]], pa.list_(pa.float32())),
    }
)
layer = "final"
files = {
    "rows": write("shards/00000.rows.arrow", rows),
    "topk": write("shards/00000.topk.arrow", topk),
    f"hidden-{layer}": write(f"shards/00000.hidden-{layer}.arrow", hidden),
}
rms = write(f"scales/hidden-{layer}.channel_rms.arrow", pa.table({"channel_rms": pa.array([1.0, 2.0, 0.5], pa.float32())}))
weight = pa.array([[row, 1.0, -row] for row in range(8)], pa.list_(pa.float32(), 3))
matrix = write("head/output_matrix.arrow", pa.table({"weight": weight}))
manifest = {
    "format": "stillhouse-teacher-cache",
    "version": 1,
    "complete": True,
    "rows": {"planned": 2, "stored": 2},
    "description": {
        "teacher": {
            "name": "Jürgen's teacher",
            "architecture": "qwen2",
            "weightsSha256": "0" * 64,
            "configSha256": "0" * 64,
            "hiddenSize": 3,
            "layerCount": 2,
            "vocabSize": 8,
        },
        "tokenizer": None,
        "data": {"sha256": "0" * 64, "name": "two rows", "rowCount": 2},
        "maxLength": None,
        "limit": None,
        "labels": {
            "topk": {"k": 2, "temperatures": [1, 1.5]},
            "hidden": {"layers": [layer], "dtype": "int8"},
            "head": True,
        },
        "positions": "response",
        "rowsPerShard": 2,
        "generator": {"name": "pyarrow", "version": pa.__version__},
    },
    "tokenizer": [],
    "outputMatrix": {**matrix, "dtype": "float32", "rows": 8, "columns": 3},
    "channelRms": [{"layer": layer, **rms}],
    "shards": [{"firstRow": 0, "rowCount": 2, "tokenCount": 5, "positionCount": 2, "files": files}],
}
canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
manifest["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
json.dump(manifest, open(f"{cache}/manifest.json", "w", encoding="utf-8"), ensure_ascii=False)
