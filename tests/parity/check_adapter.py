#!/usr/bin/env python3
"""Check that a LoRA adapter folder loads in PEFT and gives the expected logits.

    python tests/parity/check_adapter.py FOLDER_BASE FOLDER_ADAPTER LOGITS.safetensors

LOGITS.safetensors holds `input_ids` (i64 [n]) and `logits` (f32 [n, vocab]) as the
program under test computed them with the adapter. The exit status is 0 when every
logit agrees within the tolerance and PEFT has taken over every tensor of the
adapter, 1 otherwise.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file


def check_tensors(model, folder):
    """PEFT only warns about tensors it lacks or does not know; here they are errors."""
    saved = load_file(folder / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    problems = [f"the adapter file lacks {name}" for name in sorted(loaded.keys() - saved.keys())]
    problems += [f"PEFT has no place for {name}" for name in sorted(saved.keys() - loaded.keys())]
    problems += [
        f"{name} differs after loading"
        for name in sorted(loaded.keys() & saved.keys())
        if not torch.equal(saved[name].float(), loaded[name].float())
    ]
    return len(saved), problems


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, metavar="FOLDER_BASE")
    parser.add_argument("adapter", type=Path, metavar="FOLDER_ADAPTER")
    parser.add_argument("logits", type=Path, metavar="LOGITS.safetensors")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference allowed (default 1e-4)")
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    expected = load_file(args.logits)
    ids, logits = expected["input_ids"].long(), expected["logits"].float()
    base = transformers.AutoModelForCausalLM.from_pretrained(
        args.base, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    plain = base(ids[None], use_cache=False).logits[0]
    model = PeftModel.from_pretrained(base, args.adapter, local_files_only=True).eval()
    count, problems = check_tensors(model, args.adapter)
    ours = model(ids[None], use_cache=False).logits[0]

    print(f"adapter tensors: {count}")
    print(f"effect of the adapter in PEFT: at most {(ours - plain).abs().max():.6f}")
    if logits.shape != ours.shape:
        problems.append(f"logits have shape {list(logits.shape)}, PEFT gives {list(ours.shape)}")
    else:
        difference = (ours - logits).abs()
        worst = difference.max().item()
        position, token = divmod(int(difference.argmax()), difference.shape[1])
        place = f"position {position}, token {token}"
        print(f"largest difference of a logit: {worst:.3e} ({place}; allowed {args.tolerance:g})")
        if not worst <= args.tolerance:  # also true for NaN
            problems.append("the logits differ")
    for problem in problems:
        print(f"MISMATCH: {problem}")
    if not problems:
        print("OK: same logits in PEFT")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
