"""A plain training loop of transformers and PEFT, as their documentation shows it, in a process of its own:
`plain.py MODEL EXAMPLES SETTINGS THREADS [ADAPTER]`. EXAMPLES are chats or pairs of a prompt and a completion, SETTINGS is a
JSON file of a job's hyperparameters and its seed, ADAPTER a folder for the result. f32, batches padded to their longest example,
torch's AdamW; only the last answer of a chat, or the completion, is learned.
Prints `begin` and `end` around the training, then a line of JSON: tokens without padding, seconds, and the last loss."""

import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import peft
import torch
import transformers

# A target that transformers' loss leaves out.
IGNORED = -100


def pair(tokenizer, line):
    """The tokens of a prompt with its completion and end, and the number of those of the prompt."""
    whole = tokenizer(line["prompt"] + line["completion"]).input_ids
    return [*whole, tokenizer.eos_token_id], len(tokenizer(line["prompt"]).input_ids)


def example(tokenizer, line):
    """The tokens of a chat up to the end of its answer, and the number of those before the answer; or those of a pair."""
    if "prompt" in line:
        return pair(tokenizer, line)
    chat = line["messages"]

    def encoded(messages, **settings):
        text = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
        return tokenizer(text, add_special_tokens=False).input_ids

    tokens, prompt = encoded(chat), encoded(chat[:-1], add_generation_prompt=True)
    while tokens[-1] != tokenizer.eos_token_id:
        tokens.pop()
    return tokens, len(prompt)


def padded(examples, padding):
    """A batch as a model takes it."""
    longest = max(len(tokens) for tokens, _ in examples)
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for tokens, prompt in examples:
        missing = longest - len(tokens)
        rows["input_ids"].append(tokens + [padding] * missing)
        rows["attention_mask"].append([1] * len(tokens) + [0] * missing)
        rows["labels"].append([IGNORED] * prompt + tokens[prompt:] + [IGNORED] * missing)
    return {name: torch.tensor(values) for name, values in rows.items()}


def factor(settings, step, total):
    """The share of the peak learning rate in a step: it rises, then falls."""
    warmup = round(settings["warmup_ratio"] * total)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return {"linear": 1 - progress, "cosine": cosine, "constant": 1.0}[settings["lr_scheduler"]]


def adapted(folder, settings):
    """The model with a fresh adapter."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    adapter = peft.LoraConfig(
        r=settings["rank"], lora_alpha=settings["alpha"], lora_dropout=settings["lora_dropout"],
        use_rslora=settings["use_rslora"], target_modules=settings["target_modules"], task_type="CAUSAL_LM",
    )  # fmt: skip
    return peft.get_peft_model(model, adapter).train()


def train(model, examples, settings, padding):
    """Trains, and returns the tokens, padding left out, and the loss of the last step."""
    size, order = settings["batch_size"], torch.Generator().manual_seed(settings["seed"])
    total = settings["n_epochs"] * math.ceil(len(examples) / size)
    learned = [values for values in model.parameters() if values.requires_grad]
    rate = settings["learning_rate"] * settings["learning_rate_multiplier"]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=settings["weight_decay"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(settings, step, total))
    counted = 0
    for _ in range(settings["n_epochs"]):
        shuffled = torch.randperm(len(examples), generator=order).tolist()
        for start in range(0, len(shuffled), size):
            batch = padded([examples[number] for number in shuffled[start:start + size]], padding)
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            if settings["max_grad_norm"] > 0:
                torch.nn.utils.clip_grad_norm_(learned, settings["max_grad_norm"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            counted += int(batch["attention_mask"].sum())
    return counted, float(loss)


def main():
    folder, file, told, threads, *result = sys.argv[1:]
    settings = json.loads(Path(told).read_text(encoding="utf-8"))
    torch.set_num_threads(int(threads))
    torch.manual_seed(settings["seed"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with open(file, encoding="utf-8") as lines:
        examples = [example(tokenizer, json.loads(line)) for line in lines]
    model = adapted(folder, settings)
    print("begin", flush=True)
    start = time.perf_counter()
    tokens, loss = train(model, examples, settings, tokenizer.eos_token_id)
    seconds = time.perf_counter() - start
    print("end", flush=True)
    for adapter in result:
        model.save_pretrained(adapter)
    print(json.dumps({"tokens": tokens, "seconds": seconds, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
