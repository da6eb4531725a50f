"""transformers' greedy answers with an adapter, in a process of its own: `generate.py MODEL ADAPTER EXAMPLES TOKENS`, chats or pairs.
Prints a JSON list of them."""

import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import peft
import torch
import transformers


def main():
    folder, adapter, file, tokens = sys.argv[1:]
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    answers = []
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            example = json.loads(line)
            if "prompt" in example:
                inputs = tokenizer(example["prompt"], return_tensors="pt")
            else:
                chat = example["messages"][:-1]
                prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
                inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
            with torch.no_grad():
                output = model.generate(**inputs, max_new_tokens=int(tokens), do_sample=False)
            answers.append(tokenizer.decode(output[0, inputs.input_ids.shape[1]:], skip_special_tokens=True))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
