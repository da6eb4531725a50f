//! Runs the GPU's kernels on the CPU: compiles a kernel's source with the machine's C++ compiler behind `emulator.h`,
//! and calls it.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use attune::model::Result;
use attune::model::kernels::cuda::{DeviceEvent, Kernel, Launcher, Shape};
use attune::model::kernels::{GpuKernels, Kernels};
use candle_core::{DType, Device, Tensor};
use libloading::Library;

/// Environment variable with the compiler's sanitizers for the kernels: `tools/sanitize-kernels` sets it.
pub(crate) const SANITIZER: &str = "EMULATOR_SANITIZER";

type Entry = unsafe extern "C" fn(*const c_void, usize, c_uint, c_uint, c_uint, c_int) -> c_int;

/// Compiled sources by their text and options. A library runs one block at a time: calls take turns.
type Libraries = HashMap<(String, Vec<String>), Arc<Mutex<Library>>>;

static LIBRARIES: Mutex<Option<Libraries>> = Mutex::new(None);

/// Returns the kernels that `launcher` runs on tensors of the CPU.
pub(crate) fn kernels(launcher: Arc<dyn Launcher>) -> Kernels {
    Kernels::Gpu(GpuKernels::new(launcher, Device::Cpu))
}

/// Runs kernels on tensors of the CPU.
pub(crate) struct Emulator {
    /// Whether the last thread of a block goes first.
    pub reversed: bool,
}

impl Launcher for Emulator {
    fn launch_bytes(&self, kernel: &Kernel, arguments: &[u8], shape: Shape) -> Result<()> {
        let library = library(kernel);
        let library = library.lock().unwrap();
        // The source aligns structures to eight bytes.
        let mut aligned = vec![0_u64; arguments.len().div_ceil(8)];
        // SAFETY: as many bytes as there are.
        unsafe {
            std::ptr::copy_nonoverlapping(arguments.as_ptr(), aligned.as_mut_ptr().cast::<u8>(), arguments.len());
        }
        // SAFETY: the source declares every kernel so, and checks the length of its arguments.
        let status = unsafe {
            let entry = library.get::<Entry>(kernel.name.as_bytes()).unwrap();
            let (columns, rows) = shape.blocks;
            entry(aligned.as_ptr().cast(), arguments.len(), columns, rows, shape.threads, c_int::from(self.reversed))
        };
        assert_eq!(status, 0, "the arguments of `{}` are laid out differently in its source", kernel.name);
        Ok(())
    }

    fn mark(&self) -> Result<Box<dyn DeviceEvent>> {
        Ok(Box::new(Done))
    }

    fn has_matrix_units(&self) -> bool {
        true
    }

    fn product(&self, a: &Tensor, b: &Tensor, dtype: DType) -> Result<Tensor> {
        Ok(a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?.to_dtype(dtype)?)
    }

    fn add_product(&self, y: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
        let sum = (y.to_dtype(DType::F32)? + self.product(a, b, DType::F32)?)?.to_dtype(y.dtype())?;
        Ok(y.slice_set(&sum, 0, 0)?)
    }
}

/// An event of work that was done as soon as it was started.
struct Done;

impl DeviceEvent for Done {
    fn wait(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

fn library(kernel: &Kernel) -> Arc<Mutex<Library>> {
    let mut libraries = LIBRARIES.lock().unwrap();
    let libraries = libraries.get_or_insert_default();
    let key = (kernel.source(), kernel.definitions());
    libraries.entry(key).or_insert_with_key(|(source, options)| Arc::new(Mutex::new(compile(source, options)))).clone()
}

fn compile(source: &str, options: &[String]) -> Library {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/device/emulator.h");
    let out = tempfile::Builder::new().suffix(".so").tempfile().unwrap().into_temp_path();
    let mut compiler = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".into()))
        .args(["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC", "-shared"])
        // Hidden visibility, since with visible names two libraries would share one block's shared memory.
        .args(["-fvisibility=hidden", "-DEMULATED", "-include"])
        .arg(header)
        .args(options)
        .args(std::env::var(SANITIZER).map(|kind| format!("-fsanitize={kind}")))
        .args(["-x", "c++", "-", "-o"])
        .arg(&out)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a C++ compiler (c++, or what CXX names)");
    compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    assert!(compiler.wait().unwrap().success(), "a kernel does not compile");
    // SAFETY: nothing runs when it is loaded. The file may go afterwards.
    unsafe { Library::new(&out) }.unwrap()
}
