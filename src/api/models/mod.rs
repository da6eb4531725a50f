//! Models and adapters as resources. [`model_list`] lists models, [`model_resource`] reads and deletes them,
//! [`adapter_download`] downloads their adapters, [`aliases`] gives them other names, [`names`] says what a name
//! stands for, [`checkpoint_permissions`] lets other organisations use one. [`lora_adapters`] loads and unloads
//! adapters that were trained elsewhere, and answers with [`adapter_list`] which adapters are in memory.
//!
//! [`routes`](fn@super::routes) lists the handlers; they call `store` and `adapters`. `generation::engines` and
//! `fine_tuning::fine_tunes` use these two, too.

pub(super) mod adapter_download;
pub(super) mod adapter_list;
pub(super) mod aliases;
pub(super) mod checkpoint_permissions;
pub(super) mod lora_adapters;
pub(super) mod model_list;
pub(super) mod model_resource;
pub(super) mod names;
