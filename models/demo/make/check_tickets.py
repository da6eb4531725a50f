"""Tunes a LoRA adapter on the tickets with PEFT and measures held-out tickets before and after.

    python check_tickets.py --epochs 3 --batch 4 --lr 2e-3

Loss on the assistant's tokens only, with the closing <|im_end|>.  A ticket is
right when it parses as JSON and equals the wanted one.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluate import HERE, answer_all

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def read(name):
    return [json.loads(line) for line in open(HERE / "tickets" / name, encoding="utf-8")]


def exact(text, wanted):
    """Whether the text is the wanted ticket."""
    try:
        return json.loads(text) == json.loads(wanted)
    except ValueError:
        return False


def score(model, tokenizer, lines, show=0):
    """Share of lines answered exactly right; prints the first few mistakes."""
    model.eval()
    answers = answer_all(model, tokenizer, [line["messages"][:1] for line in lines], 72)
    right = 0
    for line, answer in zip(lines, answers):
        wanted = line["messages"][1]["content"]
        good = exact(answer, wanted)
        right += good
        if not good and show:
            show -= 1
            print("  wrong:", line["messages"][0]["content"], "\n    got   ", answer, "\n    wanted", wanted)
    model.train()
    return right / len(lines)


def encode(tokenizer, line):
    """Token ids and labels of one example; only the answer and its <|im_end|> are learned."""
    prompt = tokenizer.apply_chat_template(line["messages"][:1], add_generation_prompt=True, tokenize=False)
    head = tokenizer(prompt, add_special_tokens=False).input_ids
    tail = tokenizer(line["messages"][1]["content"] + "<|im_end|>", add_special_tokens=False).input_ids
    return head + tail, [-100] * len(head) + tail


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--warmup", type=float, default=0.05, help="share of the steps")
    parser.add_argument("--schedule", choices=("cosine", "linear", "constant"), default="cosine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, default=0, help="use only so many training lines")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    held = read("heldout.jsonl")
    before = score(model, tokenizer, held, show=3)
    print(f"base: {100 * before:.0f} % of held-out tickets right")

    model = get_peft_model(model, LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=MODULES,
                                             lora_dropout=0.0, task_type="CAUSAL_LM"))
    model.print_trainable_parameters()
    data = [encode(tokenizer, line) for line in read("train.jsonl")]
    if args.limit:
        data = data[:args.limit]
    per_epoch = math.ceil(len(data) / args.batch)
    steps = per_epoch * args.epochs
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.0)
    start, step, tokens = time.time(), 0, 0
    for epoch in range(args.epochs):
        rng.shuffle(data)
        total = 0.0
        for at in range(0, len(data), args.batch):
            part = data[at:at + args.batch]
            width = max(len(ids) for ids, _ in part)
            ids = torch.tensor([i + [3] * (width - len(i)) for i, _ in part])
            labels = torch.tensor([l + [-100] * (width - len(l)) for _, l in part])
            mask = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i, _ in part])
            warm = min(1.0, (step + 1) / max(1, args.warmup * steps))
            left = {"cosine": 0.5 * (1 + math.cos(math.pi * step / steps)), "linear": 1 - step / steps, "constant": 1}
            for group in optimizer.param_groups:
                group["lr"] = args.lr * warm * left[args.schedule]
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            tokens += sum(len(i) for i, _ in part)
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / per_epoch:.4f}, {time.time() - start:.0f} s", flush=True)
    seconds = time.time() - start
    after = score(model, tokenizer, held, show=5)
    print(json.dumps({"examples": len(data), "epochs": args.epochs, "batch": args.batch, "lr": args.lr, "steps": step,
                      "schedule": args.schedule, "rank": args.rank, "training_tokens": tokens,
                      "tokens_per_example": round(sum(len(i) for i, _ in data) / len(data), 1),
                      "seconds": round(seconds), "tokens_per_second": round(tokens / seconds), "before": before, "after": after}))


if __name__ == "__main__":
    main()
