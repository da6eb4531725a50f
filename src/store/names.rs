//! The forms of model names. Asked by the configuration, the registry and the API.

/// True for names of the forms that jobs give their models: `ft:{base}:…` and `{base}:ft-…`.
pub fn is_job_name(name: &str) -> bool {
    name.starts_with("ft:") || name.contains(":ft-")
}
