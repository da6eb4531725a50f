//! Addresses of tensors, as kernels in CUDA C take them. Called by `kernels::cuda`, `lora` and `gpu`.

#[cfg(feature = "cuda")]
use candle_core::backend::BackendStorage;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::CudaStorage;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::DevicePtr;
use candle_core::{DType, Storage, Tensor};

use crate::{Error, Result};

/// Largest number of bytes that a thread of a GPU reads at a time, `Vector` of `common.cuh`.
pub(crate) const VECTOR_BYTES: usize = 16;

/// Returns the address of the first element of a contiguous tensor, on the tensor's device.
pub(crate) fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    if !layout.is_contiguous() {
        return Err(Error::Internal("kernels take contiguous tensors".into()));
    }
    let offset = layout.start_offset() * tensor.dtype().size_in_bytes();
    let start = match (&*storage, tensor.dtype()) {
        (Storage::Cpu(storage), DType::F32) => storage.as_slice::<f32>()?.as_ptr() as u64,
        (Storage::Cpu(storage), DType::BF16) => storage.as_slice::<half::bf16>()?.as_ptr() as u64,
        (Storage::Cpu(storage), DType::F16) => storage.as_slice::<half::f16>()?.as_ptr() as u64,
        (Storage::Cpu(storage), DType::F64) => storage.as_slice::<f64>()?.as_ptr() as u64,
        (Storage::Cpu(storage), DType::U32) => storage.as_slice::<u32>()?.as_ptr() as u64,
        (Storage::Cpu(storage), DType::U8) => storage.as_slice::<u8>()?.as_ptr() as u64,
        #[cfg(feature = "cuda")]
        (Storage::Cuda(storage), dtype) => address_of_storage(storage, dtype)?,
        (_, dtype) => return Err(Error::Internal(format!("kernels take no tensor of {dtype:?} on this device"))),
    };
    Ok(start + offset as u64)
}

/// Returns the address of the first element of `storage`.
#[cfg(feature = "cuda")]
pub(crate) fn address_of_storage(storage: &CudaStorage, dtype: DType) -> Result<u64> {
    let stream = storage.device().cuda_stream();
    Ok(match dtype {
        DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
        DType::BF16 => storage.as_cuda_slice::<half::bf16>()?.device_ptr(&stream).0,
        DType::F16 => storage.as_cuda_slice::<half::f16>()?.device_ptr(&stream).0,
        DType::F64 => storage.as_cuda_slice::<f64>()?.device_ptr(&stream).0,
        DType::U32 => storage.as_cuda_slice::<u32>()?.device_ptr(&stream).0,
        DType::U8 => storage.as_cuda_slice::<u8>()?.device_ptr(&stream).0,
        other => return Err(Error::Internal(format!("kernels take no tensor of {other:?}"))),
    })
}
