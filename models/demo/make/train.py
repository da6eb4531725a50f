"""Trains the demo model from nothing on the text of `world.py` and writes it in Hugging Face form.

    python train_tokenizer.py && python train.py
    torchrun --nproc_per_node 2 train.py        two processes, one thread each

The text is generated on the fly from a seed and seen once.  With --compile (it
needs a C++ compiler) and bf16 products one step is several times faster.  Matrices inside
the blocks are trained with Muon, the rest with AdamW; both follow the same
warm-up and cosine.  The user's words in chats are read but not learned.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import torch
from torch import distributed
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import shop
import world

HERE = Path(__file__).resolve().parent.parent
END, IM_START, IM_END, PAD = 0, 1, 2, 3


def token_documents(tokenizer, stream):
    """Endless (ids, labels) of the stream's documents, each closed by <|endoftext|>."""
    while True:
        pieces, lengths = [], []
        for _ in range(200):
            doc = next(stream)
            pieces += doc
            lengths.append(len(doc))
        encoded = tokenizer.encode_batch([text for text, _ in pieces], add_special_tokens=False)
        at = 0
        for n in lengths:
            ids, labels = [], []
            for (_, learned), enc in zip(pieces[at:at + n], encoded[at:at + n]):
                ids += enc.ids
                labels += enc.ids if learned else [-100] * len(enc.ids)
            at += n
            yield ids + [END], labels + [END]


def rows(documents, length):
    """Endless rows of so many tokens, each starting with a document; the last one may be cut."""
    while True:
        ids, labels = [], []
        while len(ids) < length:
            i, l = next(documents)
            ids += i
            labels += l
        yield ids[:length], labels[:length]


def batch(documents, tokens, length):
    """One batch of `tokens` tokens as (ids, labels)."""
    source = rows(documents, length)
    pairs = [next(source) for _ in range(tokens // length)]
    return torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])


def loss_of(model, ids, labels, bf16):
    """Mean cross-entropy over the learned tokens."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def save(model, out):
    """Writes config, weights (f16) and generation settings."""
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half = half.to(torch.float16)
    half.config.dtype = torch.float16
    half.save_pretrained(out)
    generation = {"eos_token_id": [IM_END, END], "pad_token_id": PAD}
    (Path(out) / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (Path(out) / "model.safetensors").chmod(0o644)
    # Plain, widely read spellings of two fields that newer versions write differently.
    path = Path(out) / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters", None)
    config.pop("dtype", None)
    config.update(rope_theta=10000.0, rope_scaling=None, torch_dtype="float16")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--lr", type=float, default=3e-3, help="AdamW's rate; Muon takes --muon-lr")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--f32", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--minutes", type=float, default=0, help="stop the schedule after so long instead of --steps")
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--init", type=Path, help="go on from a saved model instead of random weights")
    args = parser.parse_args()

    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        distributed.init_process_group("gloo")
        torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=256, intermediate_size=704,
        num_hidden_layers=args.layers, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        max_position_embeddings=1024, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=IM_END, pad_token_id=PAD, attention_dropout=0.0)
    model = LlamaForCausalLM(config)
    if args.init:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(args.init, dtype=torch.float32).state_dict())
    say = print if rank == 0 else (lambda *_, **__: None)
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    if args.optimizer == "muon":
        optimizers = [torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=0.01, momentum=0.95),
                      torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)]
    else:
        optimizers = [torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                                         {"params": rest, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.98))]
    peaks = [[g["lr"] for g in o.param_groups] for o in optimizers]

    copies = random.Random(777)
    shop_talk = (shop.doc_shop_chat(copies) for _ in iter(int, 1))
    slips = (shop.doc_slip(copies) for _ in iter(int, 1))
    held = {"held_out_loss": batch(token_documents(tokenizer, world.documents(777777)), args.tokens, 256),
            "shop_chat_loss": batch(token_documents(tokenizer, shop_talk), args.tokens, 256),
            "slip_loss": batch(token_documents(tokenizer, slips), args.tokens, 256)}
    source = token_documents(tokenizer, world.documents(args.seed + 1000 * rank))
    step_loss = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    start, seen = time.time(), 0

    def held_out_loss():
        with torch.no_grad():
            return {name: round(loss_of(model, *b, False).item(), 4) for name, b in held.items()}

    step = 0
    while True:
        done = step / args.steps
        if args.minutes:
            done = (time.time() - start) / 60 / args.minutes
        if world_size > 1:  # all processes follow the clock of the first
            shared = torch.tensor(done)
            distributed.broadcast(shared, 0)
            done = shared.item()
        if done >= 1:
            break
        scale = min(1.0, (step + 1) / 40) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for optimizer, peak in zip(optimizers, peaks):
            for group, lr in zip(optimizer.param_groups, peak):
                group["lr"] = lr * scale
        length = 256 if rng.random() < 0.85 else 1024
        ids, labels = batch(source, args.tokens // world_size, length)
        loss = step_loss(model, ids, labels, not args.f32)
        loss.backward()
        if world_size > 1:
            flat = torch.cat([p.grad.flatten() for p in model.parameters()])
            distributed.all_reduce(flat)
            flat /= world_size
            for p, part in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()])):
                p.grad.copy_(part.view_as(p))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += ids.numel() * world_size
        step += 1
        if rank == 0 and (step % 20 == 0 or step == 1):
            took = time.time() - start
            line = {"step": step, "tokens": seen, "loss": round(loss.item(), 4), "seconds": round(took),
                    "tokens_per_second": round(seen / took)}
            if step % 100 == 0:
                line.update(held_out_loss())
            print(json.dumps(line), flush=True)
        if rank == 0 and args.save_every and step % args.save_every == 0:
            save(model, args.out)
    if rank:
        return
    save(model, args.out)
    summary = {"steps": step, "tokens": seen, "minutes": round((time.time() - start) / 60, 1), **held_out_loss()}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
