"""Makes the test vectors in this folder with Python's transformers.

    python test/tokenizer/make_vectors.py --models MODELS

MODELS holds the folders named in FOLDERS (tokenizer.json, tokenizer_config.json); a missing one is left as it is.
Needs transformers, tokenizers and jinja2; the versions used are written into each file.
"""
import argparse
import hashlib
import json
import pathlib
import struct

import tokenizers
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
FOLDERS = {
    "qwen2.5": "qwen2.5-coder-0.5b",
    "r1-distill-qwen": "r1-distill-qwen-tokenizer",
    "smollm2": "smollm2-135m",
}

TEXTS = [
    "", " ", "  ", "\n", "\r\n", "\r", "\t", "\x00", "a", "Hello world", " Hello world", "Hello  world ", "hello\n", "hello\n\n",
    "trailing spaces   ", "   leading", "a\n  b\n\tc\n", "line one\r\nline two\r\n\r\nline four", "tabs\tand\t\ttabs",
    "x  123", "  1", "\n\n1. one\n2. two", "in 2024, 3.14159 and 1,000,000", "0", "007", "12345678901234567890", "1e-5 0x1F 1_000",
    "٣٤٥ ½ ² Ⅷ ①", "½²\n ٣  Ⅷ", "I'm you're he'll we'd they've it's don't", "I'M YOU'RE IT'S DON'T", "ſ 's ’s",
    "café", "cafe\u0301", "Å \u212b A\u030a", "\u1e9b\u0323 ﬁ", "\u0958 \u0915\u093c", "한국어 각 \u1100\u1161\u11a8", "\u0344 \u0308\u0301",
    "你好，世界！今天天气怎么样？", "日本語のテキスト、カタカナ。", "Привет, мир!", "Γειά σου Κόσμε", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया",
    "สวัสดีชาวโลก", "xin chào thế giới", "İstanbul ı ß ẞ", "😀", "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽", "🤗 Transformers", "𝔸𝕓𝕔 𐀀 𠜎",
    "a\u00a0b\u3000c\u2003d", "a\u0085b", "a\ufeffb \ufeff c", "\u200bzero\u200dwidth\u2060", "a\u2028b\u2029c", "\x1c\x1d\x1e\x1f",
    "def f(x):\n    if x > 0:\n        return x ** 2\n    return -x\n", "for (let i = 0; i < n; ++i) { sum += a[i]; }",
    "#include <stdio.h>\nint main(void) {\n\tprintf(\"%d\\n\", 42);\n}", "SELECT * FROM t WHERE a = 'b' AND c <> 1;",
    "https://example.com/path?query=1&b=%20#frag", "{\"key\": [1, 2.5, null, true]}", "!!! ??? ... --- === >>> <<<", "$x_1^2 + \\frac{a}{b}$",
    "They have 12 eggs.\nTotal = 3 * 4 = <<3*4=12>>12\n#### 12", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "supercalifragilisticexpialidocious",
    "<|im_start|>user\nhi<|im_end|>\n", "a<|im_end|>b", "<|endoftext|>", " <|endoftext|> ", "<|im_start|><|im_start|>", "<|im_start", "<|im_start|",
    "<think>\nhmm\n</think>\n\nyes", "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜>a<｜end▁of▁sentence｜>", "<｜User｜ >", "<tool_call>\n{}\n</tool_call>",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>", "<|file_sep|><|repo_name|>x", "é<|im_end|>\u0301", "cafe<|im_end|>\u0301e",
    "The quick brown fox jumps over the lazy dog. " * 4,
]
# Too long to be written out: piece, how often. Ids are kept as a digest.
LONG_TEXTS = [["The quick brown fox, 42 times; ", 3000], [" ", 5000], ["\n", 5000], ["a", 5000], ["中文字", 2000], ["ab12 ", 5000], ["=", 5001]]

USER, WORKED = {"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "2+2 = <<2+2=4>>4\n#### 4"}
SYSTEM = {"role": "system", "content": "Be brief.\nAnswer in English."}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Wetter: <b>für</b> \"Städte\" & 'Orte'",
          "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 3}},
                         "required": ["city"], "empty": {}, "none": [], "nothing": None, "yes": True, "half": 0.5}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}},
    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}]}
TEXT_CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Köln\"}"}}]}
CONVERSATIONS = [
    [USER], [SYSTEM, USER], [USER, WORKED], [SYSTEM, USER, WORKED], [SYSTEM, USER, WORKED, {"role": "user", "content": "And 3+3?"}],
    [SYSTEM, USER, WORKED, {"role": "user", "content": "And 3+3?"}, {"role": "assistant", "content": "6"}],
    [{"role": "user", "content": ""}], [{"role": "user", "content": "  spaces  \n\n"}, {"role": "assistant", "content": "\n\tkept \n"}],
    [{"role": "user", "content": "é e\u0301 你好 👩‍👧 {{ 7 * 7 }} {% raw %} 'q' \"d\" \\ <b>&amp;</b>"}],
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nlong thought\n</think>\n\nshort answer"}],
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\none\n</think>\n\nfirst"},
     {"role": "user", "content": "more"}, {"role": "assistant", "content": "<think>\ntwo\n</think>\n\nsecond"}],
    [USER, SYSTEM, USER], [USER, WORKED, WORKED], [WORKED], [USER, {"role": "assistant", "content": "a", "name": None, "weight": 1}],
    [USER, CALL, {"role": "tool", "content": "sun"}, {"role": "tool", "content": "rain"}, WORKED], [USER, TEXT_CALL, {"role": "tool", "content": "sun"}],
]


def digest(ids):
    return hashlib.sha256(struct.pack("<%di" % len(ids), *ids)).hexdigest()


def encodings(tokenizer):
    rows = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        rows.append({"text": text, "ids": ids, "withSpecials": tokenizer(text)["input_ids"],
                     "decoded": tokenizer.decode(ids), "skipped": tokenizer.decode(ids, skip_special_tokens=True),
                     "cut": tokenizer.decode(ids[1:-1])})
    long = []
    for piece, count in LONG_TEXTS:
        ids = tokenizer.encode(piece * count, add_special_tokens=False)
        long.append({"piece": piece, "count": count, "length": len(ids), "idsSha256": digest(ids)})
    return {"texts": rows, "longTexts": long}


def renderings(tokenizer, template=None):
    rows = []
    for messages in CONVERSATIONS:
        for tools in (None, TOOLS):
            for prompt in (False, True):
                options = dict(tools=tools, add_generation_prompt=prompt, chat_template=template)
                row = {"messages": messages, "tools": tools, "addGenerationPrompt": prompt}
                try:
                    row["text"] = tokenizer.apply_chat_template(messages, tokenize=False, **options)
                    row["ids"] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
                except Exception as error:
                    row["error"] = "%s: %s" % (type(error).__name__, error)
                rows.append(row)
    return rows


def write(name, content):
    head = {"madeWith": "transformers %s, tokenizers %s" % (transformers.__version__, tokenizers.__version__)}
    lines = json.dumps({**head, **content}, ensure_ascii=True).replace("}, {", "},\n{")
    (HERE / (name + ".json")).write_text(lines + "\n", encoding="utf-8")
    print(name)


def special_tokens(tokenizer):
    return {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}


def without_ids(rows):
    return [{key: value for key, value in row.items() if key != "ids"} for row in rows]


def id_digests(rows):
    """In the order of the rows of rendered-NAME.json, null where the template refuses the conversation."""
    return [{"length": len(row["ids"]), "idsSha256": digest(row["ids"])} if "ids" in row else None for row in rows]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=pathlib.Path, required=True)
    models = parser.parse_args().models

    tiny = PreTrainedTokenizerFast.from_pretrained(HERE / "tiny-bpe")
    template = (HERE / "templates" / "qwen2.5.jinja").read_text(encoding="utf-8")
    write("tiny-bpe", {**encodings(tiny), "conversationIds": id_digests(renderings(tiny, template))})

    # SmolLM2's pre-tokenizer over the tiny vocabulary: what it does with digits and white space needs no large file.
    changed = json.loads((HERE / "tiny-bpe" / "tokenizer.json").read_text(encoding="utf-8"))
    for name, individual in (("tiny-digits", True), ("tiny-digit-runs", False)):
        changed["normalizer"] = None
        changed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": individual},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}
        backend = tokenizers.Tokenizer.from_str(json.dumps(changed))
        digits = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
        write(name, {"preTokenizer": changed["pre_tokenizer"], **encodings(digits)})

    for name, folder in FOLDERS.items():
        if not (models / folder).is_dir():
            print("no", models / folder)
            continue
        auto = AutoTokenizer.from_pretrained(models / folder)
        # GPT2Tokenizer of transformers 5 drops SmolLM2's digit rule from tokenizer.json; the generic class keeps the file.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(models / folder) if name == "smollm2" else auto
        extra = {}
        if name == "smollm2":
            extra["autoTokenizerDiffers"] = [
                text for text in TEXTS if auto.encode(text, add_special_tokens=False) != tokenizer.encode(text, add_special_tokens=False)]
        source = (HERE / "templates" / (name + ".jinja")).read_text(encoding="utf-8")
        write(name, {**extra, **encodings(tokenizer), "conversationIds": id_digests(renderings(tokenizer, source))})
        for path in sorted((HERE / "templates").glob(name + "*.jinja")):
            rows = without_ids(renderings(tokenizer, path.read_text(encoding="utf-8")))
            write("rendered-" + path.stem, {"specialTokens": special_tokens(tokenizer), "conversations": rows})


if __name__ == "__main__":
    main()
