"""Trains a tiny tokenizer in the manner of each family that GGUF files name, and writes the keys that such a file would
have beside the ids that the original tokenizer makes of hard texts: tests/fixtures/gguf_tokenizers.json.

    python tests/parity/make_tokenizers.py
"""

import io
import json
import random
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import generate_merges

FIXTURES = Path(__file__).parent.parent / "fixtures"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MARKS = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["<tool_call>", "</think>", "日本語"]

# The expressions of the original tokenizer.json files.
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN35 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MINICPM5 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK3 = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def split(*expressions):
    return [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]


def byte_level(words):
    return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)]


DIGITS = [pre_tokenizers.Digits(individual_digits=True)]
# name: (steps, NFC, ignore_merges, begins)
BYTE_FAMILIES = {
    "llama-bpe": (split(LLAMA3) + byte_level(False), False, True, True),
    "dbrx": (split(LLAMA3) + byte_level(False), False, False, False),
    "glm4": (split(LLAMA3) + byte_level(False), False, True, False),
    "qwen2": (split(QWEN2) + byte_level(False), True, False, False),
    "qwen35": (split(QWEN35) + byte_level(False), True, False, False),
    "smollm": (DIGITS + byte_level(True), False, False, False),
    "command-r": (DIGITS + byte_level(True), True, False, False),
    "gpt-2": (byte_level(True), False, False, False),
    "olmo": (byte_level(True), True, False, False),
    "tekken": (split(TEKKEN) + byte_level(False), False, True, True),
    "gpt-4o": (split(GPT4O) + byte_level(False), False, False, False),
    "deepseek-coder": (split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN) + DIGITS + byte_level(False), False, False, False),
    "deepseek-v3": (
        split(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK3) + byte_level(False),
        False, False, False,
    ),
    "falcon": (
        [pre_tokenizers.Punctuation("contiguous")] + byte_level(True)
        + [pre_tokenizers.Digits(individual_digits=False)] + split("[0-9][0-9][0-9]"),
        False, False, False,
    ),
    "minicpm5": (split(r"\p{N}{1,3}", MINICPM5) + byte_level(False), False, True, False),
}


def texts():
    """Returns 200 texts that tokenizers read differently."""
    found = [
        "", " ", "  ", "Hello, world!", "hello  world", " leading", "trailing ", "\ttab\t\tand  blanks \t",
        "I've 10 000 and 2024y   7", "x  2024 y   7", "½ Ⅷ ² ㊗ ①②③", "'S 'Ll IT'S DON'T we'RE y'all'd", "‘s ’t don’t",
        "a\r\nb\r\n\r\n c\n\n\n d \r e", "\n", "\r\n", "\n\n\n\n", " \n ", "\n \n", "   \n   x", "x\n  y", "\u0085\u2028\u2029",
        "👩‍👩‍👧‍👦 👍🏽 🇩🇪🇯🇵 ☺️", "e\u0301 a\u0308\u0323 n\u0303 \u1100\u1161\u11a8", "é ạ̈ ñ 각", "Å \u212b \u2126 ﬁ ſ K",
        "नमस्ते दुनिया", "ภาษาไทยง่าย", "العربية ١٢٣ ۴۵۶", "עברית", "東京タワーは333メートル", "中文，标点。１２３", "한국어 문장 42",
        "ひらがなカタカナ漢字", "Ελληνικά Ωμέγα", "Русский текст №5", "ǅungla ŉ ǰ", "ʰʷ ˈa ªº", "a\u0000b", "\u0000", "\ufeffbom", "�",
        "<|im_start|>user\nHi<|im_end|>\n", "<|bos|>x<|eos|>", "<|bos|><|bos|>", " <|im_end|> ", "<|im_end|", "<tool_call>{\"a\": 1}</think>",
        "a<tool_call>b", "日本語です", "[PAD400]", "<0x41>", "<0xE2><0x96><0x81>", "▁", "▁▁", "a▁b▁▁c", "▁ ▁", "<unk>", "<s></s>", "<pad>",
        "\n\n▁x", "\t", "\t\t", "\t\t\tx", "unreachable", " unreachable", "the unreachable thing", "Unreachable",
        "def f(x):\n    return x**2  # two\n", "for (int i=0;i<10;++i){a[i]+=1;}", "https://example.org/a_b?c=d&e=%20", "foo@bar.com", "C:\\dir\\file",
        "$1,234.56 €9,99 £3 100%", "1234567890", "12 345 6789", "0.001e-10", "1,000,000", "٠١٢٣٤٥٦٧٨٩", "०१२३", "๑๒๓", "𝟘𝟙𝟚", "Ⅳ ⅻ", "１２３４",
        "3rd 42nd", "v1.2.3-rc4", "A1B2C3", "x²+y³", "H₂O", "--- === ***", "...!!!???", "«quotes» „low“ ‚x‘", "(a)[b]{c}", "a/b//c", "\\n\\t", "#!/bin/sh",
        "ALLCAPS camelCase PascalCase snake_case", "HTTPServer iOS eBay", "ÀÉÎÕÜ àéîõü", "straße STRASSE ẞ", "İstanbul ıI", "naïve café",
        "it's It's IT'S it'S", "'ve 've'd", "''s", "'", "\"'\"", "can't", "o'clock", "rock 'n' roll", "d'accord l'été",
        "\u00a0nbsp\u00a0\u00a0x", "\u3000全角　空白", "\u200bzero\u200cwidth\u200d", "\u2003em\u2009thin", "a\u00adb", "x\u0301\u0302\u0303\u0304",
        "\U0001f468\u200d\U0001f4bb", "\U0010ffff\U000e0001", "\ud7ff\ue000", "𐍈𐌰 𝔘𝔫𝔦", "ﷺ", "㍿", "Ⴀა ⴀ", "ꭰ Ꭰ", "ᏸ", "ℂℝ", "𞤀",
        "the the the the", "aaaaaaaaaaaaaaaa", "abababababab", " a b c ", "a  b   c    d", ".  .   .", "1  2   3", "x \n\n y", "end.\n", "end. \n", "end.\n\n ",
        "a\n b\n  c\n   d", "\tx\n\ty", "  \t  ", " \r\n \r\n", "\x0b\x0c\x1c\x1f", "\x7f\x80\x9f", "a\u2029b",
    ]
    found += [" " * count + ("x" if count % 2 else "") for count in range(2, 32)]
    rng = random.Random(7)
    alphabet = list("aeT tn  s'.,19\n\r\t▁<|>") + ["é", "e\u0301", "中", "ü", "½", "٣", "👍", "ห", "\u0301", "Ω", "ß", "_"]
    while len(found) < 200:
        found.append("".join(rng.choice(alphabet) for _ in range(rng.randrange(4, 24))))
    assert len(found) == 200, len(found)
    return found


def corpus():
    sentences = [text * 2 for text in texts() if "<" not in text and "▁" not in text]
    common = "The river is in the town, and there are 1234 of them. It's what they're saying: nothing else!\n"
    code = "def function(self, value):\n        return self.value + 10\n\n"
    return sentences + [common * 20, code * 20, "Über den Fluss; où est le café? ¿Dónde está? " * 10, "中文和日本語の文章。" * 10]


def train_bytes(name, steps, composes, ignore_merges, begins):
    """Trains a tokenizer of the family as its authors have built theirs."""
    tokenizer = Tokenizer(BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizers.NFC() if composes else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=370, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    # A word that no merges make, as the vocabularies with `ignore_merges` have them.
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"]["Ġunreachable"] = len(state["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A <|bos|> $B", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))])
    return name, tokenizer, {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name}


def train_gemma4():
    tokenizer = Tokenizer(BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    pieces = ["<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=pieces, limit_alphabet=80, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    # The pieces of bytes are no added tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] == "<unk>"]
    # Gemma 4's splitting is none; that no token spans line feeds is a property of its vocabulary.
    state["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))])
    return "gemma4", tokenizer, {"tokenizer.ggml.model": "gemma4"}


def merges_key(tokenizer):
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def list_key(tokenizer):
    """Returns tokens and kinds, filled up to a multiple of 16 as converters fill up to the size of the embedding."""
    added = tokenizer.get_added_tokens_decoder()
    size = tokenizer.get_vocab_size()
    tokens, kinds = [], []
    for index in range(size + -size % 16):
        if index >= size:
            tokens.append(f"[PAD{index}]"), kinds.append(UNUSED)
            continue
        tokens.append(tokenizer.id_to_token(index))
        if index in added:
            kinds.append(CONTROL if added[index].special else USER_DEFINED)
        else:
            kinds.append(BYTE if tokens[-1].startswith("<0x") and len(tokens[-1]) == 6 else NORMAL)
    return tokens, kinds


def family(name, tokenizer, keys):
    tokens, kinds = list_key(tokenizer)
    keys |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": merges_key(tokenizer),
             "tokenizer.ggml.bos_token_id": tokenizer.token_to_id("<|bos|>"), "tokenizer.ggml.eos_token_id": tokenizer.token_to_id("<|eos|>")}
    if name == "gemma4":
        keys["tokenizer.ggml.unknown_token_id"] = 0
    return name, tokenizer, keys


def train_sentences(name, prefixed):
    """Trains with SentencePiece, and converts as transformers converts Llama's and Gemma's models."""
    runs = ["▁" * count for count in range(2, 32)]
    defined = [] if prefixed else ["[multimodal]", "\n", "\n\n", "\n\n\n", *runs, "<table>", "\t", "\t\t"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in corpus() for line in text.split("\n") if line.strip() and "\0" not in line]),
        model_writer=model, model_type="bpe", vocab_size=640 if prefixed else 700, byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", add_dummy_prefix=prefixed, remove_extra_whitespaces=False,
        user_defined_symbols=defined, num_threads=1, minloglevel=2, allow_whitespace_only_pieces=True, split_digits=True,
        unk_id=0 if prefixed else 3, bos_id=1 if prefixed else 2, eos_id=2 if prefixed else 1, pad_id=-1 if prefixed else 0)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = processor.get_piece_size()
    pieces = [(processor.id_to_piece(index), processor.get_score(index)) for index in range(count)]
    kinds = [kind(processor, index, defined) for index in range(count)]
    vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(vocabulary, generate_merges(vocabulary, pieces), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefixed else replace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefixed else []))
    for index, (piece, _) in enumerate(pieces):
        if kinds[index] in (UNKNOWN, CONTROL, USER_DEFINED):
            token = AddedToken(piece, normalized=False, special=kinds[index] != USER_DEFINED)
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    is_defined = [kind == USER_DEFINED for kind in kinds]
    keys = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.replace("▁", " ") if mine else piece for (piece, _), mine in zip(pieces, is_defined)],
        "tokenizer.ggml.scores": [-1000.0 if mine else score for (_, score), mine in zip(pieces, is_defined)],
        "tokenizer.ggml.token_type": kinds,
    }
    if not prefixed:
        keys |= {"tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.unknown_token_id": 3,
                 "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": False}
    same = [tokenizer.encode(text, add_special_tokens=False).ids == processor.encode(text) for text in texts()]
    print(f"{name}: {sum(same)} of {len(same)} texts as SentencePiece itself; others:",
          [text for text, as_well in zip(texts(), same) if not as_well])
    return name, tokenizer, keys


def kind(processor, index, defined):
    if processor.is_unknown(index):
        return UNKNOWN
    if processor.is_control(index):
        return CONTROL
    if processor.is_byte(index):
        return BYTE
    return USER_DEFINED if processor.id_to_piece(index) in defined else NORMAL


def row(name, tokenizer, keys):
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts()]
    decoded = {}
    for index, text in enumerate(texts()):
        shown = tokenizer.decode(ids[index], skip_special_tokens=False)
        if shown != text:
            decoded[index] = shown
    return {"name": name, "keys": keys, "ids": [" ".join(map(str, row)) for row in ids], "decoded": decoded,
            "around": tokenizer.encode("a b").ids}


def main():
    built = [family(*train_bytes(name, *parts)) for name, parts in BYTE_FAMILIES.items()]
    built.append(family(*train_gemma4()))
    built += [train_sentences("sentencepiece", True), train_sentences("sentencepiece-gemma", False)]
    table = {"texts": texts(), "families": [row(*entry) for entry in built]}
    file = FIXTURES / "gguf_tokenizers.json"
    file.write_text(json.dumps(table, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{file.stat().st_size} bytes, {len(built)} families")


if __name__ == "__main__":
    main()
