//! What a file of examples is for; errors name it as the datasets do.

/// What the file is for: it decides how many examples it must have and which field of the request is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The file to train on.
    Training,
    /// The file to measure on.
    Validation,
}

impl Purpose {
    /// Returns the name of the file that messages begin with.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Training => "Training file",
            Self::Validation => "Validation file",
        }
    }
}
