//! Forms in which models of different families compute attention, activations and logits. Read from `config.json`,
//! taken by the kernels of both devices.

/// How queries score keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionForm {
    /// Tokens that a query looks back, its own included, and as many ahead if it does; `None` for all.
    pub window: Option<usize>,
    /// True if queries look at the tokens behind them, too, as encoders do.
    pub looks_ahead: bool,
    /// Factor on the products of queries and keys.
    pub scale: f32,
    /// Cap of the scores s, which become cap · tanh(s / cap) (Gemma 2); `None` if they have none.
    pub cap: Option<f32>,
}

impl AttentionForm {
    /// Returns the usual form for heads of `head_dim` values: products divided by √`head_dim`, without a cap.
    pub fn of_heads(head_dim: usize, window: Option<usize>) -> Self {
        Self { window, looks_ahead: false, scale: 1.0 / (head_dim as f32).sqrt(), cap: None }
    }
}

/// Activation of an MLP: of its gate, if it is gated (Shazeer, "GLU variants improve transformer", 2020).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · σ(x)
    Silu,
    /// x · ½(1 + tanh(√(2/π) (x + 0.044715 x³))) (Gemma).
    GeluTanh,
    /// x · ½(1 + erf(x / √2)) (Hendrycks and Gimpel, "Gaussian error linear units", 2016): of encoders.
    Gelu,
    /// max(x, 0): of encoders.
    Relu,
}

/// Makes logits of the products of hidden states and output head: cap · tanh(scale · x / cap).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitForm {
    /// Factor on the products (Granite).
    pub scale: f32,
    /// Cap of the logits (Gemma 2); `None` if they have none.
    pub cap: Option<f32>,
}

impl LogitForm {
    /// The form of most families: the products themselves.
    pub const PLAIN: Self = Self { scale: 1.0, cap: None };
}
