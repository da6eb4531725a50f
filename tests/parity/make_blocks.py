#!/usr/bin/env python3
"""Write tests/fixtures/blocks.safetensors: random blocks of every type of GGUF files, and their values.

The values are those of gguf.quants.dequantize. For each type NAME the file holds
`NAME.blocks` u8 [24, bytes], random but for a few edges, with `NAME.values` f32
[24, weights]; and `NAME.hash` i64 [1], the FNV-1a hash of the f32 bits (as little-endian
bytes) of 1000 more blocks, whose bytes come from the generator `noise` below, which
the Rust test has too.

    python tests/parity/make_blocks.py
"""

import argparse
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "blocks.safetensors"
SHOWN, HASHED = 24, 1000

# Where a block has numbers in f16, whose exponent must stay below that of infinities and NaN.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}  # fmt: skip


def noise(count: int, seed: int) -> np.ndarray:
    """Bits 40 to 47 of a linear congruential generator (Knuth's MMIX) after each step."""
    state, values = seed, bytearray()
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append(state >> 40 & 255)
    return np.frombuffer(bytes(values), np.uint8).copy()


def finite(blocks: np.ndarray, halves: list[int]) -> np.ndarray:
    for place in halves:
        blocks[:, place + 1] &= 0xBF  # Exponents below 16: below 2 in magnitude.
    return blocks


def fnv(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    tensors = {}
    for seed, (name, halves) in enumerate(HALVES.items()):
        kind = gguf.GGMLQuantizationType[name]
        size = gguf.GGML_QUANT_SIZES[kind][1]
        shown = finite(noise(SHOWN * size, seed + 1000).reshape(SHOWN, size), halves)
        shown[0], shown[1] = 0, 255
        finite(shown[:2], halves)
        for place in halves:
            shown[2, place : place + 2] = 0  # scale zero
            shown[3, place : place + 2] = [1, 0]  # the smallest f16
            shown[4, place : place + 2] = [1, 128]  # the same, negative
            shown[5, place : place + 2] = [255, 123]  # the largest f16
        if name == "MXFP4":
            shown[2:10, 0] = [0, 1, 2, 3, 126, 127, 128, 254]
        with np.errstate(over="ignore"):  # MXFP4's largest exponents
            tensors[f"{name}.blocks"] = shown
            tensors[f"{name}.values"] = gguf.quants.dequantize(shown, kind)
            hashed = finite(noise(HASHED * size, seed).reshape(HASHED, size), halves)
            bits = gguf.quants.dequantize(hashed, kind).astype("<f4").tobytes()
        tensors[f"{name}.hash"] = np.array([fnv(bits)], np.uint64).view(np.int64)
    save_file(tensors, out)


if __name__ == "__main__":
    main()
