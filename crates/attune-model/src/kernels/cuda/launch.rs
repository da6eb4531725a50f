//! What all kernels have in common on the host: their sources, the addresses of tensors, and who starts them.

use candle_core::{DType, Shape as TensorShape, Tensor};

use crate::kv_cache::BLOCK_TOKENS;
use crate::{Error, Result};

/// Threads of a warp.
pub(super) const WARP: usize = 32;

/// A kernel, ready to be compiled.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// The function's name.
    pub name: &'static str,
    /// The source of its file.
    file: &'static str,
    /// What its elements are.
    dtype: DType,
    /// Values in a head, 0 where it has none.
    head_dim: usize,
    /// Rows of its input, 0 where it takes any number.
    rows: usize,
    /// Query heads of a key-value head, 0 where it takes any number.
    group: usize,
    /// Tasks that its arguments have places for, 0 where it has none.
    tasks: usize,
}

/// What tells compiled kernels apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelKey {
    name: &'static str,
    dtype: DType,
    head_dim: usize,
    rows: usize,
    group: usize,
    tasks: usize,
}

impl Kernel {
    /// The kernel `name` of `file` for elements of `dtype`.
    pub(super) fn new(name: &'static str, file: &'static str, dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 | DType::BF16 | DType::F16 => {
                Ok(Self { name, file, dtype, head_dim: 0, rows: 0, group: 0, tasks: 0 })
            }
            other => Err(Error::Internal(format!("kernels take f32, bf16 and f16, not {other:?}"))),
        }
    }

    /// The same for heads of `head_dim` values.
    pub(super) fn of_heads(self, head_dim: usize) -> Self {
        Self { head_dim, ..self }
    }

    /// The same for an input of `rows` rows.
    pub(super) fn of_rows(self, rows: usize) -> Self {
        Self { rows, ..self }
    }

    /// The same for `group` query heads to a key-value head.
    pub(super) fn of_group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// The same with places for `tasks` tasks.
    pub(super) fn of_tasks(self, tasks: usize) -> Self {
        Self { tasks, ..self }
    }

    /// What it is known by: names are unique in all files.
    pub fn key(&self) -> KernelKey {
        let Self { name, dtype, head_dim, rows, group, tasks, .. } = *self;
        KernelKey { name, dtype, head_dim, rows, group, tasks }
    }

    /// What the compiler gets.
    pub fn source(&self) -> String {
        [
            include_str!("sources/common.cuh"),
            include_str!("sources/rows.cuh"),
            include_str!("sources/matrix.cuh"),
            include_str!("sources/lora.cuh"),
            self.file,
        ]
        .concat()
    }

    /// What the source leaves open, as options of the compiler.
    pub fn definitions(&self) -> Vec<String> {
        let (element, half) = match self.dtype {
            DType::BF16 => ("bf16", "bf16"),
            DType::F16 => ("f16", "f16"),
            _ => ("float", "bf16"),
        };
        vec![
            format!("-DELEMENT={element}"),
            format!("-DHALF={half}"),
            format!("-DHEAD_DIM={}", self.head_dim),
            format!("-DROWS={}", self.rows),
            format!("-DGROUP={}", self.group),
            format!("-DTASKS={}", self.tasks),
            format!("-DBLOCK_TOKENS={BLOCK_TOKENS}"),
        ]
    }
}

/// How many threads run a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Blocks in both directions.
    pub blocks: (u32, u32),
    /// Threads of each block: whole warps.
    pub threads: u32,
}

impl Shape {
    pub(super) fn new(blocks: (usize, usize), threads: usize) -> Self {
        Self { blocks: (blocks.0 as u32, blocks.1 as u32), threads: threads as u32 }
    }

    /// One thread for each of `count` things.
    pub(super) fn over(count: usize) -> Self {
        const THREADS: usize = 256;
        Self::new((count.div_ceil(THREADS), 1), THREADS)
    }

    /// One block for each of `rows` rows of `width` elements.
    pub(super) fn rows(rows: usize, width: usize) -> Self {
        const MOST_THREADS: usize = 512;
        Self::new((rows, 1), width.next_multiple_of(WARP).min(MOST_THREADS))
    }
}

/// Starts kernels, one after the other.
pub trait Launcher: Send + Sync {
    /// Starts `kernel` with the structure `arguments` as its memory holds it.
    fn launch_bytes(&self, kernel: &Kernel, arguments: &[u8], shape: Shape) -> Result<()>;

    /// Records an event behind all work that was started so far.
    fn mark(&self) -> Result<Box<dyn DeviceEvent>>;

    /// True if there are matrix units for bf16.
    fn has_matrix_units(&self) -> bool;

    /// Computes `a · b`, `[m, k]` times `[k, n]` in one type, either of them transposed or not, summed in f32 and rounded to
    /// `dtype`.
    fn product(&self, a: &Tensor, b: &Tensor, dtype: DType) -> Result<Tensor>;

    /// Adds `a · b` to `y` `[m, n]`, in place: as [`Launcher::product`] in one type, but rounded after the sum.
    fn add_product(&self, y: &Tensor, a: &Tensor, b: &Tensor) -> Result<()>;
}

/// An event in a device's stream of work.
pub trait DeviceEvent {
    /// Waits until the device has done all work before it.
    fn wait(self: Box<Self>) -> Result<()>;
}

/// True for the types of two bytes that matrix units take.
pub(super) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// A structure that a kernel takes, laid out as in its source: `repr(C)`, of plain numbers, addresses and structures of them,
/// all of whose bytes may be read.
///
/// # Safety
/// Layout and meaning must be those of the source; addresses must be of tensors that live until the kernel was started and are
/// as large as the kernel takes them to be.
pub(super) unsafe trait Arguments: Copy {}

/// Starts `kernel`; nothing where it would have no block.
pub(super) fn launch(launcher: &dyn Launcher, kernel: Kernel, arguments: &impl Arguments, shape: Shape) -> Result<()> {
    if shape.blocks.0 == 0 || shape.blocks.1 == 0 {
        return Ok(());
    }
    // SAFETY: `Arguments` are plain, and borrowed for the call.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(arguments).cast(), size_of_val(arguments)) };
    launcher.launch_bytes(&kernel, bytes, shape)
}

/// A tensor like `like` in type and place, to be written in full by a kernel.
pub(super) fn output(shape: impl Into<TensorShape>, dtype: DType, like: &Tensor) -> Result<Tensor> {
    // SAFETY: the kernel writes every element before any is read.
    Ok(unsafe { Tensor::empty(shape, dtype, like.device())? })
}
