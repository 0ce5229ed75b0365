"""Writes a data set as DistillKit captures it, by its own code: FOLDER-OF-DISTILLKIT OUT CONFIG.yaml [packed].

The distributions are made up. With `packed` its own packing of rows follows. Prints the rows before packing, as
DistillKit decodes them.
"""
import json
import os
import shutil
import sys

import datasets
import torch
import yaml

sys.path.insert(0, sys.argv[1])
from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor
from distillkit.sample_common import StreamingParquetWriter, compressed_logit_schema

out = sys.argv[2]
with open(sys.argv[3]) as file:
    config = DistributionQuantizationConfig.model_validate(yaml.safe_load(file))
compressor = LogprobCompressor(config=config)
random = torch.Generator().manual_seed(5)
rows = []
with StreamingParquetWriter(out, schema=compressed_logit_schema(), file_max_rows=4, queue_maxsize=64) as writer:
    for index in range(9):
        length = 3 + 5 * (index % 4)
        ids = torch.randint(0, config.d, (length,), generator=random)
        logits = 4 * torch.randn(1, length - 1, config.d, generator=random)
        packed = compressor.compress(torch.log_softmax(logits, dim=-1))
        decoded_ids, decoded = compressor.decompress_to_sparse(packed)
        row = {name: tensor[0].tolist() for name, tensor in packed.items()}
        writer.write({"input_ids": ids.tolist(), **row})
        rows.append({"input_ids": ids.tolist(), "ids": decoded_ids[0].tolist(), "logprobs": decoded[0].double().tolist()})
shutil.copyfile(sys.argv[3], f"{out}/compression_config.yaml")
if sys.argv[4:] == ["packed"]:
    from distillkit.pack_logits import iterative_packing

    files = sorted(f"{out}/{name}" for name in os.listdir(out) if name.endswith(".parquet"))
    data = datasets.load_dataset("parquet", data_files=files, split="train")
    joined = iterative_packing(data, max_len=24, max_iters=2, batch_size=4)
    for name in files:
        os.remove(name)
    joined.to_parquet(f"{out}/packed.parquet")
print(json.dumps(rows))
