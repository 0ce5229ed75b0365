"""Reads a nested Parquet export with pyarrow, polars and DuckDB, which must agree. Prints JSON."""
import json
import os
import sys

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq

exported = sys.argv[1]
parts = sorted(name for name in os.listdir(exported))
table = pa.concat_tables([pq.read_table(f"{exported}/{name}") for name in parts])
table.validate(full=True)
rows = table.to_pylist()
assert polars.read_parquet(f"{exported}/*.parquet").to_dicts() == rows, "polars"
by_duckdb = duckdb.sql(f"select * from read_parquet('{exported}/*.parquet')")
assert [dict(zip(by_duckdb.columns, row)) for row in by_duckdb.fetchall()] == rows, "DuckDB"
print(
    json.dumps(
        {
            "rows": rows,
            "types": {field.name: str(field.type) for field in table.schema},
            "duckdbTypes": dict(zip(by_duckdb.columns, map(str, by_duckdb.types))),
            "metadata": {k.decode(): v.decode() for k, v in pq.read_schema(f"{exported}/{parts[0]}").metadata.items()},
        }
    )
)
