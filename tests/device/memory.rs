//! Errors of a GPU without free memory.

use attune::model::Error;
use attune::model::device::{DeviceHealth, free_memory};
use candle_core::{DType, Tensor};

use crate::fixtures::device;

#[test]
fn what_does_not_fit_is_an_error_and_the_device_goes_on() {
    let device = device();
    let twice = free_memory(&device).unwrap().total as usize / DType::F32.size_in_bytes() * 2;
    let error = Error::from(Tensor::zeros(twice, DType::F32, &device).unwrap_err());
    assert!(matches!(error, Error::OutOfMemory), "{error}");
    assert!(DeviceHealth::new(device.clone()).check());
    let sum: f32 = Tensor::ones(1000, DType::F32, &device).unwrap().sum_all().unwrap().to_scalar().unwrap();
    assert!((sum - 1000.0).abs() < 1e-3);
}
