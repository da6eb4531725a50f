//! Compares the values of blocks with those of gguf-py, bit for bit (`tests/parity/make_blocks.py`).

use safetensors::SafeTensors;

use super::*;

/// Types of whole numbers in the order of the fixture, with the places of their numbers in f16.
pub(crate) const TYPES: [(BlockType, &[usize]); 13] = [
    (BlockType::Q4_0, &[0]),
    (BlockType::Q4_1, &[0, 2]),
    (BlockType::Q5_0, &[0]),
    (BlockType::Q5_1, &[0, 2]),
    (BlockType::Q8_0, &[0]),
    (BlockType::Q2_K, &[80, 82]),
    (BlockType::Q3_K, &[108]),
    (BlockType::Q4_K, &[0, 2]),
    (BlockType::Q5_K, &[0, 2]),
    (BlockType::Q6_K, &[208]),
    (BlockType::Iq4Nl, &[0]),
    (BlockType::Iq4Xs, &[0]),
    (BlockType::Mxfp4, &[]),
];

/// Returns random blocks of the type, the same as the fixture's script: every number in f16 is finite.
pub(crate) fn random(index: usize, seed: u64, blocks: usize) -> Vec<u8> {
    let (kind, halves) = TYPES[index];
    let (_, size) = kind.size();
    let mut state = seed;
    let mut bytes: Vec<u8> = (0..blocks * size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u8
        })
        .collect();
    for block in bytes.chunks_exact_mut(size) {
        for place in halves {
            block[place + 1] &= 0xbf;
        }
    }
    bytes
}

fn values(kind: BlockType, bytes: Vec<u8>) -> Vec<f32> {
    let (weights, size) = kind.size();
    let rows = bytes.len() / size;
    BlockMatrix::new(kind, rows, weights, bytes.into()).unwrap().dequantize().unwrap()
}

#[test]
fn values_are_those_of_gguf_py_bit_for_bit() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/blocks.safetensors");
    let file = std::fs::read(path).unwrap();
    let fixture = SafeTensors::deserialize(&file).unwrap();
    for (index, (kind, _)) in TYPES.into_iter().enumerate() {
        let data = |what: &str| fixture.tensor(&format!("{kind}.{what}")).unwrap().data().to_vec();
        let expected = data("values");
        for (place, (ours, theirs)) in
            values(kind, data("blocks")).iter().zip(expected.as_chunks().0.iter().copied()).enumerate()
        {
            let theirs = f32::from_le_bytes(theirs);
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{kind} at {place}: {ours} instead of {theirs}");
        }
        let bytes = values(kind, random(index, index as u64, 1000)).into_iter().flat_map(f32::to_le_bytes);
        let hash =
            bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        assert_eq!(hash.to_le_bytes().to_vec(), data("hash"), "{kind}: the values of a thousand blocks");
    }
}

#[test]
fn floats_and_a_range_of_rows_are_read_as_they_are() {
    let halves: Vec<u8> =
        [1.5, -0.0, 65_504.0, 6e-8].iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
    let matrix = BlockMatrix::new(BlockType::F16, 2, 2, halves.into()).unwrap();
    assert_eq!(matrix.dequantize().unwrap(), [1.5, -0.0, 65_504.0, f16::from_f32(6e-8).to_f32()]);
    assert_eq!(matrix.dequantize_rows(0..1).unwrap(), [1.5, -0.0]);
    assert!(matrix.dequantize_rows(1..3).is_err());
    let words: Vec<u8> = [1.5, -3e38].iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    let expected = [1.5, bf16::from_f32(-3e38).to_f32()];
    assert_eq!(BlockMatrix::new(BlockType::Bf16, 1, 2, words.into()).unwrap().dequantize().unwrap(), expected);
    let floats: Vec<u8> = [f32::MIN_POSITIVE, -1.0].iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
    let matrix = BlockMatrix::new(BlockType::F32, 1, 2, floats.into()).unwrap();
    assert_eq!(matrix.dequantize().unwrap(), [f32::MIN_POSITIVE, -1.0]);
}

#[test]
fn bytes_that_are_no_such_matrix_are_refused() {
    for (rows, columns, bytes) in [(1, 31, 17), (1, 48, 18), (2, 32, 35), (usize::MAX, 64, 36), (0, 32, 1)] {
        let refused = BlockMatrix::new(BlockType::Q4_0, rows, columns, vec![0; bytes].into());
        assert!(refused.is_err(), "{rows} x {columns} of {bytes} bytes");
    }
}

#[test]
fn types_are_known_by_their_numbers_or_refused_by_name() {
    for (number, name) in [(0, "F32"), (12, "Q4_K"), (14, "Q6_K"), (23, "IQ4_XS"), (30, "BF16"), (39, "MXFP4")] {
        assert_eq!(BlockType::from_ggml(number).unwrap().name(), name);
    }
    let fault = |number| BlockType::from_ggml(number).unwrap_err().to_string();
    for (number, part) in [
        (16, "IQ2_XXS is not read"),
        (29, "IQ1_M is not read"),
        (35, "TQ2_0 is not read"),
        (40, "NVFP4 is not read"),
        (5, "Q4_3 was removed"),
        (31, "Q4_0_4_4 was removed"),
        (38, "IQ4_NL_8_8 was removed"),
        (105, "105 is not known"),
    ] {
        assert!(fault(number).contains(part), "{}", fault(number));
    }
    assert!((0..200).all(|number| BlockType::from_ggml(number).map_or(true, |kind| kind.size().0 > 0)));
}
