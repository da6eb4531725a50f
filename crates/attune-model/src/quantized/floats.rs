//! Values of the small floating-point types, by their bytes. Used by the formats.

/// Values of E4M3 (no infinities; 0x7f and 0xff are no numbers): OCP 8-bit floating point specification, section 5.
pub(super) static E4M3: [f32; 256] = table(4, 3);
/// Values of E5M2, of the same specification.
pub(super) static E5M2: [f32; 256] = table(5, 2);
/// Values of E2M1, doubled: whole numbers.
pub(super) const DOUBLED_E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Computes the values of all bytes of a type with these bits.
const fn table(exponent_bits: u32, mantissa_bits: u32) -> [f32; 256] {
    let bias = (1 << (exponent_bits - 1)) - 1;
    let mut values = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let exponent = (byte >> mantissa_bits) & ((1 << exponent_bits) - 1);
        let mantissa = byte & ((1 << mantissa_bits) - 1);
        let last = exponent == (1 << exponent_bits) - 1;
        let magnitude = if exponent_bits == 4 && last && mantissa == 7 {
            f32::NAN
        } else if exponent_bits == 5 && last {
            if mantissa == 0 { f32::INFINITY } else { f32::NAN }
        } else if exponent == 0 {
            mantissa as f32 * power_of_two(1 - bias - mantissa_bits as i32)
        } else {
            (mantissa + (1 << mantissa_bits)) as f32 * power_of_two(exponent - bias - mantissa_bits as i32)
        };
        values[byte as usize] = if byte >= 128 { -magnitude } else { magnitude };
        byte += 1;
    }
    values
}

/// Returns 2 to the `exponent`, which must be that of a normal f32.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// Returns the value of an E8M0 byte, a power of two; 255 is no number.
pub(super) fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}
