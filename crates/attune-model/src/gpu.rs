//! A GPU as this process uses it: freed memory is kept for reuse, and training has a stream of its own, on which it
//! reads the same weights that serve. Called by [`super::device`].

use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool};
use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute as Attribute;
use candle_core::cuda_backend::cudarc::driver::sys::CUmemoryPool;
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{DType, Device, Storage, Tensor};

use crate::{Error, Result};
use attune_support::system::FreeMemory;

/// Opens the GPU number `index`.
pub(super) fn open(index: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda(index).map_err(or_no_driver)?;
    let cuda = device.as_cuda_device()?;
    disable_event_tracking(cuda);
    keep_freed_memory(cuda);
    Ok(device)
}

/// Says in plain words what an error means that comes from `docker/optional-driver` in the driver's place.
fn or_no_driver(error: candle_core::Error) -> candle_core::Error {
    if error.to_string().contains("CUDA_ERROR_STUB_LIBRARY") {
        return candle_core::Error::msg(
            "there is no NVIDIA driver, or one that is too old for CUDA 13; a container gets it with `--gpus all`",
        );
    }
    error
}

/// Returns true if the GPU multiplies bf16.
pub(super) fn has_bf16(device: &CudaDevice) -> bool {
    device.cuda_stream().context().compute_capability().is_ok_and(|(major, _)| major >= 8)
}

/// Turns off candle's event tracking, which costs two events per tensor.
fn disable_event_tracking(device: &CudaDevice) {
    // SAFETY: the tensors of a `CudaDevice` are used on its own stream, in the order of the calls. Tensors that two
    // streams read are written by neither (`shared`).
    unsafe { device.disable_event_tracking() };
}

/// Keeps freed memory in the pool: by default a GPU gives it back at each synchronization, then takes it anew.
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

/// Returns the pool that tensors are allocated from; `None` if the GPU has no pools.
fn pool(device: &CudaDevice) -> Option<CUmemoryPool> {
    let stream = device.cuda_stream();
    let context = stream.context();
    // SAFETY: the context knows its device.
    context.has_async_alloc().then(|| unsafe { device::get_mem_pool(context.cu_device()) }.ok()).flatten()
}

/// Returns the memory left for tensors: the GPU's free memory and what the pool keeps unused; `None` if unknown.
pub(super) fn free_memory(device: &CudaDevice) -> Option<FreeMemory> {
    let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
    let kept = bytes(device, Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
        .and_then(|reserved| Some(reserved.saturating_sub(used_memory(device)?)));
    Some(FreeMemory { total: total as u64, free: free as u64 + kept.unwrap_or(0) })
}

/// Returns the bytes of all tensors; `None` if unknown.
pub(super) fn used_memory(device: &CudaDevice) -> Option<u64> {
    bytes(device, Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
}

/// Reads a size of the pool, in bytes; `None` if the GPU has no pools.
fn bytes(device: &CudaDevice, attribute: Attribute) -> Option<u64> {
    let mut bytes = 0_u64;
    // SAFETY: the pool is the device's, the attribute a 64-bit number.
    unsafe { mem_pool::get_attribute(pool(device)?, attribute, std::ptr::from_mut(&mut bytes).cast()) }.ok()?;
    Some(bytes)
}

/// Opens another stream of the same GPU, as a device of its own, after all work on the first one is done, so that the
/// new one sees its results.
pub(super) fn second_stream(device: &CudaDevice) -> Result<CudaDevice> {
    let stream = device.cuda_stream();
    let second = Device::new_cuda_with_stream(stream.context().ordinal())?.as_cuda_device()?.clone();
    disable_event_tracking(&second);
    Device::Cuda(device.clone()).synchronize()?;
    Ok(second)
}

/// Returns the memory of `tensor` as a tensor of `device`, another stream of its GPU. Both may only read it, and the
/// original must outlive the result.
pub(super) fn shared(tensor: &Tensor, device: &CudaDevice) -> Result<Tensor> {
    let (address, count) = (crate::address::address(tensor)?, tensor.elem_count());
    let stream = device.cuda_stream();
    // SAFETY: `count` elements are at `address`, and they stay there as long as the original does.
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
    // Never dropped: the last owner would free memory that belongs to the original.
    std::mem::forget(shared.clone());
    Ok(shared)
}
