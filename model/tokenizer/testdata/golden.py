"""Writes the golden files of the tokenizer's tests with Hugging Face tokenizers.

    python golden.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf --tiny ../../tiny/tiny.gguf

The reference tokenizer of a model is built from the vocabulary and merges in its GGUF file and the pre-tokenizer that
the model was published with. The patterns for which no vocabulary is at hand are compared word by word.
Needs tokenizers and gguf from PyPI.
"""

import argparse
import gzip
import json
import os
import random
import unicodedata

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def pattern(regex):
    return pre_tokenizers.Split(Regex(regex), behavior="isolated", invert=False)


SPLITTERS = {
    "gpt-2": (None, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)),
    "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                              pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])),
    "llama-bpe": (None, pattern(LLAMA3)),
    "qwen2": (normalizers.NFC(), pattern(QWEN2)),
    "gpt-4o": (None, pattern(O200K)),
}

ADVERSARIAL = [
    "", " ", "  ", "\n", "\r\n", "\t", "a", "Hello, world!", "Hello  world", " leading", "trailing ", "   three   spaces   ",
    "I'm you're he's we've they'll I'd don't", "I'M YOU'RE HE'S WE'VE THEY'LL I'D DON'T", "'s't're've'm'll'd", "'S'T'RE'VE'M'LL'D", "'Ll 'rE 'vE",
    "it\u2019s not \u2018ascii\u2019", "x'\u017f y'\u017fe", "'\u212a '\u0130", "rock'n'roll 'tis o'clock ''s '''ll 's", "can't've", "'", "''", "a'", "'a", "1's 2'nd",
    "0123456789", "1234567 89.10,11", "3.14159e-10", "a1b2c3", "v1.2.3-rc4", "\u0661\u0662\u0663 \u0967\u0968\u0969 \uff11\uff12\uff13", "\u00b2\u00b3\u00b9 \u00bd\u00be \u2167 \u2460\u2461 \u3007 \u4e00\u4e8c\u4e09",
    "\U0001d7d8\U0001d7d9 \U00010107", " 1 22  333   4444", "\n1\n22\n", "12 \n 34", "x 1", "x  1", "x\t1",
    "caf\u00e9 cafe\u0301 na\u00efve nai\u0308ve", "A\u030a\u0327\u0323 \u1e69 s\u0323\u0307 s\u0307\u0323", "\u0301", " \u0301", "\u0301a", "a\u0301\u0301\u0301 b", "\u1100\u1161\u11a8 \uac01", "\u212b \u2126 \ufb01 \u00bc",
    "\u00a0", "a\u00a0b", "a\u00a0\u00a0b", " \u00a0 ", "\u2003\u2009x", "\u3000\u3042\u3000", "\u1680x\u1680", "\u200bzero\u200bwidth", "\u2028\u2029\u0085\u000b\u000c|", "a\u0085b", "\ufeffbom", "a\u00adb", "\u180e\u2060",
    "\u4f60\u597d\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f \u4e16\u754c\u3002", "\uc548\ub155\ud558\uc138\uc694", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u05e9\u05dc\u05d5\u05dd", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5", "\u1e9e \u00df \u01c5 \u01c8 \u02b0\u02b1 \u00aa\u00ba",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f44d\U0001f3fd\U0001f44d", "\U0001f1eb\U0001f1f7\U0001f1e9\U0001f1ea", "\u2764\ufe0f ok", "a\U0001f600b \U0001f600 1", "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "line one\r\nline two\r\n\r\nline four", "a\n\n\n\nb", "a \n b", "a\n  \n  b", "  \n", "\n  ", " \r\n \r\n x", "x\r\ry", "if x:\n    return\n\n\ny", "\t\tif (a) {\n\t\t\tb();\n\t\t}\n",
    "..." + "!" * 40, "-" * 100, " " * 100, "\n" * 50, "a" * 300, "ab" * 200, " a" * 100, "\t" * 33, "=" * 17 + "\n", "#!/bin/sh\n\nexec \"$@\"\n", "foo/bar//baz/ /\n/\r\n", "!!\n\n ??/\n", " ?\n?", "?!\r\n\r\n1",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "<|im_start|", "<|im_end|><|im_end|>", "a<|im_end|>b", " <|im_end|> ", "<|<|im_end|>", "<|im_end|><|im_start|>assistant\n", "<repo_name>x<file_sep>",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case", "HTTPServer iPhone eBay McDonald's USA's", "https://example.org/a?b=c&d=%20#e", "user@example.org", "C:\\Users\\x", "{\"a\": [1, 2.5, null, true], \"b\": \"\\u00e9\"}", "\\n\\t\\0", "$100,000.00 \u20ac5 \u00a36", "50% of 1/2", "x=y+z*2^n", "\u2200x\u2208\u211d: x\u00b2\u22650", "\u2014 dash \u2013 dash \u2026",
    "\x00", "a\x00b", "\x01\x02\x03\x04\x05\x06\x07\x08", "\x0e\x0f\x10\x13\x14\x16\x1d\x1e\x1f\x7f", "t\x04he \x04\x06!!", "\x80\x9f", "\ufffd", "\ufffe\uffff", "\U0010ffff\U000f0000\ue000", "\U00040000\U000d0000", "\u0378\u0560\u1c8a", "\u01ba\u01bb\u01c0 \u2c7c \ua78f",
    "\u0e33\u0eb3 \ua67c\ua67d", "\u16ee\u3021\u3038", "\u0bf0\u0f33\u1369", "\u00d7\u00f7\u00a4\u00a6", "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144", "The quick brown fox jumps over the lazy dog. " * 5, "\u0130stanbul \u0131\u015f\u0131k", "\u1f88\u1f8f\u01c5abc \u01c5ABC ABc aBC ABC\u02b0def \u4e2dABC ABC\u4e2d abc\u4e2dABC", "\u0301\u0301ABC \u0301abc A\u0301B\u0301c", "ABC's abc'S \u4e2d's ABC'll", "a b\u00a0c\u2003d \u2003e",
]

SURROGATES = range(0xD800, 0xE000)


def assigned():
    by_category = {}
    for i in range(0x110000):
        if i not in SURROGATES:
            by_category.setdefault(unicodedata.category(chr(i)), []).append(chr(i))
    return by_category


def characters():
    """The ranges of characters that each class of the patterns holds, as tokenizers' own tables have them."""
    everything = [chr(i) for i in range(0x110000) if i not in SURROGATES]
    out = {}
    for name, regex in [("letter", r"\p{L}"), ("number", r"\p{N}"), ("space", r"\s"), ("mark", r"\p{M}"), ("upper", r"[\p{Lu}\p{Lt}]"), ("lower", r"\p{Ll}")]:
        splitter = pre_tokenizers.Split(Regex(regex + "+"), behavior="removed")
        rest = set()
        for a in range(0, len(everything), 4096):
            for piece, _ in splitter.pre_tokenize_str("".join(everything[a:a + 4096])):
                rest.update(piece)
        ranges = []
        for c in everything:
            if c not in rest:
                if ranges and ranges[-1][1] == ord(c) - 1:
                    ranges[-1][1] += 1
                else:
                    ranges.append([ord(c), ord(c)])
        out[name] = ranges
    return out


def fuzzed(rng, count):
    categories = assigned()
    common = list("aeithnsrdlu AEIT'''  \n\r\t.,!?-_/\\()[]{}<>|:;\"0123456789") + ["'s", "'LL", "\r\n", "  ", "   ", "\n\n", "<|im_end|>", "the ", " of", "ing"]
    weird = ["\u00a0", "\u3000", "\u0301", "\u200d", "\U0001f600", "\u017f", "\u0661", "\u4e2d", "\u00e9", "\ufeff", "\u2028"]
    out = []
    for _ in range(count):
        mix, parts = rng.random(), []
        for _ in range(rng.randint(1, 24)):
            x = rng.random()
            if x < mix:
                parts.append(rng.choice(common))
            elif x < mix + (1 - mix) * 0.4:
                parts.append(rng.choice(weird))
            else:
                parts.append(rng.choice(categories[rng.choice(sorted(categories))]))
        out.append("".join(parts))
    return out


def byte_alphabet():
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    rest = [b for b in range(256) if b not in plain]
    return {**{chr(b): b for b in plain}, **{chr(256 + i): b for i, b in enumerate(rest)}}


def reference(path):
    r = gguf.GGUFReader(path)
    get = lambda key: r.fields["tokenizer.ggml." + key].contents()
    tokens, merges = get("tokens"), [tuple(m.split(" ")) for m in get("merges")]
    t = Tokenizer(models.BPE({s: i for i, s in enumerate(tokens)}, merges))
    normalizer, splitter = SPLITTERS[get("pre")]
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer, t.decoder = splitter, decoders.ByteLevel()
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s, kind in zip(tokens, get("token_type")) if kind == 3])
    return t


def vocabulary(path):
    """The vocabulary in little space: after the first tokens, each merge makes the next one."""
    fields = gguf.GGUFReader(path).fields
    tokens, types, merges = (fields["tokenizer.ggml." + key].contents() for key in ("tokens", "token_type", "merges"))
    base = len(tokens) - len(merges)
    assert [m.replace(" ", "") for m in merges] == tokens[base:]
    return {"tokens": tokens[:base], "types": types[:base], "merges": merges}


def write(name, data):
    with open(os.path.join(HERE, name), "wb") as f, gzip.GzipFile(filename="", mode="wb", fileobj=f, mtime=0) as z:
        z.write(json.dumps(data, ensure_ascii=True, separators=(",", ":")).encode())


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--smollm2")
    p.add_argument("--tiny")
    args = p.parse_args()
    texts = ADVERSARIAL + fuzzed(random.Random(3), 2000)
    write("texts.json.gz", texts)
    write("characters.json.gz", characters())
    for name, path in [("smollm2", args.smollm2), ("tiny", args.tiny)]:
        if not path:
            continue
        t = reference(path)
        if name == "smollm2":
            write(name + "-vocab.json.gz", vocabulary(path))
        special = [t.encode(s, add_special_tokens=False).ids for s in texts]
        decoded = [t.decode(ids, skip_special_tokens=False) for ids in special]
        # Random ids decode to broken UTF-8.
        rng = random.Random(4)
        noise = [[rng.randrange(t.get_vocab_size()) if rng.random() < 0.5 else rng.randrange(17, 360) for _ in range(rng.randint(1, 12))] for _ in range(300)]
        plain = Tokenizer(t.model)
        if t.normalizer:
            plain.normalizer = t.normalizer
        plain.pre_tokenizer = t.pre_tokenizer
        write(name + ".json.gz", {
            "special": special, "decoded": {str(i): d for i, (s, d) in enumerate(zip(texts, decoded)) if s != d},
            "plain": {str(i): plain.encode(s, add_special_tokens=False).ids for i, s in enumerate(texts) if "<" in s},
            "noise": noise, "noise_text": [t.decode(ids, skip_special_tokens=False) for ids in noise],
            "noise_skipped": [t.decode(ids, skip_special_tokens=True) for ids in noise]})
    alphabet = byte_alphabet()
    words = {}
    for name, (normalizer, splitter) in SPLITTERS.items():
        rows = []
        for s in texts:
            s = normalizer.normalize_str(s) if normalizer else s
            pieces = [piece for piece, _ in splitter.pre_tokenize_str(s)]
            if name in ("gpt-2", "smollm"):
                sizes = [len(piece) for piece in pieces]
                assert b"".join(bytes(alphabet[c] for c in piece) for piece in pieces) == s.encode()
            else:
                sizes = [len(piece.encode()) for piece in pieces]
                assert "".join(pieces) == s
            rows.append(sizes)
        words[name] = rows
    write("words.json.gz", words)


if __name__ == "__main__":
    main()
