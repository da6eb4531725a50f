//! Starts kernels on an NVIDIA GPU: NVRTC compiles them at their first use, for the GPU at hand.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::cublas::{result::gemm_ex, sys as blas};
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaFunction, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::{DType, Storage, Tensor};

use super::launch::{DeviceEvent, Kernel, KernelKey, Launcher, Shape, output};
use crate::address::address_of_storage;
use crate::{Error, Result};

/// Compiled functions by GPU and kernel.
type Compiled = HashMap<(usize, KernelKey), CudaFunction>;

/// Runs `look` on the cache of compiled kernels.
fn compiled<T>(look: impl FnOnce(&mut Compiled) -> T) -> T {
    static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);
    look(COMPILED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// The driver of one GPU.
pub(crate) struct Driver {
    device: CudaDevice,
}

impl Driver {
    pub(crate) fn new(device: CudaDevice) -> Self {
        Self { device }
    }

    fn capability(&self) -> Result<(i32, i32)> {
        self.device
            .cuda_stream()
            .context()
            .compute_capability()
            .map_err(|error| Error::Internal(format!("the GPU does not tell what it can: {error}")))
    }

    fn function(&self, kernel: &Kernel) -> Result<CudaFunction> {
        let stream = self.device.cuda_stream();
        let context = stream.context();
        let key = (context.ordinal(), kernel.key());
        if let Some(function) = compiled(|all| all.get(&key).cloned()) {
            return Ok(function);
        }
        // Compiled without the lock, so that others can start their kernels meanwhile: training's first step compiles
        // many while requests run.
        let failed = |why: &dyn std::fmt::Display| Error::Internal(format!("the kernel `{}`: {why}", kernel.name));
        let (major, minor) = self.capability()?;
        let mut options = kernel.definitions();
        options.push(format!("--gpu-architecture=compute_{major}{minor}"));
        let options =
            CompileOptions { options, name: Some(format!("{}.cu", kernel.name)), ..CompileOptions::default() };
        let began = std::time::Instant::now();
        let ptx = compile_ptx_with_opts(kernel.source(), options).map_err(|error| failed(&error))?;
        let module = context.load_module(ptx).map_err(|error| failed(&error))?;
        let function = module.load_function(kernel.name).map_err(|error| failed(&error))?;
        tracing::debug!(kernel = kernel.name, ms = began.elapsed().as_millis(), "compiled");
        // A function that somebody else compiled meanwhile may be running, and must stay.
        Ok(compiled(|all| all.entry(key).or_insert(function).clone()))
    }
}

impl Launcher for Driver {
    fn launch_bytes(&self, kernel: &Kernel, arguments: &[u8], shape: Shape) -> Result<()> {
        let function = self.function(kernel)?;
        let stream = self.device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        // The driver reads as many bytes from here as the kernel's only parameter has.
        builder.arg(&arguments[0]);
        let config = LaunchConfig {
            grid_dim: (shape.blocks.0, shape.blocks.1, 1),
            block_dim: (shape.threads, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the callers of `launch` make the arguments as the kernel's source takes them.
        unsafe { builder.launch(config) }
            .map_err(|error| Error::Internal(format!("the kernel `{}` did not start: {error}", kernel.name)))?;
        Ok(())
    }

    fn mark(&self) -> Result<Box<dyn DeviceEvent>> {
        // A thread that waits for the event leaves the processor to others.
        let event = self.device.cuda_stream().record_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC));
        Ok(Box::new(event.map_err(|error| Error::Internal(format!("the GPU marks no place: {error}")))?))
    }

    fn has_matrix_units(&self) -> bool {
        self.capability().is_ok_and(|(major, _)| major >= 8)
    }

    /// Computes the product by cuBLAS.
    fn product(&self, a: &Tensor, b: &Tensor, dtype: DType) -> Result<Tensor> {
        if a.dtype() == dtype {
            return Ok(a.matmul(b)?);
        }
        let c = output((a.dim(0)?, b.dim(1)?), dtype, a)?;
        self.multiply(&c, a, b, 0.0)?;
        Ok(c)
    }

    fn add_product(&self, y: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
        self.multiply(y, a, b, 1.0)
    }
}

impl Driver {
    /// Computes `a · b + keep · c` into `c`, by cuBLAS.
    fn multiply(&self, c: &Tensor, a: &Tensor, b: &Tensor, keep: f32) -> Result<()> {
        let ((m, k), n) = (a.dims2()?, b.dim(1)?);
        if b.dim(0)? != k || c.dims2()? != (m, n) || a.dtype() != b.dtype() {
            let shapes =
                format!("{:?} {:?} and {:?} {:?} to {:?}", a.shape(), a.dtype(), b.shape(), b.dtype(), c.shape());
            return Err(Error::Internal(format!("no product of {shapes}")));
        }
        let (type_of_a, type_of_c) = (data_type(a.dtype())?, data_type(c.dtype())?);
        let (a, b) = (Operand::of(a)?, Operand::of(b)?);
        let one = 1.0_f32;
        // cuBLAS reads columns first, to which each row-major matrix is its transpose: cᵀ = bᵀ · aᵀ.
        // SAFETY: the matrices have these sizes, and the call is queued before any of them is freed.
        unsafe {
            gemm_ex(
                *self.device.cublas_handle().handle(),
                b.operation,
                a.operation,
                n as i32,
                m as i32,
                k as i32,
                std::ptr::from_ref(&one).cast(),
                b.start as *const _,
                type_of_a,
                b.stride,
                a.start as *const _,
                type_of_a,
                a.stride,
                std::ptr::from_ref(&keep).cast(),
                crate::address::address(c)? as *mut _,
                type_of_c,
                n as i32,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| Error::Internal(format!("cuBLAS: {error}")))
    }
}

/// Returns cuBLAS's name of the type.
fn data_type(dtype: DType) -> Result<blas::cudaDataType> {
    match dtype {
        DType::F32 => Ok(blas::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(blas::cudaDataType::CUDA_R_16BF),
        DType::F16 => Ok(blas::cudaDataType::CUDA_R_16F),
        other => Err(Error::Internal(format!("no product of {other:?}"))),
    }
}

impl DeviceEvent for CudaEvent {
    fn wait(self: Box<Self>) -> Result<()> {
        self.synchronize().map_err(|error| Error::Internal(format!("the GPU does not end its work: {error}")))
    }
}

/// A matrix as cuBLAS takes it: its rows, or the rows of the matrix that it is the transpose of.
struct Operand {
    start: u64,
    operation: blas::cublasOperation_t,
    stride: i32,
}

impl Operand {
    fn of(matrix: &Tensor) -> Result<Self> {
        let (rows, columns) = matrix.dims2()?;
        let (storage, layout) = matrix.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return Err(Error::Internal("a matrix is not on the GPU".into()));
        };
        let offset = layout.start_offset() * matrix.dtype().size_in_bytes();
        let start = address_of_storage(storage, matrix.dtype())? + offset as u64;
        match *layout.stride() {
            [stride, 1] if stride == columns => {
                Ok(Self { start, operation: blas::cublasOperation_t::CUBLAS_OP_N, stride: columns as i32 })
            }
            [1, stride] if stride == rows => {
                Ok(Self { start, operation: blas::cublasOperation_t::CUBLAS_OP_T, stride: rows as i32 })
            }
            _ => Err(Error::Internal("cuBLAS takes matrices whose rows or columns lie one after the other".into())),
        }
    }
}
