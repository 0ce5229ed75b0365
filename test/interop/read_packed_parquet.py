"""Reads a packed Parquet export with pyarrow, polars and DuckDB, which must agree; decodes its bytes. Prints JSON."""
import glob
import json
import sys

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq

pattern = f"{sys.argv[1]}/*.parquet"
paths = sorted(glob.glob(pattern))
table = pa.concat_tables([pq.read_table(path) for path in paths])
table.validate(full=True)
rows = table.to_pylist()
assert polars.read_parquet(pattern).to_dicts() == rows, "polars"
by_duckdb = duckdb.sql(f"select * from read_parquet('{pattern}')")
assert [dict(zip(by_duckdb.columns, row)) for row in by_duckdb.fetchall()] == rows, "DuckDB"
for path in paths:
    group = pq.read_metadata(path).row_group(0)
    for column in range(group.num_columns):
        assert not group.column(column).is_stats_set, "statistics"
dtypes = {"loss_mask": "u1", "topk_logprobs": "<f4", "log_z": "<f4", "hidden_final": "<f4", "hidden_2": "<f4"}
for row in rows:
    for name, value in row.items():
        if isinstance(value, bytes):
            row[name] = np.frombuffer(value, dtypes.get(name, "<i4")).tolist()
print(json.dumps(rows))
