"""Measures transformers and PEFT on a GPU at Llama-3.1-8B's shape with random weights, in bf16: what `tools/gpu-check` prints
beside its own figures. It needs torch with CUDA, transformers and peft.

LoRA of rank 16 on all linear layers, one sequence of 4,096 tokens, scaled dot-product attention; with and without gradient
checkpointing. Decoding is one sequence and 32 with a cache of 512 tokens. Embeddings are by sentence-transformers, where Python has
it: a decoder of BGE-base's width and depth, 512 texts of 16 to 240 tokens.
"""

import importlib.util
import tempfile
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

LONG, CONTEXT, SEQUENCES, RANK = 4096, 512, 32, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def model():
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0, attn_implementation="sdpa",
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        return LlamaForCausalLM(config).eval()


def wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(times, run):
    for _ in range(2):
        run()
    wait()
    began = time.perf_counter()
    for _ in range(times):
        run()
    wait()
    return (time.perf_counter() - began) / times


@torch.no_grad()
def decoding(base, count):
    ids = torch.randint(0, 150, (count, CONTEXT), device="cuda")
    cache = base(ids, use_cache=True).past_key_values
    token = torch.randint(0, 150, (count, 1), device="cuda")

    def step():
        base(token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1).tolist()
        cache.crop(-1)

    return count / seconds(20, step)


@torch.no_grad()
def prompt(base):
    ids = torch.randint(0, 150, (1, LONG), device="cuda")
    return LONG / seconds(5, lambda: base(ids, logits_to_keep=1).logits.argmax(-1).tolist())


def training(base, checkpointing):
    tuned = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS)).train()
    if checkpointing:
        tuned.gradient_checkpointing_enable({"use_reentrant": False})
        tuned.enable_input_require_grads()
    ids = torch.randint(0, 150, (1, LONG), device="cuda")
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step():
        loss = tuned(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    torch.cuda.reset_peak_memory_stats()
    rate = LONG / seconds(3, step)
    tuned.gradient_checkpointing_disable()
    tuned.unload()
    return rate, torch.cuda.max_memory_allocated()


def embedding(device="cuda", texts=512):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers

    config = LlamaConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
        vocab_size=30522, max_position_embeddings=512, attn_implementation="sdpa",
    )  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({f"w{id}": id for id in range(150)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with tempfile.TemporaryDirectory() as folder:
        LlamaModel(config).to(torch.bfloat16).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0").save_pretrained(folder)
        words = Transformer(folder, model_kwargs={"dtype": torch.bfloat16})
        model = SentenceTransformer(modules=[words, Pooling(config.hidden_size), Normalize()], device=device)
    inputs = [" ".join(f"w{token % 150}" for token in range(16 + text * 37 % 225)) for text in range(texts)]
    best = 0
    for size in (32, 128, 512):
        best = max(best, texts / seconds(5, lambda: model.encode(inputs, batch_size=size, show_progress_bar=False)))
    return best


def main():
    if importlib.util.find_spec("sentence_transformers"):
        print(f"| sentence-transformers, embeddings | {embedding():,.0f} texts/s |", flush=True)
    base = model()
    print(f"| transformers, one sequence | {decoding(base, 1):,.0f} tokens/s |")
    print(f"| transformers, {SEQUENCES} sequences | {decoding(base, SEQUENCES):,.0f} tokens/s |")
    print(f"| transformers, a prompt of {LONG:,} | {prompt(base):,.0f} tokens/s |")
    for checkpointing in (False, True):
        rate, peak = training(base, checkpointing)
        how = "with gradient checkpointing" if checkpointing else "without gradient checkpointing"
        print(f"| PEFT, training {how} | {rate:,.0f} tokens/s, {peak / 2**30:.1f} GiB at the most |")


if __name__ == "__main__":
    main()
