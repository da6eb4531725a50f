//! A GPU as this process uses it: its memory is kept for reuse, and training has a stream of its own on which it reads the very
//! weights that serve. Called by [`super::device`].

use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool};
use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute as Attribute;
use candle_core::cuda_backend::cudarc::driver::sys::CUmemoryPool;
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{DType, Device, Storage, Tensor};

use crate::{Error, Result};
use attune_support::system::FreeMemory;

/// The GPU number `index`.
pub(super) fn open(index: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda(index)?;
    let cuda = device.as_cuda_device()?;
    disable_event_tracking(cuda);
    keep_freed_memory(cuda);
    Ok(device)
}

/// True where products of bf16 exist.
pub(super) fn has_bf16(device: &CudaDevice) -> bool {
    device.cuda_stream().context().compute_capability().is_ok_and(|(major, _)| major >= 8)
}

/// Spares two events for each tensor.
fn disable_event_tracking(device: &CudaDevice) {
    // SAFETY: the tensors of a `CudaDevice` are used on its own stream, in the order of the calls. What two streams read,
    // neither writes (`shared`).
    unsafe { device.disable_event_tracking() };
}

/// By default a GPU gives what was freed back at each synchronization, and so takes it anew for each step.
fn keep_freed_memory(device: &CudaDevice) {
    let mut all = u64::MAX;
    let Some(pool) = pool(device) else { return };
    // SAFETY: the pool is the device's, the attribute a 64-bit number.
    let kept = unsafe {
        mem_pool::set_attribute(pool, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, std::ptr::from_mut(&mut all).cast())
    };
    if let Err(error) = kept {
        tracing::warn!(%error, "the GPU gives freed memory back after each step");
    }
}

/// What tensors are allocated from; none where the GPU has no pools.
fn pool(device: &CudaDevice) -> Option<CUmemoryPool> {
    let stream = device.cuda_stream();
    let context = stream.context();
    // SAFETY: the context knows its device.
    context.has_async_alloc().then(|| unsafe { device::get_mem_pool(context.cu_device()) }.ok()).flatten()
}

/// What is left for tensors: what nobody has, and what the pool keeps.
pub(super) fn free_memory(device: &CudaDevice) -> Option<FreeMemory> {
    let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
    let kept = bytes(device, Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
        .and_then(|reserved| Some(reserved.saturating_sub(used_memory(device)?)));
    Some(FreeMemory { total: total as u64, free: free as u64 + kept.unwrap_or(0) })
}

/// Bytes of all tensors.
pub(super) fn used_memory(device: &CudaDevice) -> Option<u64> {
    bytes(device, Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
}

/// What the pool tells of itself.
fn bytes(device: &CudaDevice, attribute: Attribute) -> Option<u64> {
    let mut bytes = 0_u64;
    // SAFETY: the pool is the device's, the attribute a 64-bit number.
    unsafe { mem_pool::get_attribute(pool(device)?, attribute, std::ptr::from_mut(&mut bytes).cast()) }.ok()?;
    Some(bytes)
}

/// Opens another stream of the same GPU, as a device of its own, after all work on the first one is done: the new one sees its
/// results.
pub(super) fn second_stream(device: &CudaDevice) -> Result<CudaDevice> {
    let stream = device.cuda_stream();
    let second = Device::new_cuda_with_stream(stream.context().ordinal())?.as_cuda_device()?.clone();
    disable_event_tracking(&second);
    Device::Cuda(device.clone()).synchronize()?;
    Ok(second)
}

/// The memory of `tensor` as a tensor of `device`, another stream of its GPU. Both only read it, and the original must outlive
/// what this returns.
pub(super) fn shared(tensor: &Tensor, device: &CudaDevice) -> Result<Tensor> {
    let (address, count) = (crate::address::address(tensor)?, tensor.elem_count());
    let stream = device.cuda_stream();
    // SAFETY: so many elements are there, and they stay there as long as the original does.
    let slice = unsafe {
        match tensor.dtype() {
            DType::F32 => CudaStorageSlice::F32(stream.upgrade_device_ptr(address, count)),
            DType::F16 => CudaStorageSlice::F16(stream.upgrade_device_ptr(address, count)),
            DType::BF16 => CudaStorageSlice::BF16(stream.upgrade_device_ptr(address, count)),
            other => return Err(Error::Internal(format!("no weights are of {other:?}"))),
        }
    };
    let storage = Storage::Cuda(CudaStorage { slice, device: device.clone() });
    let shared = Tensor::from_storage(storage, tensor.shape(), BackpropOp::none(), false);
    // The last owner would free what belongs to the original.
    std::mem::forget(shared.clone());
    Ok(shared)
}
