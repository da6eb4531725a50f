//! Attention of steps in which every sequence has one new row, on a GPU: in one launch with the norms, the rotation and
//! the writing of the cache before it.

use bytemuck::{Pod, Zeroable};
use candle_core::{DType, Tensor};

use super::launch::{Kernel, Launcher, Shape, WARP, launch, output};
use super::rows::{RowArguments, RowTables};
use crate::Result;
use crate::address::address;
use crate::kernels::{AttentionForm, NewHeads};

const DECODE: &str = include_str!("sources/decode.cu");
/// Most query heads of a key-value head that one block takes: their sums stay in its registers.
const MOST_GROUP: usize = 8;
const MOST_HEAD_DIM: usize = 256;
/// Most warps of a block, `WARPS` of `decode.cu`; fewer for many heads or many blocks.
const MOST_WARPS: usize = 16;
const FEWER_WARPS: usize = 8;
/// Query heads up to which a block may have the most warps.
const FEW_HEADS: usize = 4;
/// Number of blocks that keep a large GPU busy.
const MANY_BLOCKS: usize = 128;
/// Keys of a sequence from which sharing them among blocks is worth a second launch.
const MANY_KEYS: usize = 1024;

/// Arguments of kernels in `decode.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Decode {
    q: u64,
    k: u64,
    v: u64,
    q_norm: u64,
    k_norm: u64,
    cos: u64,
    sin: u64,
    keys: u64,
    values: u64,
    slots: u64,
    out: u64,
    parts: u64,
    rows: RowArguments,
    kv_heads: u32,
    splits: u32,
    scale: f32,
    eps: f32,
    cap: f32,
    half: u32,
}

/// Arguments of kernels in `decode.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Join {
    parts: u64,
    out: u64,
    splits: u32,
    padding: u32,
}

/// Computes [`attend_new`](crate::kernels::Kernels::attend_new); `None` if sequences have several rows, or if heads are
/// more or larger than the kernel takes.
pub fn attention(
    launcher: &dyn Launcher,
    new: NewHeads<'_>,
    keys: &Tensor,
    values: &Tensor,
    tables: &RowTables,
    form: AttentionForm,
) -> Result<Option<Tensor>> {
    let ((rows, heads, head_dim), kv_heads) = (new.q.dims3()?, new.k.dim(1)?);
    let group = heads / kv_heads;
    let fits = group <= MOST_GROUP && head_dim <= MOST_HEAD_DIM && head_dim.is_multiple_of(2);
    let Some(slots) = tables.slots().filter(|_| fits && tables.has_single_rows()) else { return Ok(None) };
    let (q, k, v) = (new.q.contiguous()?, new.k.contiguous()?, new.v.contiguous()?);
    let out = output(q.shape(), q.dtype(), &q)?;

    let (blocks, longest) = (rows * kv_heads, tables.longest(form));
    let splits = MANY_BLOCKS.div_ceil(blocks).clamp(1, longest.div_ceil(MANY_KEYS).max(1));
    let parts = if splits > 1 { Some(output((rows, heads, splits, head_dim + 2), DType::F32, &q)?) } else { None };
    let optional = |tensor: Option<&Tensor>| tensor.map_or(Ok(0), address);
    let arguments = Decode {
        q: address(&q)?,
        k: address(&k)?,
        v: address(&v)?,
        q_norm: optional(new.norms.map(|[q, _]| q.weight))?,
        k_norm: optional(new.norms.map(|[_, k]| k.weight))?,
        cos: optional(new.angles.map(|angles| &angles.cos))?,
        sin: optional(new.angles.map(|angles| &angles.sin))?,
        keys: address(keys)?,
        values: address(values)?,
        slots: address(slots)?,
        out: address(&out)?,
        parts: optional(parts.as_ref())?,
        rows: tables.arguments(form.window)?,
        kv_heads: kv_heads as u32,
        splits: splits as u32,
        scale: form.scale,
        eps: new.norms.map_or(0.0, |[q, _]| q.eps),
        cap: form.cap.unwrap_or(0.0),
        half: new.angles.map_or(Ok(0), |angles| angles.half(head_dim))? as u32,
    };
    // As many warps as have keys to look at.
    let most = if blocks < MANY_BLOCKS && group <= FEW_HEADS { MOST_WARPS } else { FEWER_WARPS };
    let warps = longest.div_ceil(splits * WARP).next_power_of_two().clamp(1, most);
    let kernel = |name| Kernel::new(name, DECODE, q.dtype()).map(|kernel| kernel.of_heads(head_dim).of_group(group));
    launch(launcher, kernel("decode")?, &arguments, Shape::new((rows, kv_heads * splits), warps * WARP))?;
    if splits > 1 {
        let join = Join { parts: arguments.parts, out: arguments.out, splits: splits as u32, padding: 0 };
        launch(launcher, kernel("join")?, &join, Shape::rows(rows * heads, head_dim))?;
    }
    Ok(Some(out))
}
