//! Purpose of a file of examples; the datasets and their errors use it.

/// Purpose of the file. It decides how many examples the file must have and which field of the request is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Training.
    Training,
    /// Validation.
    Validation,
}

impl Purpose {
    /// Returns the file's name, with which messages begin.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Training => "Training file",
            Self::Validation => "Validation file",
        }
    }
}
