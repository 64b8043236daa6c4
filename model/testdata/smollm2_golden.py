"""Makes smollm2_greedy.json and smollm2_logits.f32.gz: what transformers computes in float32 from
the dequantised weights of SmolLM2-135M-Instruct.Q4_1.gguf.

    python smollm2_golden.py PATH/TO/FOLDER/WITH/THE/GGUF

Made with torch 2.15.0 (CPU), transformers 5.23.0, accelerate 1.15.0, gguf 0.19.0. Each step of the
greedy continuations is one forward pass over a key-value cache; EOS does not end them.
"""

import gzip
import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
STEPS = 48
HERE = pathlib.Path(__file__).parent


def chat(text, system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"):
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


RIVER = (
    "The river rises in a bog above the last farm, where the ground never quite dries. For the first "
    "mile it is narrow enough to step across, and in August it can vanish into the stones altogether. "
    "Below the mill it is joined by a second stream, colder and clearer than the first, and from "
    "there on it carries small boats. "
)
LEDGER = "".join(
    f"On day {d} the clerk counted {17 * d % 90 + 10} crates of apples and {23 * d % 70 + 5} crates of pears, "
    f"sold {7 * d % 40 + 1} of them, and wrote the rest down.\n"
    for d in range(1, 9)
)
CODE = '''package queue

// Ring is a bounded queue of integers.
type Ring struct {
	items []int
	head  int
	count int
}

// Push adds x and reports whether there was room.
func (r *Ring) Push(x int) bool {
	if r.count == len(r.items) {
		return false
	}
	r.items[(r.head+r.count)%len(r.items)] = x
	r.count++
	return true
}

// Pop'''

# Name, text, and the number of tokens to cut it to (None: all).
PROMPTS = [
    ("short english", "The capital of France is", None),
    ("story", "Once upon a time, there was a small lighthouse", None),
    ("chat", chat("What is the largest planet of the solar system?"), None),
    ("chat arithmetic", chat("I have 3 boxes with 12 eggs each and drop 5 eggs. How many are whole?"), None),
    ("chat list", chat("Name three uses of a paper clip.", system="Answer in a numbered list."), None),
    ("python", "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n    ", None),
    ("go", CODE, None),
    ("sql", "-- customers without an order in 2024\nSELECT c.name\nFROM customers c\nLEFT JOIN", None),
    ("json", '{"name": "Ada", "born": 1815, "fields": ["mathematics", "computing"], "works": [{"title":', None),
    ("french", "Le petit chat dort sur le canapé près de la fenêtre. Dehors, il", None),
    ("german", "Der alte Leuchtturm steht seit über hundert Jahren auf der Klippe, und nachts", None),
    ("chinese", "北京是中国的首都，它有三千多年的历史。", None),
    ("emoji", "My week in emoji: 🌧️☕📚 then 🌞🚲🍦 and at last 🎉👩‍🚀🚀", None),
    ("numbers", "1, 1, 2, 3, 5, 8, 13, 21, 34, 55,", None),
    ("whitespace", "a\n\n\n    b\t\tc      d\n", None),
    ("paragraph", RIVER, None),
    ("two paragraphs", RIVER + "\n\n" + RIVER + "It ends", None),
    ("ledger", LEDGER + "In the end", 256),
    ("long mixed", RIVER + CODE + "\n\n" + LEDGER, 320),
    ("long chat", chat("Summarise this text in one sentence.\n\n" + RIVER + LEDGER + RIVER + LEDGER), 400),
]


def main():
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    out = []
    with torch.no_grad():
        for name, text, cut in PROMPTS:
            ids = tokenizer(text, add_special_tokens=False).input_ids[:cut]
            assert 5 <= len(ids) <= 400, (name, len(ids))
            r = model(torch.tensor([ids]), use_cache=True)
            tokens, gaps = [], []
            for _ in range(STEPS):
                top = r.logits[0, -1].topk(2)
                tokens.append(int(top.indices[0]))
                gaps.append(round(float(top.values[0] - top.values[1]), 6))
                r = model(torch.tensor([[tokens[-1]]]), past_key_values=r.past_key_values, use_cache=True)
            print(f"{name}: {len(ids)} tokens, least gap {min(gaps)}: {tokenizer.decode(tokens)!r}", flush=True)
            out.append({"name": name, "text": text if cut is None else "", "prompt": ids, "tokens": tokens, "gaps": gaps})
        ids = tokenizer(RIVER + LEDGER, add_special_tokens=False).input_ids[:64]
        logits = model(torch.tensor([ids])).logits[0, -1].numpy()
    (HERE / "smollm2_logits.f32.gz").write_bytes(gzip.compress(logits.astype("<f4").tobytes(), 9, mtime=0))
    rows = ",\n".join(json.dumps(p, ensure_ascii=False) for p in out)
    (HERE / "smollm2_greedy.json").write_text(f'{{"logits_prompt": {json.dumps(ids)},\n"prompts": [\n{rows}\n]}}\n')


main()
