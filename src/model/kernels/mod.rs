//! The numeric kernels.
