"""The texts of the references of encoders, and tiny tokenizers in the manner of each family, for make_encoders.py.

The vocabularies are counted from the texts themselves, so that a script that runs twice writes the same files.
"""

import json
import math
import re
from collections import Counter

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

LONG = (
    "The harbour was quiet in the morning, and the fishermen who had been out all night brought their boats back to the "
    "old stone wall, where women and children were waiting for them with hot bread, coffee and the news of the town; "
    "nobody spoke of the storm, although everybody had heard it, and the youngest of the men laughed at the gulls."
)
TEXTS = [
    "hello",
    "The cat sits on the mat.",
    "A dog was running through the green garden.",
    "How do I bring the boats back to the harbour?",
    ".",
    "   ",
    "  two  spaces, and more   ",
    "Ça va, MÜNCHEN? A naïve café in Zürich, İstanbul.",
    "日本語のテキスト and 中文 in one line",
    "🙂 family 👩‍👩‍👧 and ﬁne ﬂags 🇩🇪",
    'fn main() { println!("{}", list[0] + 1_000); }',
    "Tabs\tand\nnew lines\r\nare   white space, too",
    "unbelievably" * 12,
    LONG,
    "the cat " * 60,
    "x = 3.14159; y != x, e.g. 50% of $20 (see #7)",
]
HIDDEN_OF = [1, 8]  # the texts whose last hidden states are written

# Anchors and their positives; the first four are the batch of the gradients.
PAIRS = [
    ("How do I bring a boat home?", "The fishermen brought their boats back to the old stone wall."),
    ("cat on a mat", "The cat sits on the mat."),
    ("Where is the coffee?", "Women were waiting with hot bread and coffee."),
    ("a running dog", "A dog was running through the green garden, and nobody spoke of it."),
    ("news of the storm", "Everybody had heard the storm in the night."),
    ("laughing", "The youngest of the men laughed at the gulls."),
    ("quiet morning", "The harbour was quiet in the morning."),
    ("white space", "Tabs and new lines are white space, too."),
]
# How alike the two texts of each pair shall be.
SCORES = [0.9, 1.0, 0.4, 0.75, 0.1, 0.55, 0.8, 0.25]

# A query and a document each.
QUESTIONS = [
    ("Where is the cat?", "The cat sits on the mat."),
    ("Where is the cat?", "A dog was running through the green garden."),
    ("boats", "boats"),
    ("How do I bring the boats back to the harbour?", LONG),
    (LONG, "short"),
    (LONG, LONG.upper()),
    ("", "日本語 and 🙂"),
    ("Ça va?", "."),
]
LABELS = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]

CORPUS = TEXTS[:12] + [LONG] + TEXTS[15:] + [text for pair in PAIRS for text in pair]
ENDINGS = ["ing", "ed", "er", "s", "ly", "en", "able", "un", "be", "in", "th", "ou", "on", "at"]


def words():
    """Lower-case words of the corpus, the most frequent first."""
    counts = Counter(re.findall(r"\w+", " ".join(CORPUS).lower()))
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def letters():
    """Every character of the corpus that is not white space, the upper-case ones too, but few of the rare scripts."""
    found = {letter for letter in " ".join(CORPUS) if letter.isprintable() and not letter.isspace()}
    found |= {letter.lower() for letter in found if len(letter.lower()) == 1}
    found |= set("abcdefghijklmnopqrstuvwxyz0123456789")
    return sorted(found - set("テト🙂"))  # some must stay unknown


def word_pieces(specials):
    """The vocabulary of a WordPiece tokenizer that lower-cases."""
    small = sorted({letter.lower() for letter in letters() if len(letter.lower()) == 1})
    plain = [letter for letter in small if letter.isascii() and letter.isalnum()]
    pieces = specials + small + [f"##{letter}" for letter in plain]
    pieces += [f"##{ending}" for ending in ENDINGS if len(ending) > 1]
    pieces += [word for word in words() if word.isascii() and len(word) > 1][:140]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def bert():
    return transformers.BertTokenizer(vocab=word_pieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))


def mpnet():
    """As published: the special tokens of RoBERTa around the pieces of BERT, and `[UNK]` among the latter."""
    return transformers.MPNetTokenizer(vocab=word_pieces(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]))


def unigram():
    """Pieces and their log probabilities: letters, endings and words, the longer ones less probable than their letters."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(letter, -6.5 - 0.01 * index) for index, letter in enumerate(letters())]
    pieces += [(ending, -6.0 - 0.02 * index) for index, ending in enumerate(ENDINGS) if len(ending) > 1]
    for index, word in enumerate([word for word in words() if word.isascii() and len(word) > 1][:140]):
        pieces.append((f"▁{word}", -3.0 - math.log(index + 1)))
    named = {}
    for piece, score in pieces:
        named.setdefault(piece, round(score, 4))
    return [*named.items(), ("<mask>", 0.0)]


def xlm_roberta():
    return transformers.XLMRobertaTokenizer(vocab=unigram())


def byte_pairs(size, specials):
    """The vocabulary and the merges of a byte-level BPE, learnt from the corpus; special tokens first."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(CORPUS, trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def roberta():
    vocab, merges = byte_pairs(380, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return transformers.RobertaTokenizer(vocab=vocab, merges=merges)


def byte_level(vocab, merges, specials):
    """A byte-level tokenizer without a post-processor, from which ModernBERT's and Qwen's are made."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def modernbert():
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    tokenizer = byte_level(*byte_pairs(380, specials), specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ["[CLS]", "[SEP]"]],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def qwen3():
    """As the embedding models of Qwen3: every text ends with <|endoftext|>, which pads, too."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(*byte_pairs(360, specials), specials)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="$A <|endoftext|>",
                pair="$A $B:1 <|endoftext|>:1",
                special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))],
            ),
        ]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def gemma():
    """SentencePiece's BPE as Gemma has it, by a Unigram of the same pieces; <bos> and <eos> around each text."""
    pieces = [("<pad>", 0.0), ("<eos>", 0.0), ("<bos>", 0.0), ("<unk>", 0.0)]
    known = dict(pieces)
    pieces += [(piece, score) for piece, score in unigram() if not piece.startswith("<") or piece == "<"]
    pieces = [(piece, score) for piece, score in pieces if piece in known or not piece.startswith("<s")]
    tokenizer = Tokenizer(models.Unigram(vocab=pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="never")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in known])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <eos> <bos>:1 $B:1 <eos>:1",
        special_tokens=[("<bos>", 2), ("<eos>", 1)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )
