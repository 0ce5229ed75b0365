"""Top-8 log-probabilities and log Z of transformers in float32 for two GSM8K rows as messages, or for a long row.

    python make_scores.py MODEL_FOLDER OUT.json [--long]

The long row is 700 made-up ids four times over, the last ten of them targets: what comes next stands 700 columns before.

Needs torch and transformers. bfloat16 weights are widened; arithmetic is float32, eager attention. The rows are ids:
how text becomes ids is tested elsewhere.
"""
import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = [
    (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did "
        "Natalia sell altogether in April and May?",
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.\n#### 72",
    ),
    (
        "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did she earn?",
        "Weng earns 12/60 = $0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = $10.\n#### 10",
    ),
]
K = 8
TEMPERATURES = [1, 2, 4]

folder, out, *flags = sys.argv[1:]
torch.set_grad_enabled(False)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def encode_message(question, answer):
    prompt = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(
        [*prompt, {"role": "assistant", "content": answer}], tokenize=False
    )
    start = len(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [1 if begin >= start else 0 for begin, _ in encoded["offset_mapping"]]


def make_long_row():
    ids = [1000 + 7919 * i % 30011 for i in range(700)] * 4
    return ids, [0] * (len(ids) - 10) + [1] * 10


encoded_rows = [make_long_row()] if flags == ["--long"] else [encode_message(*one) for one in QUESTIONS]
rows = []
for ids, mask in encoded_rows:
    logits = model(torch.tensor([ids])).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)
    positions = [i for i in range(len(ids) - 1) if mask[i + 1]]
    top = logprobs[positions].topk(K)
    log_z = torch.stack([torch.logsumexp(logprobs[positions] / t, -1) for t in TEMPERATURES], 1)
    rows.append(
        {
            "input_ids": ids,
            "loss_mask": mask,
            "topk_ids": top.indices.tolist(),
            "topk_logprobs": [[round(value, 6) for value in row] for row in top.values.tolist()],
            "log_z": [[round(value, 6) for value in row] for row in log_z.tolist()],
        }
    )
result = {
    "transformers": transformers.__version__,
    "torch": torch.__version__,
    "temperatures": TEMPERATURES,
    "rows": rows,
}
with open(out, "w") as file:
    file.write(json.dumps(result).replace('{"input_ids"', '\n{"input_ids"') + "\n")
