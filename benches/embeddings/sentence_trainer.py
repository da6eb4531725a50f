"""sentence-transformers with PEFT on pairs of texts, in a process of its own: `sentence_trainer.py MODEL PAIRS SETTINGS OUT`.

SETTINGS is a file of JSON: Attune's hyperparameters of a finished job, and what its adapter says of itself under `adapter`. OUT
gets the trained model. Prints `begin` and `end` around the training, then a line of JSON: tokens without padding, and seconds.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import peft
import torch
import transformers
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.training_args import BatchSamplers

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Clock(transformers.TrainerCallback):
    """Seconds from the first step's begin to the last one's end; tells the watcher of the memory."""

    begin = end = None

    def on_step_begin(self, *_, **__):
        if self.begin is None:
            print("begin", flush=True)
            self.begin = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.end = time.perf_counter()


class CountingTrainer(SentenceTransformerTrainer):
    """Counts the tokens that are trained on, padding left out."""

    tokens = 0

    def training_step(self, model, inputs, *arguments, **settings):
        self.tokens += sum(int(value.sum()) for name, value in inputs.items() if name.endswith("attention_mask"))
        return super().training_step(model, inputs, *arguments, **settings)


def adapted(folder, adapter):
    """The model with a fresh LoRA adapter."""
    model = SentenceTransformer(folder, device="cpu", config_kwargs=NO_DROPOUT)
    model.add_adapter(peft.LoraConfig(
        r=adapter["r"], lora_alpha=adapter["lora_alpha"], target_modules=adapter["target_modules"], lora_dropout=0.0,
        use_rslora=adapter.get("use_rslora", False), task_type="FEATURE_EXTRACTION",
    ))  # fmt: skip
    return model


def training_arguments(settings, out):
    """Attune's settings in the trainer's words."""
    return SentenceTransformerTrainingArguments(
        output_dir=out, num_train_epochs=settings["n_epochs"], per_device_train_batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"] * settings["learning_rate_multiplier"], seed=settings["seed"],
        lr_scheduler_type=settings["lr_scheduler"], warmup_ratio=settings["warmup_ratio"],
        weight_decay=settings["weight_decay"], max_grad_norm=settings["max_grad_norm"],
        batch_sampler=BatchSamplers.NO_DUPLICATES, bf16=False, fp16=False, use_cpu=True, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip


def main():
    folder, file, told, out = sys.argv[1:]
    settings = json.loads(Path(told).read_text(encoding="utf-8"))
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(settings["seed"])
    with open(file, encoding="utf-8") as lines:
        pairs = datasets.Dataset.from_list([json.loads(line) for line in lines])
    model, clock = adapted(folder, settings["adapter"]), Clock()
    trainer = CountingTrainer(
        model=model, args=training_arguments(settings, out), train_dataset=pairs,
        loss=losses.MultipleNegativesRankingLoss(model, scale=settings["scale"]), callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    print("end", flush=True)
    model.save_pretrained(out)
    print(json.dumps({"tokens": trainer.tokens, "seconds": clock.end - clock.begin}), flush=True)


if __name__ == "__main__":
    main()
