"""Gives an export to TRL's SFTTrainer and prints the first batch it makes: EXPORT."""
import glob
import json
import sys
import tempfile

import datasets
import transformers
import trl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

data = datasets.load_dataset("parquet", data_files=sorted(glob.glob(f"{sys.argv[1]}/*.parquet")), split="train")
words = Tokenizer(WordLevel({str(i): i for i in range(64)}, unk_token="0"))
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1")
config = transformers.Qwen2Config(
    vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
)
with tempfile.TemporaryDirectory() as folder:
    arguments = trl.SFTConfig(
        folder,
        per_device_train_batch_size=len(data),
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to=[],
        dataloader_num_workers=0,
        train_sampling_strategy="sequential",
    )
    trainer = trl.SFTTrainer(
        transformers.Qwen2ForCausalLM(config), args=arguments, train_dataset=data, processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    rows = [{name: row[name] for name in ("prompt_length", "logprobs", "logprob_token_ids")} for row in data]
    print(json.dumps({"input_ids": batch["input_ids"].tolist(), "labels": batch["labels"].tolist(), "rows": rows}))
