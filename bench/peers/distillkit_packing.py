"""DistillKit's own packing of given top-k labels: bytes a token and what it loses.

    python bench/peers/distillkit_packing.py ROWS [--distillkit FOLDER] [--config CONFIG.yaml ...] [--float64]

ROWS is either
  - an .npz with `ids` [N, K] (integers), `logprobs` [N, K] (float32, natural logarithms at T = 1 over the whole
    vocabulary, descending) and `vocabulary` (a number), or
  - a .json with the same keys: {"vocabulary": V, "ids": [[...], ...], "logprobs": [[...], ...]}.
Each of the N positions needs at least as many entries as the largest k that is packed (128 by default); more are cut.

FOLDER is a clone of github.com/arcee-ai/DistillKit, version 1.0 (default: $STILLHOUSE_DISTILLKIT). Needs torch,
pydantic, pyyaml, numpy. Without --config the two configurations that its README recommends are packed: k = 50
("budget") and k = 128 ("recommended"), for the vocabulary given. Logprobs go in as float32, as its capture hands them
over, so that its curves are fitted in float32; --float64 fits them in float64, to see what that costs.

Prints one JSON document, {configurations: [...]} with for each
  name, k, bytesPerToken     as packed, both columns together;
  klNats                     mean over positions of the sum over the k entries of p (log p - log p'), p as given, p' as
                             DistillKit reads its bytes back;
  massExact, massDecoded     mean mass of the k entries before and after;
  logprobError               {mean, max, atRank: {1, 2, 8, 32, last}} of |log p' - log p|, in nats;
  renormalisedKlNats         the KL of what its trainer makes of both (missing: zero): normalised over the k entries;
  decoded                    with --out FILE.npz: the file, with `NAME_ids` and `NAME_logprobs` [N, k] to be scored
                             elsewhere; with --raw FOLDER: `NAME.f32`, the logprobs as little-endian float32.
"""
import argparse
import json
import os
import sys

import numpy as np
import torch
import yaml

parser = argparse.ArgumentParser()
parser.add_argument("rows")
parser.add_argument("--distillkit", default=os.environ.get("STILLHOUSE_DISTILLKIT"))
parser.add_argument("--config", action="append", default=[])
parser.add_argument("--out")
parser.add_argument("--raw")
parser.add_argument("--float64", action="store_true")
arguments = parser.parse_args()
if arguments.distillkit is None:
    sys.exit("give --distillkit FOLDER or set STILLHOUSE_DISTILLKIT: a clone of github.com/arcee-ai/DistillKit")
sys.path.insert(0, arguments.distillkit)
from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor

# Positions at a time: error diffusion and bit packing take much memory for each.
CHUNK = 4096
RANKS = {"1": 0, "2": 1, "8": 7, "32": 31, "last": -1}
SHARED = {"exact_dtype": "bfloat16", "term_dtype": "float32", "residual_bins": [], "delta_encoding": False}
RECOMMENDED = {
    "budget": {"k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"], **SHARED},
    "recommended": {"k": 128, "exact_k": 16, "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"], **SHARED},
}


def read_rows(path):
    if path.endswith(".npz"):
        stored = np.load(path)
        return int(stored["vocabulary"]), np.asarray(stored["ids"]), np.asarray(stored["logprobs"], dtype=np.float32)
    with open(path) as file:
        stored = json.load(file)
    return int(stored["vocabulary"]), np.array(stored["ids"]), np.array(stored["logprobs"], dtype=np.float32)


def measure(name, config, ids, logprobs, keep):
    compressor = LogprobCompressor(config=config)
    decoded, packed_bytes = [], 0
    for start in range(0, len(ids), CHUNK):
        part = slice(start, start + CHUNK)
        row = compressor.compress_from_sparse(
            torch.from_numpy(ids[part, : config.k].astype(np.int64))[None],
            torch.from_numpy(logprobs[part, : config.k].astype(np.float64 if arguments.float64 else np.float32))[None],
        )
        packed_bytes += sum(tensor.numel() for tensor in row.values())
        got_ids, got = compressor.decompress_to_sparse(row)
        assert (got_ids[0].numpy() == ids[part, : config.k]).all(), "ids"
        decoded.append(got[0].double().numpy())
    got = np.concatenate(decoded)
    want = logprobs[:, : config.k].astype(np.float64)
    error = np.abs(got - want)
    p = np.exp(want)
    normalise = lambda logs: logs - np.log(np.exp(logs - logs.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logs.max(
        -1, keepdims=True
    )
    p_norm, q_norm = normalise(want), normalise(got)
    keep[f"{name}_ids"], keep[f"{name}_logprobs"] = ids[:, : config.k], got.astype(np.float32)
    return {
        "name": name,
        "k": config.k,
        "bytesPerToken": packed_bytes / len(ids),
        "klNats": float((p * (want - got)).sum(-1).mean()),
        "renormalisedKlNats": float((np.exp(p_norm) * (p_norm - q_norm)).sum(-1).mean()),
        "massExact": float(p.sum(-1).mean()),
        "massDecoded": float(np.exp(got).sum(-1).mean()),
        "logprobError": {
            "mean": float(error.mean()),
            "max": float(error.max()),
            "atRank": {rank: float(error[:, at].mean()) for rank, at in RANKS.items() if at < config.k},
        },
    }


vocabulary, ids, logprobs = read_rows(arguments.rows)
if ids.shape != logprobs.shape or ids.ndim != 2:
    sys.exit(f"ids {ids.shape} and logprobs {logprobs.shape} must be [N, K] both")
configurations = {name: {"d": vocabulary, **fields} for name, fields in RECOMMENDED.items()}
if arguments.config:
    configurations = {}
    for path in arguments.config:
        with open(path) as file:
            configurations[os.path.basename(path)] = yaml.safe_load(file)
results, keep = [], {}
for name, fields in configurations.items():
    config = DistributionQuantizationConfig.model_validate(fields)
    if config.k > ids.shape[1]:
        sys.exit(f"{name} packs {config.k} entries, the rows have {ids.shape[1]}")
    results.append(measure(name, config, ids, logprobs, keep))
if arguments.raw:
    for name in configurations:
        keep[f"{name}_logprobs"].astype("<f4").tofile(os.path.join(arguments.raw, f"{name}.f32"))
if arguments.out:
    np.savez(arguments.out, **keep)
print(json.dumps({"positions": len(ids), "vocabulary": vocabulary, "configurations": results}, indent=1))
