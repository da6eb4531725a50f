//! The instruction sets that the products are written for, and the best of them that the CPU has.

use std::sync::OnceLock;

/// An instruction set. Weights are packed for one and multiplied with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Plain loops, which the compiler vectorizes for the target.
    Portable,
    /// AVX2, FMA and F16C: x86 since 2013.
    Avx2,
    /// AVX-512 with the byte products of VNNI: Intel since 2019, AMD since 2022.
    Avx512,
}

impl Level {
    /// Returns the best instruction set of this CPU, or the lesser one that the environment names in
    /// `ATTUNE_INSTRUCTIONS` (`portable`, `avx2`), so that one machine can measure what others would do. Loops over rows
    /// have theirs from the CPU alone.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            let available = Self::available();
            let named = std::env::var("ATTUNE_INSTRUCTIONS").unwrap_or_default();
            let named = available.iter().find(|level| level.name() == named);
            named.or(available.last()).copied().unwrap_or(Self::Portable)
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Returns the instruction sets of this CPU, the best last.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "other targets have the first one only")]
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                levels.push(Self::Avx2);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                levels.push(Self::Avx512);
            }
        }
        levels
    }

    /// Returns true if bf16 rows hold lanes j and j + 8 side by side, so that widening them is one shift and one AND.
    pub(super) const fn interleaves_bf16(self) -> bool {
        matches!(self, Self::Avx2)
    }

    /// Returns true if 8-bit weights are stored with 128 added, as VNNI's product of unsigned and signed bytes needs.
    pub(super) const fn offsets_bytes(self) -> bool {
        matches!(self, Self::Avx512)
    }
}
