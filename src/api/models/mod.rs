//! Models and adapters as resources: lists, downloads, loading, and who else may use a checkpoint.

pub(super) mod adapter_list;
pub(super) mod checkpoint_permissions;
pub(super) mod lora_adapters;
pub(super) mod model_resource;
