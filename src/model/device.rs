//! Chooses the device.
