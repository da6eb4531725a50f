//! Sixteen f32 values at a time, in each instruction set: what the micro-kernels are written with.
//!
//! Every method is `unsafe` for two reasons alone: pointers must be valid for the values that are read or written, and
//! the CPU must have the instruction set. All are inlined into a function that is compiled for it
//! ([`super::dispatch`]).

/// Sixteen f32 values: one row of a panel.
pub(super) trait Lanes: Copy {
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Widens 16 bf16 values in the order of the level.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Widens 16 bf16 values in their own order, which is that of most levels.
    #[allow(clippy::inline_always, reason = "part of the kernels")]
    #[inline(always)]
    unsafe fn load_words(from: *const u16) -> Self {
        // SAFETY: the caller's promises.
        unsafe { Self::load_bf16(from) }
    }
    unsafe fn store(self, to: *mut f32);
    /// Returns `self + weights · x`.
    unsafe fn add_product(self, weights: Self, x: f32) -> Self;
}

/// Calls `kernel` with the number of rows as a constant, so that its sums stay in registers.
macro_rules! by_rows {
    (@one $kernel:ident [$($of:ty),*] $count:literal $panels:literal $tile:expr) => {
        $kernel::<$($of,)* $count, $panels>($tile)
    };
    ($rows:expr, $kernel:ident, $of:tt, $panels:literal, $tile:expr; $($count:literal)*) => {
        match $rows {
            $($count => by_rows!(@one $kernel $of $count $panels $tile),)*
            _ => unreachable!("no kernel for {} rows", $rows),
        }
    };
}
pub(super) use by_rows;

/// Repeats `body` for each row below `rows`, a constant: loops that the compiler may leave as loops would put the sums
/// into memory.
macro_rules! each_row {
    ($rows:ident, $row:ident, $body:block) => {
        each_row!(@all $rows $row $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@all $rows:ident $row:ident $body:block $($number:literal)*) => {
        $(if $number < $rows {
            let $row: usize = $number;
            $body
        })*
    };
}
pub(super) use each_row;
