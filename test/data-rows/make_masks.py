"""Makes conversations with ids and loss masks by transformers' own means: apply_chat_template with assistant masks.

    python test/data-rows/make_masks.py --models MODELS

The templates are those of test/tokenizer with {% generation %} around what the assistant says (content and end-of-turn
token). MODELS holds qwen2.5-coder-0.5b and smollm2-135m; a missing one is left as it is.
"""
import argparse
import json
import pathlib

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
TOKENIZERS = HERE.parent / "tokenizer"
PLAIN = "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
MARKED = ("{%- if message.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}{% generation %}{{- message.content + '<|im_end|>' }}"
          "{% endgeneration %}{{- '\\n' }}{%- else %}" + PLAIN + "{%- endif %}")
SMOL_PLAIN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
SMOL_MARKED = ("{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}{{message['content'] + '<|im_end|>'}}"
               "{% endgeneration %}{% else %}{{message['content'] + '<|im_end|>'}}{% endif %}{{'\n'}}")


def chat(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents)]
    return ([{"role": "system", "content": system}] if system is not None else []) + messages


CONVERSATIONS = [
    chat("What is 2+2?", "2+2 = <<2+2=4>>4\n#### 4"),
    chat("What is 2+2?", "4", system="Be brief."),
    chat("one", "1", "two", "2", "three", "3"),
    chat("one", "1", "two", "2", "and then?"),
    chat("q", ""), chat("", "answer"), chat("q", " leading space"), chat("q", "\nleading line"), chat("q", "\n\n  def f():\n    pass\n"),
    chat("q", "trailing lines\n\n"), chat("q", "trailing space "), chat("q", "\n"), chat("q", "\u0301combining first"), chat("q", "cafe\u0301 e\u0301"),
    chat("q", "你好 👩‍👧 é"), chat("same", "same", "same", "same"), chat("q", "a <|im_end|> b"), chat("q", "assistant\n"),
    chat("q\n", "\n\n\n", "q", "\n1", system=""),
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "1"}, {"role": "assistant", "content": "2"}],
    [{"role": "assistant", "content": "I begin"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
]


def write(name, tokenizer, template):
    rows = []
    for messages in CONVERSATIONS:
        # Of a character that the tiny vocabulary lacks, transformers finds no token, and then marks none of the turn.
        if name == "tiny-bpe" and messages[-1]["content"].startswith("你"):
            continue
        out = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=True, return_dict=True,
                                            return_assistant_tokens_mask=True)
        rows.append({"messages": messages, "ids": out["input_ids"], "mask": out["assistant_masks"]})
    text = json.dumps({"madeWith": "transformers " + transformers.__version__, "rows": rows})
    (HERE / (name + ".json")).write_text(text.replace('}, {"messages"', '},\n{"messages"') + "\n", encoding="utf-8")
    print(name)


def marked(name, plain, replacement):
    source = (TOKENIZERS / "templates" / (name + ".jinja")).read_text(encoding="utf-8")
    assert source.count(plain) == 1
    return source.replace(plain, replacement)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=pathlib.Path, required=True)
    models = parser.parse_args().models
    qwen = marked("qwen2.5", PLAIN, MARKED)
    write("tiny-bpe", PreTrainedTokenizerFast.from_pretrained(TOKENIZERS / "tiny-bpe"), qwen)
    if (models / "qwen2.5-coder-0.5b").is_dir():
        write("qwen2.5", AutoTokenizer.from_pretrained(models / "qwen2.5-coder-0.5b"), qwen)
    if (models / "smollm2-135m").is_dir():
        # The generic class keeps the digit rule of tokenizer.json; see test/tokenizer/make_vectors.py.
        smollm = PreTrainedTokenizerFast.from_pretrained(models / "smollm2-135m")
        write("smollm2", smollm, marked("smollm2", SMOL_PLAIN, SMOL_MARKED))


if __name__ == "__main__":
    main()
