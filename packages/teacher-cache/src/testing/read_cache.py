"""Reads a cache with pyarrow and polars, by FORMAT.md alone. Prints JSON."""
import hashlib
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.ipc

cache = sys.argv[1]
manifest = json.load(open(f"{cache}/manifest.json", encoding="utf-8"))
rest = {key: value for key, value in manifest.items() if key != "digest"}
canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
assert hashlib.sha256(canonical.encode()).hexdigest() == manifest["digest"], "digest"


def read(path):
    with pa.memory_map(f"{cache}/{path}") as source:
        table = pa.ipc.open_file(source).read_all()
    table.validate(full=True)
    return table


rows, types = [], {}
for shard in manifest["shards"]:
    tables = {group: read(file["path"]) for group, file in shard["files"].items()}
    for group, table in tables.items():
        types[group] = {field.name: str(field.type) for field in table.schema}
    for i in range(shard["rowCount"]):
        row = {name: tables["rows"][name][i].as_py() for name in tables["rows"].column_names}
        for name in ("ids", "logprobs", "log_z"):
            row[name] = tables["topk"][name][i].as_py()
        for entry in manifest["scales"]:
            group = f"hidden-{entry['layer']}"
            assert tables[group]["row_id"][i].as_py() == row["row_id"]
            rms = read(entry["path"])["channel_rms"].to_numpy()
            values = np.array(tables[group]["values"][i].as_py(), dtype=np.int8).reshape(-1, len(rms))
            scale = np.array(tables[group]["token_scale"][i].as_py(), dtype=np.float32)[:, None]
            row[group] = (values * (scale * rms)).astype(np.float32).tolist()
        rows.append(row)

matrix = read(manifest["outputMatrix"]["path"])["weight"].combine_chunks().flatten().to_numpy()
weights = (matrix.astype(np.uint32) << 16).view(np.float32)

import polars

for group in manifest["shards"][0]["files"].values():
    assert polars.read_ipc(f"{cache}/{group['path']}").height == manifest["shards"][0]["rowCount"]

print(
    json.dumps(
        {
            "rows": rows,
            "types": types,
            "weights": weights[:1000].tolist(),
            "weightCount": len(weights),
        }
    )
)
