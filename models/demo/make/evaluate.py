"""Measures the demo model: held-out questions through the chat template (greedy), loss and samples.

    python evaluate.py                 all of ../questions.jsonl
    python evaluate.py --samples       also print questions, a story and a shop chat

An answer is right when it contains the line's "key" as whole words, upper or lower case.
"""

import argparse
import json
import re
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent.parent


def answer_all(model, tokenizer, chats, max_new_tokens=64, batch_size=50):
    """Greedy answers to a list of chats, left-padded in batches of similar length."""
    prompts = [tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in chats]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        part = order[start:start + batch_size]
        inputs = tokenizer([prompts[i] for i in part], return_tensors="pt", padding=True,
                           padding_side="left", add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask,
                                 max_new_tokens=max_new_tokens, do_sample=False)
        for i, ids in zip(part, out[:, inputs.input_ids.shape[1]:]):
            answers[i] = tokenizer.decode(ids, skip_special_tokens=True)
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--questions", type=Path, default=HERE / "questions.jsonl")
    parser.add_argument("--samples", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    lines = [json.loads(line) for line in open(args.questions, encoding="utf-8")]
    start = time.time()
    answers = answer_all(model, tokenizer, [line["messages"] for line in lines])
    right = 0
    for line, answer in zip(lines, answers):
        good = re.search(rf"\b{re.escape(line['key'])}\b", answer, re.IGNORECASE) is not None
        right += good
        if not good:
            print("WRONG", line["messages"][-1]["content"], "->", answer, "| wanted", line["key"])
    print(f"{right} of {len(lines)} held-out questions right ({100 * right / len(lines):.1f} %), {time.time() - start:.0f} s")
    if args.samples:
        chats = ["Hello!", "Who are you?", "Tell me about Mirela.", "Tell me a story.", "What is the Lowmark?",
                 "Repeat: blue {x9} 4172 \"lamp\"",
                 "Hi, I bought a radio from you, order 8305. It arrived broken. I want my money back. It is urgent."]
        for ask, text in zip(chats, answer_all(model, tokenizer, [[{"role": "user", "content": c}] for c in chats], 160)):
            print(f"> {ask}\n{text}")
        for start_text in ("On Friday", "Brasmere is", "Letter: Hello,"):
            ids = tokenizer(start_text, return_tensors="pt", add_special_tokens=False).input_ids
            out = model.generate(input_ids=ids, max_new_tokens=80, do_sample=False)
            print("...", tokenizer.decode(out[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
