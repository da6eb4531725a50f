//! Linear layers of a decoder block that adapters can change: as the decoder computes them ([`Site`]), and as checkpoints
//! and PEFT name them ([`Module`]). Read by the configuration, by `lora` and by all who name layers.

use serde::{Deserialize, Serialize};

/// The linear layers of decoder blocks that an adapter can change: those of attention or of a convolution, and those of the
/// MLP. Written as in PEFT's `target_modules`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Site {
    /// `self_attn.q_proj`
    #[serde(rename = "q_proj")]
    Query,
    /// `self_attn.k_proj`
    #[serde(rename = "k_proj")]
    Key,
    /// `self_attn.v_proj`
    #[serde(rename = "v_proj")]
    Value,
    /// `self_attn.o_proj`
    #[serde(rename = "o_proj")]
    Output,
    /// `mlp.gate_proj`
    #[serde(rename = "gate_proj")]
    Gate,
    /// `mlp.up_proj`
    #[serde(rename = "up_proj")]
    Up,
    /// `mlp.down_proj`
    #[serde(rename = "down_proj")]
    Down,
    /// `conv.in_proj`
    #[serde(rename = "in_proj")]
    ConvolutionInput,
    /// `conv.out_proj`
    #[serde(rename = "out_proj")]
    ConvolutionOutput,
}

impl Site {
    /// The sites of a block with attention and one MLP, in the order of the forward pass.
    pub const USUAL: [Self; 7] = [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// All sites.
    pub const ALL: [Self; 9] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::ConvolutionInput,
        Self::ConvolutionOutput,
    ];

    /// Returns true for layers of a block's attention.
    pub const fn is_of_attention(self) -> bool {
        matches!(self, Self::Query | Self::Key | Self::Value | Self::Output)
    }

    /// Returns true for layers of a block's convolution.
    pub const fn is_of_convolution(self) -> bool {
        matches!(self, Self::ConvolutionInput | Self::ConvolutionOutput)
    }

    /// Returns the name of the layer inside its block in most checkpoints, such as `self_attn.q_proj`; see
    /// [`Module`] for the others.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
            Self::ConvolutionInput => "conv.in_proj",
            Self::ConvolutionOutput => "conv.out_proj",
        }
    }
}

/// A linear layer of a checkpoint's decoder block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    /// Name inside the block, such as `self_attn.q_proj`.
    pub path: &'static str,
    /// Sites whose rows it holds, one after the other. Their input is the same.
    pub sites: &'static [Site],
}

/// The layers of a model that adapters can change, as its files name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockNames {
    /// Name of the list of blocks, such as `model.layers`.
    pub blocks: &'static str,
    /// Layers of a block.
    pub modules: &'static [Module],
    /// True if the outputs of an expert's gate and up take turns in files: even ones are the gate's.
    pub experts_interleaved: bool,
}

impl BlockNames {
    /// Returns the name of `inside` a block, such as `model.layers.0.self_attn.q_proj`.
    pub fn path(&self, block: usize, inside: &str) -> String {
        format!("{}.{block}.{inside}", self.blocks)
    }
}

/// The layers of a block of most families, in the order of the forward pass.
pub const PLAIN: [Module; 7] = [
    Module::new("self_attn.q_proj", &[Site::Query]),
    Module::new("self_attn.k_proj", &[Site::Key]),
    Module::new("self_attn.v_proj", &[Site::Value]),
    Module::new("self_attn.o_proj", &[Site::Output]),
    Module::new("mlp.gate_proj", &[Site::Gate]),
    Module::new("mlp.up_proj", &[Site::Up]),
    Module::new("mlp.down_proj", &[Site::Down]),
];

/// The layers of attention, of families with experts in the place of the MLP: the linear layers that they have beside
/// [`EXPERTS`], and their routers, which adapters never change.
pub const ATTENTION: [Module; 4] = [PLAIN[0], PLAIN[1], PLAIN[2], PLAIN[3]];

/// The parameters that hold a layer of all experts of a block, or two, in the order in which PEFT wraps them. PEFT names
/// them in `target_parameters`, and takes none of them for linear layers.
pub const EXPERTS: [Module; 2] = [
    Module::new("mlp.experts.gate_up_proj", &[Site::Gate, Site::Up]),
    Module::new("mlp.experts.down_proj", &[Site::Down]),
];

/// The layers of a block of Phi-3.
pub const FUSED: [Module; 4] = [
    Module::new("self_attn.qkv_proj", &[Site::Query, Site::Key, Site::Value]),
    Module::new("self_attn.o_proj", &[Site::Output]),
    Module::new("mlp.gate_up_proj", &[Site::Gate, Site::Up]),
    Module::new("mlp.down_proj", &[Site::Down]),
];

/// The layers of a block of Granite 4, whose MLP is the one that its experts would share.
pub(crate) const SHARED_MLP: [Module; 6] = [
    PLAIN[0],
    PLAIN[1],
    PLAIN[2],
    PLAIN[3],
    Module::new("shared_mlp.input_linear", &[Site::Gate, Site::Up]),
    Module::new("shared_mlp.output_linear", &[Site::Down]),
];

/// The layers of the blocks of LFM 2, each of which has those of attention or those of a convolution.
pub(crate) const CONVOLUTION: [Module; 9] = [
    PLAIN[0],
    PLAIN[1],
    PLAIN[2],
    Module::new("self_attn.out_proj", &[Site::Output]),
    Module::new("conv.in_proj", &[Site::ConvolutionInput]),
    Module::new("conv.out_proj", &[Site::ConvolutionOutput]),
    Module::new("feed_forward.w1", &[Site::Gate]),
    Module::new("feed_forward.w3", &[Site::Up]),
    Module::new("feed_forward.w2", &[Site::Down]),
];

/// The layers of a block of BERT. Its MLP has no gate: the first layer stands in the gate's place.
pub(crate) const BERT: [Module; 6] = [
    Module::new("attention.self.query", &[Site::Query]),
    Module::new("attention.self.key", &[Site::Key]),
    Module::new("attention.self.value", &[Site::Value]),
    Module::new("attention.output.dense", &[Site::Output]),
    Module::new("intermediate.dense", &[Site::Gate]),
    Module::new("output.dense", &[Site::Down]),
];

/// The layers of a block of MPNet.
pub(crate) const MPNET: [Module; 6] = [
    Module::new("attention.attn.q", &[Site::Query]),
    Module::new("attention.attn.k", &[Site::Key]),
    Module::new("attention.attn.v", &[Site::Value]),
    Module::new("attention.attn.o", &[Site::Output]),
    BERT[4],
    BERT[5],
];

/// The layers of a block of ModernBERT.
pub(crate) const MODERN_BERT: [Module; 4] = [
    Module::new("attn.Wqkv", &[Site::Query, Site::Key, Site::Value]),
    Module::new("attn.Wo", &[Site::Output]),
    Module::new("mlp.Wi", &[Site::Gate, Site::Up]),
    Module::new("mlp.Wo", &[Site::Down]),
];

/// The layers of a block of Nomic's BERT.
pub(crate) const NOMIC_BERT: [Module; 5] = [
    MODERN_BERT[0],
    Module::new("attn.out_proj", &[Site::Output]),
    Module::new("mlp.fc12", &[Site::Gate]),
    Module::new("mlp.fc11", &[Site::Up]),
    Module::new("mlp.fc2", &[Site::Down]),
];

/// The layers of all families, each in one list at least.
pub const KNOWN: [&[Module]; 8] = [&PLAIN, &FUSED, &SHARED_MLP, &CONVOLUTION, &BERT, &MPNET, &MODERN_BERT, &NOMIC_BERT];

impl Module {
    /// Creates the layer at `path`.
    pub const fn new(path: &'static str, sites: &'static [Site]) -> Self {
        Self { path, sites }
    }

    /// Returns the name in PEFT's `target_modules`, such as `q_proj`.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or_default()
    }
}

/// Returns the names of `modules` in PEFT's `target_modules`; layers of different places may share one.
pub fn names<'a>(modules: impl IntoIterator<Item = &'a Module>) -> Vec<&'static str> {
    let mut names = Vec::new();
    for name in modules.into_iter().map(Module::name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Returns the first site of the one of `modules` that holds `site`: it stands for all that share the layer's A.
pub fn first_site(modules: &[Module], site: Site) -> Site {
    let module = modules.iter().find(|module| module.sites.contains(&site));
    module.and_then(|module| module.sites.first()).copied().unwrap_or(site)
}
