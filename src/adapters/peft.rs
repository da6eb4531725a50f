//! PEFT folders in and out.
