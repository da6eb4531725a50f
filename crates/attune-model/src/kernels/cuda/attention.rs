//! Attention over packed sequences and over the paged cache, and its gradient, on a GPU.

use bytemuck::{Pod, Zeroable};
use candle_core::{DType, Tensor};

use super::launch::{Kernel, Launcher, Shape, WARP, is_half, launch, output};
use super::rows::{DistanceArguments, RowArguments, RowTables};
use crate::address::address;
use crate::kernels::{AttentionForm, AttentionState, DistanceBias};
use crate::{Error, Result};

const ATTENTION: &str = include_str!("sources/attention.cu");
const FLASH: &str = include_str!("sources/flash.cu");
const CACHE: &str = include_str!("sources/cache.cu");
/// Warps of a block, `WARPS` of `attention.cu` and of `flash.cu`.
const MOST_WARPS: usize = 8;
const FLASH_WARPS: usize = 4;
/// Largest head that `flash.cu` takes: tiles of larger heads would not fit into shared memory.
const MOST_FLASH_HEAD_DIM: usize = 128;
/// Arguments of kernels in `attention.cu` and `flash.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Attention {
    q: u64,
    keys: u64,
    values: u64,
    out: u64,
    log_sums: u64,
    work: u64,
    rows: RowArguments,
    distances: DistanceArguments,
    heads: u32,
    kv_heads: u32,
    scale: f32,
    cap: f32,
}

/// A part of the work: the rows that one kernel computes.
struct KeyPart<'a> {
    /// True for matrix units, 64 rows at a time.
    is_flash: bool,
    /// Tiles or rows to compute; `None` for all rows.
    work: Option<&'a Tensor>,
    /// Number of these tiles or rows.
    blocks: usize,
}

impl KeyPart<'_> {
    fn kernel(&self, names: [&'static str; 2], q: &Tensor, looks_ahead: bool, has_distances: bool) -> Result<Kernel> {
        let [plain, flash] = names;
        let (name, file) = if self.is_flash { (flash, FLASH) } else { (plain, ATTENTION) };
        Ok(Kernel::new(name, file, q.dtype())?.of_heads(q.dims()[2]).of_sight(looks_ahead, has_distances))
    }

    fn address(&self) -> Result<u64> {
        self.work.map_or(Ok(0), address)
    }

    fn threads(&self, tables: &RowTables, form: AttentionForm) -> usize {
        if self.is_flash {
            return FLASH_WARPS * WARP;
        }
        // As many warps as have keys to read.
        WARP * tables.longest(form).div_ceil(WARP).next_power_of_two().clamp(1, MOST_WARPS)
    }
}

/// Splits the work: sequences with enough rows go to matrix units if these can compute them, all others row by row, and
/// scores with a cap too.
fn parts<'a>(launcher: &dyn Launcher, q: &Tensor, tables: &'a RowTables, form: AttentionForm) -> Vec<KeyPart<'a>> {
    let (rows, head_dim) = (q.dims()[0], q.dims()[2]);
    let fits =
        form.cap.is_none() && is_half(q.dtype()) && head_dim.is_multiple_of(16) && head_dim <= MOST_FLASH_HEAD_DIM;
    if !fits || !launcher.has_matrix_units() {
        return vec![KeyPart { is_flash: false, work: None, blocks: rows }];
    }
    let tiles = tables.tiles().map(|tiles| KeyPart { is_flash: true, work: Some(tiles), blocks: tiles.dims()[0] });
    let others = tables.others().map(|rows| KeyPart { is_flash: false, work: Some(rows), blocks: rows.dims()[0] });
    tiles.into_iter().chain(others).collect()
}

/// See [`packed_attention`](crate::kernels::Kernels::packed_attention).
pub fn packed(
    launcher: &dyn Launcher,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    tables: &RowTables,
    form: AttentionForm,
    bias: Option<&DistanceBias>,
) -> Result<(Tensor, Tensor)> {
    let (rows, heads, _) = q.dims3()?;
    let log_sums = output((rows, heads), DType::F32, q)?;
    Ok((attention(launcher, [q, k, v], tables, form, bias, Some(&log_sums))?, log_sums))
}

/// See [`cached_attention`](crate::kernels::Kernels::cached_attention).
pub fn cached(
    launcher: &dyn Launcher,
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    tables: &RowTables,
    form: AttentionForm,
) -> Result<Tensor> {
    attention(launcher, [q, keys, values], tables, form, None, None)
}

/// Computes attention of queries `[rows, heads, d]` over keys and values `[rows or slots, kv_heads, d]`, `[rows, heads,
/// d]`; fills in `log_sums` `[rows, heads]`.
fn attention(
    launcher: &dyn Launcher,
    [q, keys, values]: [&Tensor; 3],
    tables: &RowTables,
    form: AttentionForm,
    bias: Option<&DistanceBias>,
    log_sums: Option<&Tensor>,
) -> Result<Tensor> {
    let ((_, heads, _), kv_heads) = (q.dims3()?, keys.dim(1)?);
    let (q, keys, values) = (q.contiguous()?, keys.contiguous()?, values.contiguous()?);
    let out = output(q.shape(), q.dtype(), &q)?;
    let mut arguments = Attention {
        q: address(&q)?,
        keys: address(&keys)?,
        values: address(&values)?,
        out: address(&out)?,
        log_sums: log_sums.map(address).transpose()?.unwrap_or(0),
        work: 0,
        rows: tables.arguments(form.window)?,
        distances: DistanceArguments::of(bias, heads)?,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        scale: form.scale,
        cap: form.cap.unwrap_or(0.0),
    };
    for part in parts(launcher, &q, tables, form) {
        arguments.work = part.address()?;
        let shape = Shape::new((part.blocks, heads), part.threads(tables, form));
        launch(
            launcher,
            part.kernel(["attention", "flash"], &q, form.looks_ahead, bias.is_some())?,
            &arguments,
            shape,
        )?;
    }
    Ok(out)
}

/// Arguments of kernels in `attention.cu` and `flash.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AttentionBackward {
    q: u64,
    k: u64,
    v: u64,
    out: u64,
    dout: u64,
    log_sums: u64,
    deltas: u64,
    dq: u64,
    dk: u64,
    dv: u64,
    work: u64,
    rows: RowArguments,
    distances: DistanceArguments,
    heads: u32,
    kv_heads: u32,
    scale: f32,
    cap: f32,
}

/// See [`packed_attention_backward`](crate::kernels::Kernels::packed_attention_backward).
pub fn packed_backward(
    launcher: &dyn Launcher,
    state: AttentionState<'_>,
    dout: &Tensor,
    tables: &RowTables,
    form: AttentionForm,
    bias: Option<&DistanceBias>,
) -> Result<(Tensor, Tensor, Tensor)> {
    let ((_, heads, _), kv_heads) = (state.q.dims3()?, state.k.dim(1)?);
    let (q, k, v) = (state.q.contiguous()?, state.k.contiguous()?, state.v.contiguous()?);
    let (out, dout) = (state.out.contiguous()?, dout.contiguous()?);
    let like = |x: &Tensor| output(x.shape(), x.dtype(), x);
    let (dq, dk, dv, deltas) = (like(&q)?, like(&k)?, like(&v)?, like(state.log_sum_exp)?);
    let mut arguments = AttentionBackward {
        q: address(&q)?,
        k: address(&k)?,
        v: address(&v)?,
        out: address(&out)?,
        dout: address(&dout)?,
        log_sums: address(state.log_sum_exp)?,
        deltas: address(&deltas)?,
        dq: address(&dq)?,
        dk: address(&dk)?,
        dv: address(&dv)?,
        work: 0,
        rows: tables.arguments(form.window)?,
        distances: DistanceArguments::of(bias, heads)?,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        scale: form.scale,
        cap: form.cap.unwrap_or(0.0),
    };
    // The queries' kernels write the deltas that the keys' kernels read.
    for (heads, names) in [
        (heads, ["attention_backward_queries", "flash_backward_queries"]),
        (kv_heads, ["attention_backward_keys", "flash_backward_keys"]),
    ] {
        for part in parts(launcher, &q, tables, form) {
            arguments.work = part.address()?;
            let shape = Shape::new((part.blocks, heads), part.threads(tables, form));
            launch(launcher, part.kernel(names, &q, form.looks_ahead, bias.is_some())?, &arguments, shape)?;
        }
    }
    Ok((dq, dk, dv))
}

/// Arguments of kernels in `cache.cu`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct WriteCache {
    k: u64,
    v: u64,
    keys: u64,
    values: u64,
    slots: u64,
    width: u32,
    padding: u32,
}

/// Writes the rows `k` and `v` `[rows, kv_heads, d]` to their slots of `keys` and `values` `[slots, kv_heads, d]`, in
/// place.
pub fn write_cache(
    launcher: &dyn Launcher,
    keys: &Tensor,
    values: &Tensor,
    k: &Tensor,
    v: &Tensor,
    tables: &RowTables,
) -> Result<()> {
    let (rows, kv_heads, head_dim) = k.dims3()?;
    let slots = tables.slots().ok_or_else(|| Error::Internal("packed rows have no slots of a cache".into()))?;
    let (k, v, width) = (k.contiguous()?, v.contiguous()?, kv_heads * head_dim);
    let arguments = WriteCache {
        k: address(&k)?,
        v: address(&v)?,
        keys: address(keys)?,
        values: address(values)?,
        slots: address(slots)?,
        width: width as u32,
        padding: 0,
    };
    launch(launcher, Kernel::new("write_cache", CACHE, k.dtype())?, &arguments, Shape::rows(rows, width))
}
