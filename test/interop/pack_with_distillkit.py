"""Packs rows with DistillKit's own code and reads packed rows back: FOLDER-OF-DISTILLKIT, a JSON document on stdin.

[{config, ids: [[...]], logprobs: [[...]], logprobBytes: [hex], indexBytes: [hex]}] ->
[{packedLogprobs: [hex], packedIndices: [hex], decoded: of what it packed, readLogprobs and readIds: of what was given}]
"""
import json
import sys

import torch
import yaml

sys.path.insert(0, sys.argv[1])
from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor

results = []
for case in json.load(sys.stdin):
    config = DistributionQuantizationConfig.model_validate(yaml.safe_load(case["config"]))
    assert yaml.safe_dump(config.model_dump(mode="json")) == case["config"], "the configuration as DistillKit writes it"
    compressor = LogprobCompressor(config=config)
    ids = torch.tensor(case["ids"], dtype=torch.long)[None]
    logprobs = torch.tensor(case["logprobs"], dtype=torch.float32)[None]
    packed = compressor.compress_from_sparse(ids, logprobs)
    given = {
        "compressed_logprobs": torch.tensor([[list(bytes.fromhex(row)) for row in case["logprobBytes"]]]),
        "bytepacked_indices": torch.tensor([[list(bytes.fromhex(row)) for row in case["indexBytes"]]]),
    }
    read_ids, read = compressor.decompress_to_sparse(given)
    _, decoded = compressor.decompress_to_sparse(packed)
    to_hex = lambda tensor: [bytes(row).hex() for row in tensor[0].tolist()]
    results.append(
        {
            "packedLogprobs": to_hex(packed["compressed_logprobs"]),
            "packedIndices": to_hex(packed["bytepacked_indices"]),
            "decoded": decoded[0].double().tolist(),
            "readLogprobs": read[0].double().tolist(),
            "readIds": read_ids[0].tolist(),
        }
    )
print(json.dumps(results))
