//! Kernels of the GPU as the host knows them: their sources, the options that they are compiled with, the number of
//! threads, and [`Launcher`], which starts them. Called by the other files of this folder.

use bytemuck::Pod;
use candle_core::{DType, Shape as TensorShape, Tensor};

use crate::kv_cache::BLOCK_TOKENS;
use crate::{Error, Result};

/// Threads of a warp.
pub(super) const WARP: usize = 32;

/// Kernel, ready to be compiled.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// The function's name.
    pub name: &'static str,
    /// The source of its file.
    file: &'static str,
    /// Type of the elements.
    dtype: DType,
    /// Values in a head; 0 if the kernel knows no heads.
    head_dim: usize,
    /// Rows of the input; 0 if the kernel takes any number.
    rows: usize,
    /// Query heads of a key-value head; 0 if the kernel takes any number.
    group: usize,
    /// Tasks that the arguments have room for; 0 if they have none.
    tasks: usize,
    /// True if rows see those behind them, too.
    looks_ahead: bool,
    /// True if there are terms by the distance of key and query.
    has_distances: bool,
}

/// Identity of a compiled kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelKey {
    name: &'static str,
    dtype: DType,
    head_dim: usize,
    rows: usize,
    group: usize,
    tasks: usize,
    looks_ahead: bool,
    has_distances: bool,
}

impl Kernel {
    /// Describes the kernel `name` of `file` for elements of `dtype`.
    pub(super) fn new(name: &'static str, file: &'static str, dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 | DType::BF16 | DType::F16 => Ok(Self {
                name,
                file,
                dtype,
                head_dim: 0,
                rows: 0,
                group: 0,
                tasks: 0,
                looks_ahead: false,
                has_distances: false,
            }),
            other => Err(Error::Internal(format!("kernels take f32, bf16 and f16, not {other:?}"))),
        }
    }

    /// Compiles the kernel for heads of `head_dim` values.
    pub(super) fn of_heads(self, head_dim: usize) -> Self {
        Self { head_dim, ..self }
    }

    /// Compiles the kernel for an input of `rows` rows.
    pub(super) fn of_rows(self, rows: usize) -> Self {
        Self { rows, ..self }
    }

    /// Compiles the kernel for `group` query heads to a key-value head.
    pub(super) fn of_group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Compiles the kernel for rows that see those behind them, too, or not, and with or without terms by distance.
    pub(super) fn of_sight(self, looks_ahead: bool, has_distances: bool) -> Self {
        Self { looks_ahead, has_distances, ..self }
    }

    /// Compiles the kernel with room for `tasks` tasks in its arguments.
    pub(super) fn of_tasks(self, tasks: usize) -> Self {
        Self { tasks, ..self }
    }

    /// Returns the identity of the compiled kernel: names are unique in all files.
    pub fn key(&self) -> KernelKey {
        let Self { name, dtype, head_dim, rows, group, tasks, looks_ahead, has_distances, file: _ } = *self;
        KernelKey { name, dtype, head_dim, rows, group, tasks, looks_ahead, has_distances }
    }

    /// Returns the source for the compiler: the kernel's file behind those that all files share.
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

    /// Returns the options that define what the source leaves open.
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
            format!("-DLOOKS_AHEAD={}", u32::from(self.looks_ahead)),
            format!("-DDISTANCES={}", u32::from(self.has_distances)),
            format!("-DBLOCK_TOKENS={BLOCK_TOKENS}"),
        ]
    }
}

/// Number of threads that run a kernel.
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

    /// Returns the shape of one thread for each of `count` elements.
    pub(super) fn over(count: usize) -> Self {
        const THREADS: usize = 256;
        Self::new((count.div_ceil(THREADS), 1), THREADS)
    }

    /// Returns the shape of one block for each of `rows` rows of `width` elements.
    pub(super) fn rows(rows: usize, width: usize) -> Self {
        const MOST_THREADS: usize = 512;
        Self::new((rows, 1), width.next_multiple_of(WARP).min(MOST_THREADS))
    }
}

/// Device that starts kernels, one after the other.
pub trait Launcher: Send + Sync {
    /// Starts `kernel` with the structure `arguments` as its memory holds it.
    fn launch_bytes(&self, kernel: &Kernel, arguments: &[u8], shape: Shape) -> Result<()>;

    /// Records an event behind all work that was started so far.
    fn mark(&self) -> Result<Box<dyn DeviceEvent>>;

    /// Returns true if there are matrix units for bf16.
    fn has_matrix_units(&self) -> bool;

    /// Computes `a · b`, `[m, k]` times `[k, n]` in one type, either of them transposed or not, summed in f32 and
    /// rounded to `dtype`.
    fn product(&self, a: &Tensor, b: &Tensor, dtype: DType) -> Result<Tensor>;

    /// Adds `a · b` to `y` `[m, n]`, in place: as [`Launcher::product`] in one type, but rounded after the sum.
    fn add_product(&self, y: &Tensor, a: &Tensor, b: &Tensor) -> Result<()>;
}

/// Event in a device's stream of work.
pub trait DeviceEvent {
    /// Waits until the device has done all work before it.
    fn wait(self: Box<Self>) -> Result<()>;
}

/// Returns true for the types of two bytes that matrix units take.
pub(super) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// Starts `kernel` with `arguments`; does nothing if it would have no block. The structure must be laid out as in the
/// kernel's source, and its addresses must be those of tensors that are as large as the kernel takes them to be and
/// live until it is started.
pub(super) fn launch(launcher: &dyn Launcher, kernel: Kernel, arguments: &impl Pod, shape: Shape) -> Result<()> {
    if shape.blocks.0 == 0 || shape.blocks.1 == 0 {
        return Ok(());
    }
    launcher.launch_bytes(&kernel, bytemuck::bytes_of(arguments), shape)
}

/// Allocates a tensor on the device of `like`, to be written in full by a kernel.
pub(super) fn output(shape: impl Into<TensorShape>, dtype: DType, like: &Tensor) -> Result<Tensor> {
    // SAFETY: the kernel writes every element before any is read.
    Ok(unsafe { Tensor::empty(shape, dtype, like.device())? })
}
