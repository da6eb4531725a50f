"""transformers, PEFT and TRL on the benchmark's chats, in a process of its own: `peer.py MODEL CHATS MODE`, with the mode
`padded` (TRL's defaults) or `packed` (its best settings here). Prints `begin` and `end` around the training, then a line of
JSON: tokens without padding, and seconds."""

import json
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import peft
import torch
import transformers
import trl

RANK, ALPHA, LENGTH, BATCH = 16, 32, 1024, 4


class Clock(transformers.TrainerCallback):
    """Seconds from the first step's begin to the last one's end; tells the watcher of the memory."""

    begin = end = None

    def on_step_begin(self, *_, **__):
        if self.begin is None:
            print("begin", flush=True)
            self.begin = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.end = time.perf_counter()


class CountingTrainer(trl.SFTTrainer):
    """Counts the tokens that are trained on, padding left out."""

    tokens = 0

    def training_step(self, model, inputs, *arguments, **settings):
        mask = inputs.get("attention_mask")
        self.tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        return super().training_step(model, inputs, *arguments, **settings)


def main():
    folder, file, mode = sys.argv[1:]
    torch.set_num_threads(os.cpu_count())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    # Attention per document, where documents share a row, is that of torch's scaled dot product with a mask.
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    packed = {"packing": True, "per_device_train_batch_size": 1, "gradient_checkpointing": False}
    padded = {"per_device_train_batch_size": BATCH}
    settings = trl.SFTConfig(
        output_dir=os.environ["PEER_OUT"], max_length=LENGTH, num_train_epochs=1, learning_rate=2e-4, seed=1,
        bf16=False, fp16=False, use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, **(packed if mode == "packed" else padded),
    )  # fmt: skip
    adapter = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with open(file, encoding="utf-8") as lines:
        chats = [json.loads(line)["messages"] for line in lines]
    # In this form TRL learns the answers alone, as Attune does.
    rows = datasets.Dataset.from_list([{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats])
    clock = Clock()
    trainer = CountingTrainer(
        model=model, args=settings, train_dataset=rows, processing_class=tokenizer, peft_config=adapter,
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    print("end", flush=True)
    print(json.dumps({"tokens": trainer.tokens, "seconds": clock.end - clock.begin}), flush=True)


if __name__ == "__main__":
    main()
