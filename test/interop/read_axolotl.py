"""Puts an export through axolotl's own collator and loss: FOLDER-OF-AXOLOTL EXPORT.

Prints the collated batches and for each the loss against logits that a test can make again:
logits[row, position, id] = sin(row + 3 * position + 7 * id).
"""
import glob
import importlib.util
import json
import sys

import datasets
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

source, exported = sys.argv[1], sys.argv[2]
sys.path.insert(0, f"{source}/src")


def load(name):
    """A module by its file: the package around it wants all that axolotl trains with."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), f"{source}/src/axolotl/integrations/kd/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


collator = load("collator")
forward_kl = load("topk_logprob/forward_kl")
data = datasets.load_dataset("parquet", data_files=sorted(glob.glob(f"{exported}/*.parquet")), split="train")
# What axolotl asks of a data set that is prepared already.
assert all(name in data.features for name in ("input_ids", "attention_mask", "labels"))
vocabulary = int(sys.argv[3])
words = Tokenizer(WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0")
if not hasattr(tokenizer, "deprecation_warnings"):
    tokenizer.deprecation_warnings = {}
collate = collator.DataCollatorForKD(tokenizer)
results = []
for start in range(0, len(data), 3):
    batch = collate([data[i] for i in range(start, min(start + 3, len(data)))])
    rows, length = batch["input_ids"].shape
    row, position, token = torch.meshgrid(torch.arange(rows), torch.arange(length), torch.arange(vocabulary), indexing="ij")
    logits = torch.sin((row + 3 * position + 7 * token).double())
    targets = [batch[name] for name in ("target_token_ids", "target_logprobs", "target_mask")]
    # The trainer hands them on as they are, and so does this: nothing is shifted.
    loss = forward_kl.loss(logits, *targets)
    results.append({"labels": batch["labels"].tolist(), "entries": int(batch["target_mask"].sum()), "loss": loss.item()})
print(json.dumps(results))
