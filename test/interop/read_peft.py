"""Logits of a base model with an adapter that PEFT loads, and of the merged model: base, adapter, merged, ids as JSON."""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base_folder, adapter_folder, merged_folder, ids = sys.argv[1:]
ids = torch.tensor(json.loads(ids))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


with torch.no_grad():
    merged = load(merged_folder)(ids).logits
    base = load(base_folder)
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, adapter_folder).double().eval()
    adapter_tensors = sum("lora_" in name for name, _ in adapted.named_parameters())
    with_adapter = adapted(ids).logits
    folded = adapted.merge_and_unload()(ids).logits

print(
    json.dumps(
        {
            "adapterTensors": adapter_tensors,
            "changed": (with_adapter - before).abs().max().item(),
            "adapterAgainstMerged": (with_adapter - merged).abs().max().item(),
            "foldedAgainstMerged": (folded - merged).abs().max().item(),
        }
    )
)
