#!/usr/bin/env python3
"""Write the quantized checkpoints of tests/fixtures/quantized: one matrix in every
format, and whole tiny models in some.

A matrix is packed here, from the format's description, and its values are computed
from the numbers that went in, never from the packed ones. Where the program that
writes the format runs on a CPU (bitsandbytes, compressed-tensors, transformers), it
packs the matrix itself, or its own dequantization is compared with ours.
tests/parity/README.md describes the files.

    python tests/parity/make_quantized.py              # rewrites tests/fixtures/quantized
    python tests/parity/make_quantized.py --out DIR    # writes elsewhere
    python tests/parity/make_quantized.py --only model_mxfp4    # rewrites one of the models
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import bitsandbytes.functional as bnb
import peft
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import expert_families
import make_fixtures as base

DEFAULT_OUT = base.DEFAULT_OUT / "quantized"
MODULE = "model.layers.0.mlp.up_proj"
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def whole(seed, shape, low, high):
    """Random whole numbers from low to high, both included; low and high occur."""
    numbers = torch.randint(low, high + 1, shape, generator=generator(seed))
    numbers.view(-1)[0], numbers.view(-1)[-1] = low, high
    return numbers


def small(seed, shape, dtype=torch.float16):
    """Random scales, positive, of the given type."""
    return (0.002 + 0.03 * torch.rand(shape, generator=generator(seed))).to(dtype)


def words(stream):
    """Numbers of 32 bits, signed as PyTorch wants them, of a list of whole numbers."""
    return torch.tensor([number - 2**32 if number >= 2**31 else number for number in stream], dtype=torch.int32)


def pack(numbers, bits):
    """Packs the last dimension without gaps, lowest bits first."""
    rows = []
    for row in numbers.reshape(-1, numbers.shape[-1]).tolist():
        stream = sum(number << (bits * place) for place, number in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append(words([stream >> (32 * word) & 0xFFFFFFFF for word in range(count)]))
    return torch.stack(rows).reshape(*numbers.shape[:-1], -1)


def pack_padded(numbers, bits):
    """Packs the last dimension so that no number crosses a word."""
    rows, per_word = [], 32 // bits
    for row in numbers.tolist():
        parts = [row[start:start + per_word] for start in range(0, len(row), per_word)]
        rows.append(words([sum(number << (bits * place) for place, number in enumerate(part)) for part in parts]))
    return torch.stack(rows)


def expand(grouped, group, width):
    """Repeats the last dimension for each member of a group."""
    return grouped.repeat_interleave(group, -1)[..., :width]


# -------------------------------------------------------------------- formats


def gptq(seed, outputs, inputs, bits, group, symmetric=True, version=1, act_order=False, label=None, dynamic=None):
    """GPTQ as AutoGPTQ (version 1: zero points less one) and GPTQModel (version 2) write it."""
    size = inputs if group == -1 else group
    count = inputs // size
    numbers = whole(seed, (outputs, inputs), 0, 2**bits - 1)
    scales = small(seed + 1, (outputs, count))
    if symmetric:
        zeros = torch.full((outputs, count), 2 ** (bits - 1))
    else:
        zeros = whole(seed + 2, (outputs, count), 0, 2**bits - 1)
    groups = torch.arange(inputs) // size
    if act_order:
        groups = groups[torch.randperm(inputs, generator=generator(seed + 3))]
    stored = (zeros - 1) % 2**bits if version == 1 else zeros
    tensors = {
        "qweight": pack(numbers, bits).T.contiguous(),
        "qzeros": pack(stored.T.contiguous(), bits),
        "scales": scales.T.contiguous(),
        "g_idx": groups.int(),
    }
    expected = (numbers - zeros[:, groups]) * scales.float()[:, groups]
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": act_order,
        "sym": symmetric,
        "checkpoint_format": label or ("gptq" if version == 1 else "gptq_v2"),
    }
    if dynamic:
        config = {**config, "bits": 2, "group_size": 16, "dynamic": dynamic}
    return tensors, config, expected


def awq(seed, outputs, inputs, group):
    numbers = whole(seed, (outputs, inputs), 0, 15)
    zeros = whole(seed + 1, (outputs, inputs // group), 0, 15)
    scales = small(seed + 2, (outputs, inputs // group))

    def interleave(matrix):
        """The eight outputs of a word in the order of AutoAWQ's kernels."""
        matrix = matrix.T.reshape(matrix.shape[1], -1, 8)
        return pack(matrix[:, :, AWQ_ORDER].reshape(matrix.shape[0], -1), 4)

    tensors = {"qweight": interleave(numbers), "qzeros": interleave(zeros), "scales": scales.T.contiguous()}
    expected = (numbers - expand(zeros, group, inputs)) * expand(scales.float(), group, inputs)
    own, own_scales, own_zeros = AutoAWQConverter(group_size=group)._convert_gemm_module(
        tensors["qweight"], tensors["scales"], tensors["qzeros"]
    )
    differences = own.int() - expand(own_zeros.int(), group, inputs)
    assert (differences * expand(own_scales.float(), group, inputs)).equal(expected)
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return tensors, config, expected


def mlx(seed, outputs, inputs, bits, group, own=None):
    numbers = whole(seed, (outputs, inputs), 0, 2**bits - 1)
    scales = small(seed + 1, (outputs, inputs // group), torch.bfloat16)
    biases = (torch.randn((outputs, inputs // group), generator=generator(seed + 2)) * 0.1).bfloat16()
    tensors = {"weight": pack(numbers, bits).view(torch.uint32), "scales": scales, "biases": biases}
    product = numbers * expand(scales.float(), group, inputs)  # exact
    expected = product + expand(biases.float(), group, inputs)
    config = {"bits": bits, "group_size": group}
    if own:
        config = {"bits": 2, "group_size": 128, MODULE: config, "lm_head": False}
    return tensors, config, expected


def fp8(seed, outputs, inputs, kind, dtype=torch.float8_e4m3fn, scale_dtype=torch.float32, unsaid=False):
    weight = torch.randn((outputs, inputs), generator=generator(seed)).mul(40).to(dtype)
    config = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    if kind == "block":
        shape = (-(-outputs // 128), -(-inputs // 128))
        config["weight_block_size"] = [128, 128]
    else:
        shape = () if kind == "tensor" else (outputs, 1)
    scale = small(seed + 1, shape, torch.float32)
    if scale_dtype == torch.float8_e8m0fnu:
        scale = torch.exp2(scale.log2().round())
        config["scale_fmt"] = "ue8m0"
    scale = scale.to(scale_dtype)
    tensors = {"weight": weight, "weight_scale_inv" if kind != "channel" else "weight_scale": scale}
    full = scale.float()
    if kind == "block":
        full = full.repeat_interleave(128, 0)[:outputs].repeat_interleave(128, 1)[:, :inputs]
    expected = weight.float() * full
    if kind != "channel":
        block = [128, 128] if kind == "block" else None
        own = _dequantize_fp8_weight(weight, scale.float(), block, torch.float32)
        assert own.equal(expected)
    if unsaid:
        del config["weight_block_size"]
    return tensors, config, expected


def ct_config(form, weights, **more):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*self_attn.*"],
        "config_groups": {"group_0": group},
        **more,
    }


def compressed(form, weights, tensors):
    """The values that compressed-tensors itself computes, with scales in f32."""
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    state = {name: tensor.float() if name == "weight_scale" else tensor for name, tensor in tensors.items()}
    return BaseCompressor.get_value_from_registry(form).decompress(state, scheme)["weight"]


def ct_packed(seed, outputs, inputs, bits, group, symmetric=True, padded=False, act_order=False, unfilled=False):
    strategy = "group" if group else "channel"
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group}
    size = group or inputs
    count = inputs // size
    numbers = whole(seed, (outputs, inputs), 0, 2**bits - 1)
    scales = small(seed + 1, (outputs, count), torch.bfloat16)
    zeros = torch.full((outputs, count), 2 ** (bits - 1))
    packer = pack_padded if padded else pack
    tensors = {
        "weight_packed": packer(numbers, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if not symmetric:
        zeros = whole(seed + 2, (outputs, count), 0, 2**bits - 1)
        tensors["weight_zero_point"] = packer(zeros.T.contiguous(), bits).T.contiguous()
    groups = torch.arange(inputs) // size
    if act_order:
        groups = groups[torch.randperm(inputs, generator=generator(seed + 3))]
        tensors["weight_g_idx"] = groups.int()
    if unfilled:
        tensors["weight_g_idx"] = torch.full((inputs,), -1, dtype=torch.int32)
    expected = (numbers - zeros[:, groups]) * scales.float()[:, groups]
    if not padded and not act_order:
        assert compressed("pack-quantized", weights, tensors).equal(expected)
    return tensors, ct_config("pack-quantized", weights), expected


def ct_int(seed, outputs, inputs, symmetric):
    weights = {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": "channel"}
    weight = whole(seed, (outputs, inputs), -128, 127).to(torch.int8)
    scales = small(seed + 1, (outputs, 1), torch.bfloat16)
    tensors = {"weight": weight, "weight_scale": scales}
    zeros = torch.zeros((outputs, 1), dtype=torch.int8)
    if not symmetric:
        zeros = whole(seed + 2, (outputs, 1), -128, 127).to(torch.int8)
        tensors["weight_zero_point"] = zeros
    expected = (weight.int() - zeros.int()) * scales.float()
    assert compressed("int-quantized", weights, tensors).equal(expected)
    return {**tensors, "input_scale": torch.ones(1)}, ct_config("int-quantized", weights), expected


def ct_float(seed, outputs, inputs, form, block):
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "block" if block else "channel"}
    weight = torch.randn((outputs, inputs), generator=generator(seed)).mul(40).to(torch.float8_e4m3fn)
    shape = (outputs, 1)
    if block:
        weights["block_structure"] = block
        shape = (-(-outputs // block[0]), -(-inputs // block[1]))
    scales = small(seed + 1, shape, torch.bfloat16)
    tensors = {"weight": weight, "weight_scale": scales}
    full = scales.float()
    if block:
        full = full.repeat_interleave(block[0], 0)[:outputs].repeat_interleave(block[1], 1)[:, :inputs]
    expected = weight.float() * full
    if not block:
        assert compressed(form, weights, tensors).equal(expected)
    return tensors, ct_config(form, weights), expected


def fp4_numbers(seed, outputs, inputs):
    """Random numbers of 4 bits, and two of them in a byte, the first one low."""
    numbers = whole(seed, (outputs, inputs), 0, 15)
    return numbers, (numbers[:, ::2] | numbers[:, 1::2] << 4).to(torch.uint8)


def nvfp4(seed, outputs, inputs, program):
    numbers, packed = fp4_numbers(seed, outputs, inputs)
    scales = (1 + 400 * torch.rand((outputs, inputs // 16), generator=generator(seed + 1))).to(torch.float8_e4m3fn)
    if program == "modelopt":
        whole_scale = torch.tensor(3.7e-4)
        tensors = {"weight": packed, "weight_scale": scales, "weight_scale_2": whole_scale}
        full = scales.float() * whole_scale
        config = {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}
    else:
        weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
        whole_scale = torch.tensor([2731.0])
        tensors = {"weight_packed": packed, "weight_scale": scales, "weight_global_scale": whole_scale}
        full = scales.float() / whole_scale
        config = ct_config("nvfp4-pack-quantized", weights)
    expected = E2M1[numbers] * expand(full, 16, inputs)
    if program != "modelopt":
        own = dequantize(
            E2M1[numbers],
            scales.float(),
            args=QuantizationScheme(targets=[], weights=weights).weights,
            global_scale=whole_scale,
            dtype=torch.float32,
        )
        assert own.equal(expected)
    return {**tensors, "input_scale": torch.tensor(1.0)}, config, expected


def ct_mxfp4(seed, outputs, inputs):
    weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32}
    numbers, packed = fp4_numbers(seed, outputs, inputs)
    scales = whole(seed + 1, (outputs, inputs // 32), 110, 125).to(torch.uint8)
    expected = E2M1[numbers] * expand(torch.exp2(scales.float() - 127), 32, inputs)
    tensors = {"weight_packed": packed, "weight_scale": scales}
    state = BaseCompressor.get_value_from_registry("mxfp4-pack-quantized").decompress(
        tensors, QuantizationScheme(targets=["Linear"], weights=weights)
    )
    assert state["weight"].float().equal(expected)  # exact in bf16
    return tensors, ct_config("mxfp4-pack-quantized", weights), expected


def modelopt_fp8(seed, outputs, inputs):
    tensors, _, expected = fp8(seed, outputs, inputs, "tensor")
    tensors = {"weight": tensors["weight"], "weight_scale": tensors["weight_scale_inv"], "input_scale": torch.ones(())}
    return tensors, {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, expected


def bnb4(seed, outputs, inputs, kind, nested):
    weight = torch.randn((outputs, inputs), generator=generator(seed)) * 0.2
    packed, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=kind)
    tensors = {"weight": packed, **{f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return tensors, config, bnb.dequantize_4bit(packed, state)


def bnb8(seed, outputs, inputs):
    weight = torch.randn((outputs, inputs), generator=generator(seed)) * 0.2
    quants, scales, _ = bnb.int8_vectorwise_quant(weight)
    tensors = {"weight": quants, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return tensors, config, bnb.int8_vectorwise_dequant(quants, scales)


# Name, what makes it, whether its numbers stay whole, and steps of f32 that the value may be off.
CASES = {
    "gptq_4": (lambda: gptq(100, 32, 64, 4, 32), True, 0),
    "gptq_2": (lambda: gptq(110, 32, 64, 2, 16), True, 0),
    "gptq_3": (lambda: gptq(120, 32, 64, 3, 32, symmetric=False), True, 0),
    "gptq_8": (lambda: gptq(130, 32, 64, 8, 64), True, 0),
    "gptq_8_asymmetric": (lambda: gptq(140, 32, 64, 8, 64, symmetric=False), False, 0),
    "gptq_v2": (lambda: gptq(150, 32, 64, 4, 32, symmetric=False, version=2), True, 0),
    "gptq_v1_called_v2": (lambda: gptq(160, 32, 64, 4, 32, label="gptq_v2"), True, 0),
    "gptq_v2_called_v1": (lambda: gptq(170, 32, 64, 4, 32, version=2, label="gptq"), True, 0),
    "gptq_act_order": (lambda: gptq(180, 32, 64, 4, 16, symmetric=False, act_order=True), False, 0),
    "gptq_one_group": (lambda: gptq(190, 32, 64, 4, -1), True, 0),
    "gptq_dynamic": (
        lambda: gptq(195, 32, 64, 8, 32, dynamic={"-:lm_head": {}, r"+:.*\.0\..*up.*": {"bits": 8, "group_size": 32}}),
        True,
        0,
    ),
    "awq": (lambda: awq(200, 48, 64, 32), True, 0),
    "mlx_2": (lambda: mlx(300, 16, 64, 2, 32), True, 0),
    "mlx_3": (lambda: mlx(310, 16, 64, 3, 32), True, 0),
    "mlx_4": (lambda: mlx(320, 16, 128, 4, 64), True, 0),
    "mlx_5": (lambda: mlx(330, 16, 64, 5, 64), True, 0),
    "mlx_6": (lambda: mlx(340, 16, 64, 6, 32), True, 0),
    "mlx_8": (lambda: mlx(350, 16, 64, 8, 32), False, 0),
    "mlx_own_layout": (lambda: mlx(360, 16, 64, 4, 32, own=True), True, 0),
    "fp8_tensor": (lambda: fp8(400, 24, 40, "tensor"), False, 0),
    "fp8_channel": (lambda: fp8(410, 24, 40, "channel"), False, 0),
    "fp8_block": (lambda: fp8(420, 136, 140, "block", scale_dtype=torch.bfloat16), False, 0),
    "fp8_block_of_powers": (lambda: fp8(430, 24, 136, "block", scale_dtype=torch.float8_e8m0fnu), False, 0),
    "fp8_block_unsaid": (lambda: fp8(435, 24, 136, "block", unsaid=True), False, 0),
    "fp8_e5m2": (lambda: fp8(440, 24, 40, "tensor", dtype=torch.float8_e5m2), False, 0),
    "ct_packed_4": (lambda: ct_packed(500, 32, 64, 4, 32), True, 0),
    "ct_packed_4_asymmetric": (lambda: ct_packed(510, 40, 64, 4, 32, symmetric=False), True, 0),
    "ct_packed_channel": (lambda: ct_packed(520, 32, 64, 8, None), True, 0),
    "ct_packed_3": (lambda: ct_packed(530, 32, 64, 3, 32, symmetric=False), True, 0),
    "ct_packed_3_padded": (lambda: ct_packed(540, 32, 64, 3, 32, symmetric=False, padded=True), True, 0),
    "ct_packed_act_order": (lambda: ct_packed(550, 32, 64, 4, 16, act_order=True), False, 0),
    "ct_packed_unfilled": (lambda: ct_packed(555, 32, 64, 4, 16, unfilled=True), True, 0),
    "ct_int": (lambda: ct_int(560, 32, 64, True), True, 0),
    "ct_int_asymmetric": (lambda: ct_int(570, 32, 64, False), False, 0),
    "ct_float": (lambda: ct_float(580, 24, 40, "float-quantized", None), False, 0),
    "ct_float_block": (lambda: ct_float(590, 40, 72, "float-quantized", [32, 32]), False, 0),
    "ct_naive": (lambda: ct_float(600, 24, 40, "naive-quantized", None), False, 0),
    "ct_nvfp4": (lambda: nvfp4(610, 24, 64, "compressed-tensors"), True, 0),
    "ct_mxfp4": (lambda: ct_mxfp4(620, 24, 64), True, 0),
    "modelopt_nvfp4": (lambda: nvfp4(630, 24, 64, "modelopt"), True, 0),
    "modelopt_fp8": (lambda: modelopt_fp8(640, 24, 40), False, 0),
    "bnb_nf4": (lambda: bnb4(700, 24, 72, "nf4", False), False, 0),
    "bnb_nf4_nested": (lambda: bnb4(710, 136, 128, "nf4", True), False, 0),
    "bnb_fp4": (lambda: bnb4(720, 24, 64, "fp4", False), False, 0),
    # bitsandbytes multiplies by the rounded 1/127 after a first rounding.
    "bnb_int8": (lambda: bnb8(730, 24, 64), True, 2),
}


def make_matrices(folder):
    cases, expected = [], {}
    for name, (make, grouped, steps) in CASES.items():
        tensors, config, values = make()
        assert values.dtype == torch.float32 and torch.isfinite(values).all() and values.abs().max() > 0, name
        save_file({f"{MODULE}.{suffix}": tensor for suffix, tensor in tensors.items()}, folder / f"{name}.safetensors")
        expected[name] = values.contiguous()
        cases.append({"name": name, "grouped": grouped, "steps": steps, "config": config})
    experts, outputs, inputs = 3, 8, 64
    numbers, packed = fp4_numbers(800, experts * outputs, inputs)
    blocks = packed.reshape(experts, outputs, inputs // 32, 16)
    scales = whole(801, (experts, outputs, inputs // 32), 110, 125).to(torch.uint8)
    values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2).contiguous()
    own = E2M1[numbers].reshape(experts, outputs, inputs) * expand(torch.exp2(scales.float() - 127), 32, inputs)
    assert values.equal(own)
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({f"{stack}_blocks": blocks, f"{stack}_scales": scales}, folder / "experts.safetensors")
    expected["experts"] = values
    save_file(expected, folder / "expected.safetensors")
    (folder / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


# --------------------------------------------------------------- whole models

SMALL = dict(num_hidden_layers=2, intermediate_size=128, rope_parameters=base.plain_rope(10000.0))


def gptq_of(weight):
    """4 bits in groups of 32, asymmetric, in the order of activations."""
    grouped = weight.reshape(weight.shape[0], -1, 32)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(1, 15).long()
    numbers = ((grouped / scales.float()[..., None]).round() + zeros[..., None]).clamp(0, 15).long()
    order = torch.randperm(weight.shape[1], generator=generator(weight.shape[1]))
    groups = (torch.arange(weight.shape[1]) // 32)[order]
    numbers = numbers.reshape(weight.shape)[:, order]
    tensors = {
        "qweight": pack(numbers, 4).T.contiguous(),
        "qzeros": pack((zeros - 1).T.contiguous(), 4),
        "scales": scales.T.contiguous(),
        "g_idx": groups.int(),
    }
    return tensors, (numbers - zeros[:, groups]) * scales.float()[:, groups]


def mlx_of(weight):
    grouped = weight.reshape(weight.shape[0], -1, 32)
    low, high = grouped.amin(-1), grouped.amax(-1)
    scales, biases = ((high - low) / 15).bfloat16(), low.bfloat16()
    numbers = ((grouped - biases.float()[..., None]) / scales.float()[..., None]).round().clamp(0, 15).long()
    values = numbers * scales.float()[..., None] + biases.float()[..., None]
    packed = pack(numbers.reshape(weight.shape), 4).view(torch.uint32)
    return {"weight": packed, "scales": scales, "biases": biases}, values.reshape(weight.shape)


def fp8_of(weight):
    scales = torch.empty(-(-weight.shape[0] // 128), -(-weight.shape[1] // 128))
    values = weight.clone()
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            block = weight[row * 128:(row + 1) * 128, column * 128:(column + 1) * 128]
            scales[row, column] = block.abs().max() / 448
            values[row * 128:(row + 1) * 128, column * 128:(column + 1) * 128] /= scales[row, column]
    values = values.to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale_inv": scales}, _dequantize_fp8_weight(
        values, scales, [128, 128], torch.float32
    )


def nf4_of(weight):
    packed, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    tensors = {"weight": packed, **{f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}}
    return tensors, bnb.dequantize_4bit(packed, state)


def mxfp4_of(weight):
    """The nearest numbers of MXFP4 [..., groups, 16], their scales [..., groups], and the values, as `weight` is."""
    grouped = weight.reshape(*weight.shape[:-1], -1, 32)
    exponents = grouped.abs().amax(-1).log2().floor() - 2
    scaled = grouped / torch.exp2(exponents)[..., None]
    numbers = (scaled.abs()[..., None] - E2M1[:8]).abs().argmin(-1) + 8 * (scaled < 0)
    values = (E2M1[numbers] * torch.exp2(exponents)[..., None]).reshape(weight.shape)
    blocks = (numbers[..., ::2] | numbers[..., 1::2] << 4).to(torch.uint8)
    return blocks, (exponents + 127).to(torch.uint8), values


MODELS = {
    "model_gptq": dict(
        type="llama",
        settings={},
        quantize=gptq_of,
        config={"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False},
        adapter=True,
    ),
    "model_mlx": dict(
        type="qwen2",
        settings=dict(tie_word_embeddings=True),
        quantize=mlx_of,
        config={"bits": 4, "group_size": 32},
        embedding=True,
        adapter=True,
    ),
    "model_fp8": dict(
        type="qwen3",
        settings=dict(tie_word_embeddings=True, head_dim=16),
        quantize=fp8_of,
        config={
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head", "model.layers.1.mlp.down_proj"],
        },
    ),
    "model_nf4": dict(
        type="llama",
        settings=dict(tie_word_embeddings=True),
        quantize=nf4_of,
        config={
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "llm_int8_skip_modules": ["lm_head"],
        },
    ),
    # As gpt-oss is published: the experts alone are quantized, all else is bf16.
    "model_mxfp4": dict(
        type="gpt_oss",
        settings={**expert_families.FAMILIES["gpt_oss"]["config"], "intermediate_size": 96, "swiglu_limit": 7.0},
        quantize=None,
        plain=torch.bfloat16,
        config={
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
        modules=expert_families.ATTENTION,
        adapter=True,
    ),
}


def quantize_layers(model, quantize, skipped, embedding):
    """Round the linear layers; returns their tensors and the names of the parameters in whose place they stand."""
    tensors, replaced = {}, set()
    for name, module in model.named_modules():
        is_linear = isinstance(module, torch.nn.Linear) and name != "lm_head" and name not in skipped
        if is_linear or (embedding and isinstance(module, torch.nn.Embedding)):
            stored, values = quantize(module.weight.detach().clone())
            module.weight.copy_(values)
            tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in stored.items()}
            replaced.add(f"{name}.weight")
    return tensors, replaced


def quantize_experts(model):
    """Do the same to the stacks of experts, whose matrices [inputs, outputs] are stored the other way round."""
    tensors, replaced = {}, set()
    for name, parameter in model.named_parameters():
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            blocks, scales, values = mxfp4_of(parameter.detach().transpose(1, 2).contiguous())
            assert convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).equal(values.transpose(1, 2))
            parameter.copy_(values.transpose(1, 2))
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            replaced.add(name)
    return tensors, replaced


def make_model(
    folder,
    model_type,
    settings,
    quantize,
    config,
    seed,
    embedding=False,
    adapter=False,
    plain=torch.float16,
    modules=base.LORA_MODULES,
):
    """Write a model whose linear layers or experts are quantized, and what transformers computes with their values."""
    model = base.build_model(model_type, {**SMALL, **settings}, seed)
    with torch.no_grad():
        if quantize:
            tensors, replaced = quantize_layers(model, quantize, config.get("modules_to_not_convert", []), embedding)
        else:
            tensors, replaced = quantize_experts(model)
        for name, parameter in model.named_parameters():
            if name not in replaced:
                parameter.copy_(parameter.to(plain).float())
                tensors[name] = parameter.detach().to(plain).clone()
    ids, tokens, _ = base.choose_sequence(model, 32, seed + 1)
    reference = base.forward(model, ids)
    folder.mkdir(parents=True)
    own = model.config.to_dict()
    own["quantization_config" if "quant_method" in config else "quantization"] = config
    (folder / "config.json").write_text(json.dumps(own, indent=2, sort_keys=True) + "\n")
    save_file(tensors, folder / "model.safetensors")
    save_file({"input_ids": ids, "greedy": tokens, **reference}, folder / "reference.safetensors")
    if not quantize:
        check_published(folder, ids, reference["logits"])
    if adapter:
        make_adapter(folder / "peft", model, ids, modules, seed + 2)


def check_published(folder, ids, logits):
    """Compare with what transformers makes of the files themselves."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    assert (base.forward(model.float(), ids)["logits"] - logits).abs().max() < 1e-5


def make_adapter(folder, model, ids, modules, seed):
    """Write an adapter and its logits, loss and gradients on the dequantized weights."""
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=modules, task_type="CAUSAL_LM"),
    ).eval()
    values = base.random_adapter(model, seed, std_of_b=0.1)
    base.set_adapter(model, values)
    sequences, masks = batch = base.make_batch(seed + 1)
    reference = {
        "input_ids": ids,
        "batch_tokens": torch.cat(sequences),
        "batch_lengths": torch.tensor(base.BATCH_LENGTHS),
        "batch_targets_mask": torch.cat(masks),
        "logits": base.forward(model, ids)["logits"],
        **base.loss_and_gradients(model, batch),
    }
    folder.mkdir()
    save_file(values, folder / "adapter_model.safetensors")
    save_file(reference, folder / "reference.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write (default: tests/fixtures/quantized)")
    parser.add_argument("--only", choices=MODELS, help="write this model alone")
    arguments = parser.parse_args()
    out = arguments.out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    shutil.rmtree(out / arguments.only if arguments.only else out, ignore_errors=True)
    if not arguments.only:
        out.mkdir(parents=True)
        make_matrices(out)
    for number, (name, settings) in enumerate(MODELS.items()):
        if arguments.only not in (None, name):
            continue
        model_type = settings.pop("type")
        make_model(out / name, model_type, seed=70_000 + 100 * number, **settings)
        assert load_file(out / name / "reference.safetensors")["logits"].std() > 1
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{size / 1000:.0f} kB")
    assert size < 1_500_000
    return 0


if __name__ == "__main__":
    sys.exit(main())
