"""Reads an export as DistillKit's training does: FOLDER-OF-DISTILLKIT EXPORT. Prints its rows as JSON."""
import glob
import json
import sys

import datasets
import torch
import yaml

sys.path.insert(0, sys.argv[1])
from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor
from distillkit.signals import OfflineSignalSource

exported = sys.argv[2]
with open(f"{exported}/compression_config.yaml") as file:
    config = DistributionQuantizationConfig.model_validate(yaml.safe_load(file))
source = OfflineSignalSource(LogprobCompressor(config=config), vocab_size=config.d)
data = datasets.load_dataset("parquet", data_files=sorted(glob.glob(f"{exported}/*.parquet")), split="train")
assert data.features["compressed_logprobs"].feature.feature.dtype == "uint8"
assert data.features["input_ids"].feature.dtype == "uint64"
rows = []
for row in data:
    entries = len(row["bytepacked_indices"])
    ids, logprobs = [], []
    if entries > 0:
        batch = {key: torch.tensor([row[key]]) for key in ("compressed_logprobs", "bytepacked_indices")}
        signal = source.get_signal(batch)
        ids, logprobs = signal.sparse_ids[0].tolist(), signal.sparse_values[0].double().tolist()
    rows.append({"input_ids": row["input_ids"], "labels": row["labels"], "ids": ids, "logprobs": logprobs})
print(json.dumps(rows))
