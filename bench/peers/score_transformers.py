"""Teacher scoring peer: top-k log-probabilities and log Z at a grid of temperatures, as transformers computes them.

Rows are JSON lines, each a list of token ids or an object with `input_ids`. A row of L tokens has L - 1 label positions.
log_z[T] = log sum_i exp(l_i / T) with l = log p at T = 1. Prints one JSON object; --out also writes, positions of all
rows in the order of the file: row_offsets [rows + 1], topk_ids [N, k], topk_logprobs [N, k], log_z [N, temperatures].
"""
import argparse
import json
import resource
import sys
import time

import numpy
import torch
from transformers import AutoModelForCausalLM

CHUNK = 256  # positions whose logits are widened to float32 at a time


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face folder")
    parser.add_argument("rows", help="JSON lines of token ids")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of weights and arithmetic")
    parser.add_argument("--batch-tokens", type=int, default=1024, help="most tokens in a batch, padding included")
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--temperatures", default="1,2,4")
    parser.add_argument("--limit", type=int, help="score the first rows only")
    parser.add_argument("--max-length", type=int, help="cut rows to this many tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="a .npz or .safetensors file")
    return parser.parse_args()


def read_rows(arguments):
    rows = []
    with open(arguments.rows, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            value = json.loads(line)
            ids = value["input_ids"] if isinstance(value, dict) else value
            ids = ids[: arguments.max_length]
            if len(ids) < 2:
                sys.exit(f"{arguments.rows}:{number}: a row needs at least 2 tokens, got {len(ids)}")
            rows.append(ids)
            if len(rows) == arguments.limit:
                break
    if not rows:
        sys.exit(f"{arguments.rows}: no rows")
    return rows


def plan_batches(rows, batch_tokens):
    """Indices of rows, longest first, so that a batch pads little and the first one shows the peak memory."""
    batches = []
    for index in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if batches and len(rows[batches[-1][0]]) * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@torch.inference_mode()
def score_batch(model, rows, top_k, temperatures):
    """For each row (topk_ids, topk_logprobs, log_z), each with L - 1 positions."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    scored = []
    for i, row in enumerate(rows):
        parts = []
        for chunk in logits[i, : len(row) - 1].split(CHUNK):
            logprobs = torch.log_softmax(chunk.float(), dim=-1)
            top = torch.topk(logprobs, top_k, dim=-1)
            log_z = torch.stack([torch.logsumexp(logprobs / t, dim=-1) for t in temperatures], dim=-1)
            parts.append((top.indices.to(torch.int32).numpy(), top.values.numpy(), log_z.numpy()))
        scored.append(tuple(numpy.concatenate(column) for column in zip(*parts)))
    return scored


def write_scores(path, scored):
    offsets = numpy.cumsum([0] + [len(ids) for ids, _, _ in scored]).astype(numpy.int64)
    ids, logprobs, log_z = (numpy.concatenate(column) for column in zip(*scored))
    arrays = {"row_offsets": offsets, "topk_ids": ids, "topk_logprobs": logprobs, "log_z": log_z}
    if path.endswith(".safetensors"):
        from safetensors.numpy import save_file

        save_file(arrays, path)
    else:
        numpy.savez(path, **arrays)


def main():
    arguments = parse_arguments()
    if arguments.out and not arguments.out.endswith((".npz", ".safetensors")):
        sys.exit(f"--out {arguments.out}: must end in .npz or .safetensors")
    torch.set_num_threads(arguments.threads)
    temperatures = [float(t) for t in arguments.temperatures.split(",")]
    rows = read_rows(arguments)
    dtype = torch.float32 if arguments.dtype == "fp32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype, attn_implementation="sdpa").eval()

    score_batch(model, [rows[0][:16]], arguments.top_k, temperatures)  # what happens only once is not timed

    scored = [None] * len(rows)
    batches = plan_batches(rows, arguments.batch_tokens)
    start = time.perf_counter()
    for number, batch in enumerate(batches, 1):
        for index, scores in zip(batch, score_batch(model, [rows[i] for i in batch], arguments.top_k, temperatures)):
            scored[index] = scores
        print(f"batch {number}/{len(batches)}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    seconds = time.perf_counter() - start
    if arguments.out:
        write_scores(arguments.out, scored)

    tokens = sum(map(len, rows))
    print(json.dumps({
        "peer": "transformers",
        "versions": {"torch": torch.__version__, "transformers": __import__("transformers").__version__},
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "rows": len(rows),
        "tokens": tokens,
        "batches": len(batches),
        "batchTokens": arguments.batch_tokens,
        "topK": arguments.top_k,
        "temperatures": temperatures,
        "elapsedMs": seconds * 1000,
        "tokensPerSecond": tokens / seconds,
        "peakRssBytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }))


if __name__ == "__main__":
    main()
