#!/usr/bin/env python3
"""Checks that what this server hands out answers the same elsewhere: in the `mistralrs` package, and in llama.cpp.

    python tests/parity/check_elsewhere.py --binary target/release/attune

It runs where `benches/serving/requirements.txt` is installed.

First an adapter is trained through a real server and downloaded in PEFT's form, which both other programs get, llama.cpp after a
conversion of its own to GGUF. Greedy answers to held-out letters must equal the server's; the exit status is 1 where fewer than
95 of 100 agree (see `check_loop.py`).

Then an adapter with rsLoRA, and with ranks and alphas of its own in some layers, is exported in the forms that llama.cpp reads:
as a file beside the base's GGUF file, and added to the base's weights. Behind the beginnings of 24 letters llama.cpp writes the 32 most
probable tokens, one by one, or those until the one that ends texts, and the server scores each of them, the last one too, behind
the same tokens. The exit status is 1 unless in each place

- the two log probabilities of llama.cpp's token differ by at most E, and
- the token is the server's most probable one, or at most 2 E less probable: with errors of E either can be the larger one.

E is 1e-3 where all weights are in f32: neither program rounds anything then, and sums in other orders differ by some 1e-5. It is
2e-2 for weights in f16: the merged ones are rounded to 11 bits once, and llama.cpp rounds the inputs of each product to as many. So
that this cannot pass by chance, half of the answers must have all 32 tokens, and half must be others than the base's, whose log
probabilities differ by 20 E somewhere.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mistralrs
import numpy as np
from llama_server import LlamaServer
from loop import TOKENS, attunelib, check, letters
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benches" / "serving"), str(ROOT / "tests" / "sdk")]
import gguf_files  # noqa: E402
from wide_adapters import archive, matrices  # noqa: E402

# Letters that exported files answer, and the most tokens of an answer.
ASKED = 24
ANSWER = 32
# The tokens that end texts of the demo model.
ENDS = json.loads((attunelib.DEMO / "generation_config.json").read_text())["eos_token_id"]
# Tokens of each letter that are given.
GIVEN = 8
# Largest errors of a log probability.
OF_F32 = 1e-3
OF_F16 = 2e-2


def in_mistralrs(asked, adapter, _folder):
    """Its answers, with the adapter loaded into a running engine."""
    which = mistralrs.Which.Lora(
        model_id=str(attunelib.DEMO), adapters=[], arch=mistralrs.Architecture.Llama, dtype=mistralrs.ModelDType.F32
    )
    runner = mistralrs.Runner(which=which, max_seqs=1, no_paged_attn=True, prefix_cache_n=0)
    runner.load_lora_adapter("letters", str(adapter))
    answers = []
    for letter in asked:
        request = mistralrs.ChatCompletionRequest(
            model="default", messages=letter, max_tokens=TOKENS, temperature=0.0, adapter="letters"
        )
        answers.append(runner.send_chat_completion_request(request).choices[0].message.content or "")
    return answers


def demo_in_f32():
    return {name: value.astype(np.float32) for name, value in load_file(attunelib.DEMO / "model.safetensors").items()}


def prompt_of(letter, tokenizer):
    """The tokens of a letter in the demo model's chat template."""
    prompt = f"<|im_start|>user\n{letter[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(prompt, add_special_tokens=False).ids


def tokenizer_of_demo():
    return Tokenizer.from_file(str(attunelib.DEMO / "tokenizer.json"))


def in_llama_cpp(asked, adapter, folder):
    """Its server's answers."""
    config = json.loads((attunelib.DEMO / "config.json").read_text())
    gguf_files.write_model(folder / "base.gguf", attunelib.DEMO, demo_in_f32())
    gguf_files.write_adapter(folder / "adapter.gguf", config, adapter)
    tokenizer = tokenizer_of_demo()
    with LlamaServer(folder / "base.gguf", "--lora", folder / "adapter.gguf") as server:
        answers = [server.complete(prompt_of(letter, tokenizer), TOKENS)["tokens"] for letter in asked]
    return [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]


def scores(client, model, ids, tokens):
    """The log probability of each of `tokens` behind `ids`, and how far it is behind the largest one."""
    body = {"model": model, "prompt": ids + tokens, "max_tokens": 0, "echo": True, "logprobs": 2}
    logprobs = client.post("/v1/completions", body)["choices"][0]["logprobs"]
    ours, best = logprobs["token_logprobs"][len(ids) :], logprobs["top_logprobs"][len(ids) :]
    return ours, [max(place.values()) - own for place, own in zip(best, ours, strict=True)]


class Scored:
    """What llama.cpp answers with a file, beside what the server thinks of it."""

    def __init__(self):
        self.lengths = []
        self.same = []
        self.error = self.behind = 0.0

    def add(self, client, model, ids, answer):
        """Scores an answer of llama.cpp to `ids` as `model` would."""
        tokens, ended = answer["tokens"], answer["stop_type"] == "eos"
        assert ended or len(tokens) == ANSWER, answer
        theirs = [place["logprob"] for place in answer["completion_probabilities"]][: len(tokens)]
        ours, gaps = scores(client, model, ids, tokens)
        if ended and tokens[-1] not in ENDS:
            # llama.cpp does not say by which token.
            gaps.append(min(scores(client, model, ids, [*tokens, end])[1][-1] for end in ENDS))
        self.lengths.append(len(tokens))
        self.error = max([self.error, *(abs(a - b) for a, b in zip(ours, theirs, strict=True))])
        self.behind = max(self.behind, max(gaps))
        self.same.append(max(gaps) == 0)

    def say(self, what, bound):
        """Prints the result; true if it is bad."""
        bad = self.error > bound or self.behind > 2 * bound
        print(
            f"{what}: {sum(self.same)} of {len(self.same)} answers of llama.cpp, {self.lengths.count(ANSWER)} of them of {ANSWER}"
            f" tokens and {sum(self.lengths)} tokens in all, are the server's to the last token;"
            f" log probabilities differ by {self.error:.1e} at most, tokens are {self.behind:.1e} behind the best"
            f" (allowed {bound:g} and {2 * bound:g})" + (": TOO MUCH" if bad else "")
        )
        return bad


def export(binary, data_dir, config, *arguments):
    command = [str(binary), "export", *map(str, arguments), "--data-dir", str(data_dir), "--config", str(config)]
    subprocess.run(command, check=True, env=attunelib.environment(), cwd=attunelib.ROOT, stdout=subprocess.DEVNULL)
    return arguments[-1]


def check_exports(binary, folder):
    """True if llama.cpp makes something else of exported files than the server of their model."""
    in_f32 = folder / "demo-f32"
    in_f32.mkdir()
    for file in attunelib.DEMO.iterdir():
        if file.is_file() and file.suffix == ".json":
            (in_f32 / file.name).write_bytes(file.read_bytes())
    config = json.loads((in_f32 / "config.json").read_text())
    (in_f32 / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    save_file(demo_in_f32(), in_f32 / "model.safetensors", {"format": "pt"})
    gguf_files.write_model(folder / "base.gguf", attunelib.DEMO, demo_in_f32())
    tokenizer = tokenizer_of_demo()
    # Beginnings of letters go on longer than answers in a chat.
    texts = [letter[0]["content"] for letter in letters()[:ASKED]]
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids[:GIVEN] for text in texts]

    settings, data_dir = folder / "attune.toml", attunelib.data_folder()
    models = {"demo": attunelib.DEMO, "wide-f32": in_f32}
    settings.write_text("".join(f'[[models]]\nid = "{name}"\npath = "{path}"\n' for name, path in models.items()))
    bad = False
    with attunelib.Server(binary, data_dir, "--config", str(settings)) as server:
        client = attunelib.Client(server.url)
        for base in models:
            file = client.upload("adapter.tar", archive(matrices(5, 1.0), base), purpose="user_data")
            wanted = {"lora_name": f"on-{base}", "lora_path": file["id"], "base_model_name": base}
            # The answer is a sentence, not JSON.
            client.fetch("POST", "/v1/load_lora_adapter", json.dumps(wanted).encode())
        exported = [
            ("the adapter's file beside the base", "on-wide-f32", OF_F32, ["--adapter", "gguf", folder / "adapter.gguf"]),
            ("merged, in f32", "on-wide-f32", OF_F32, ["--merged", "gguf", folder / "merged.gguf"]),
            ("merged, in f16", "on-demo", OF_F16, ["--merged", "gguf", folder / "merged-f16.gguf"]),
        ]
        for what, model, bound, form in exported:
            file = export(binary, data_dir, settings, model, *form)
            llama = LlamaServer(folder / "base.gguf", "--lora", file) if form[0] == "--adapter" else LlamaServer(file)
            with_adapter, without = Scored(), Scored()
            with llama:
                for ids in prompts:
                    answer = llama.complete(ids, ANSWER, n_probs=1)
                    with_adapter.add(client, model, ids, answer)
                    without.add(client, model.removeprefix("on-"), ids, answer)
            bad |= with_adapter.say(what, bound)
            if 2 * with_adapter.lengths.count(ANSWER) < ASKED:
                print(f"{what}: most answers are shorter than {ANSWER} tokens")
                bad = True
            if without.error < 20 * bound or 2 * sum(without.same) > ASKED:
                print(f"{what}: the base says {sum(without.same)} of the answers, too, to {without.error:.1e} the same")
                bad = True
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True, help="the attune program to check")
    parser.add_argument("--exports-only", action="store_true", help="leave out the training and what is made of it")
    options = parser.parse_args()
    binary = options.binary.resolve()
    bad = not options.exports_only and check(binary, {"llama.cpp": in_llama_cpp, "mistralrs": in_mistralrs}) != 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        bad |= check_exports(binary, Path(folder))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
