//! `adapter_config.json`: which layers the adapter changes, with which rank and scale, as PEFT reads it.
//!
//! [`crate::adapters::host`] asks while it checks an adapter. Every field that would make PEFT compute something else
//! than `y += scale · B(A x)` on a decoder's seven linear layers is refused by name.

use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::adapters::Result;
use crate::adapters::peft::refuse;
use crate::model::lora::MAX_RANK;
use crate::model::python_json;

/// Bytes of one compiled expression, so that a short text cannot ask for much memory.
const MAX_EXPRESSION_BYTES: usize = 1 << 18;
/// Expressions that are more than a name, in `rank_pattern` and `alpha_pattern` each.
const MAX_EXPRESSIONS: usize = 256;
/// Python's expressions and ours read these otherwise inside of brackets.
const AMBIGUOUS: [&str; 3] = ["&&", "--", "~~"];

/// Fields that must be absent, false or empty.
const UNSUPPORTED: [&str; 12] = [
    "modules_to_save",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "megatron_config",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "use_dora",
    "use_qalora",
];
/// Ways to begin a training that leave the base as it is; the others subtract from it what the adapter begins with.
const HARMLESS_INITS: [&str; 4] = ["gaussian", "eva", "orthogonal", "true"];

/// The fields as they stand in the file.
#[derive(Debug, Deserialize)]
struct Fields {
    peft_type: String,
    r: u64,
    lora_alpha: f64,
    #[serde(default)]
    target_modules: Option<Value>,
    #[serde(default)]
    exclude_modules: Option<Value>,
    #[serde(default)]
    layers_to_transform: Option<Value>,
    #[serde(default)]
    layers_pattern: Option<Value>,
    #[serde(default)]
    rank_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    use_rslora: Option<bool>,
    #[serde(default)]
    target_parameters: Option<Value>,
    #[serde(default)]
    peft_version: Option<Value>,
    /// Everything else, to refuse by name what is not supported.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What the adapter changes, and how.
#[derive(Debug)]
pub struct PeftConfig {
    rank: f64,
    alpha: f64,
    rank_stabilized: bool,
    ranks: Vec<(Pattern, f64)>,
    alphas: Vec<(Pattern, f64)>,
    targets: Modules,
    excluded: Modules,
    /// Blocks that are changed; `None` changes all of them.
    blocks: Option<Vec<u64>>,
    /// Each finds the number of a block in a layer's name.
    block_number: Vec<Regex>,
    /// Parameters that are changed, by their names in full or by their last parts.
    parameters: Vec<String>,
    /// First two numbers of the version of PEFT that wrote the file; `None` if it does not say.
    version: Option<(u32, u32)>,
}

/// A choice of layers.
#[derive(Debug)]
enum Modules {
    /// By name in full or by its last parts.
    Names(Vec<String>),
    /// By an expression for the name in full.
    Expression(Regex),
    /// All linear layers but the output head.
    AllLinear,
}

/// A key of `rank_pattern` or `alpha_pattern`: an expression for the end of a layer's name.
#[derive(Debug)]
enum Pattern {
    /// A name, whose dots stand for any character; `whole` is one for the name in full.
    Plain { name: String, whole: bool },
    /// Anything else.
    Expression(Regex),
}

impl PeftConfig {
    /// Reads and judges the file.
    pub fn read(config: &[u8]) -> Result<Self> {
        let fields = Fields::deserialize(parse(config)?)
            .map_err(|error| refuse(format_args!("adapter_config.json: {error}")))?;
        if fields.peft_type != "LORA" {
            return Err(refuse(format_args!("its peft_type is `{}`, only LORA is supported", fields.peft_type)));
        }
        refuse_unsupported(&fields.rest)?;
        let parameters = names("target_parameters", fields.target_parameters)?;
        let targets = match modules("target_modules", fields.target_modules)? {
            Some(targets) => targets,
            None if !parameters.is_empty() => Modules::Names(Vec::new()),
            None => return Err(refuse("adapter_config.json has no target_modules")),
        };
        let blocks = block_numbers(fields.layers_to_transform)?;
        let block_number = block_patterns(fields.layers_pattern)?;
        if !matches!(targets, Modules::Names(_)) && blocks.is_some() {
            return Err(refuse("`layers_to_transform` needs target_modules to be a list of names"));
        }
        Ok(Self {
            rank: fields.r as f64,
            alpha: fields.lora_alpha,
            rank_stabilized: fields.use_rslora == Some(true),
            ranks: patterns("rank_pattern", fields.rank_pattern)?,
            alphas: patterns("alpha_pattern", fields.alpha_pattern)?,
            targets,
            excluded: modules("exclude_modules", fields.exclude_modules)?.unwrap_or(Modules::Names(Vec::new())),
            blocks,
            block_number,
            parameters,
            version: fields.peft_version.as_ref().and_then(Value::as_str).and_then(version),
        })
    }

    /// Returns the parameters that are changed, as the file names them.
    pub fn parameters(&self) -> &[String] {
        &self.parameters
    }

    /// True if the adapter changes the parameter `path`, such as `model.layers.0.mlp.experts.down_proj`. Exclusions and
    /// choices of blocks are for modules alone, as in PEFT.
    pub fn changes_parameter(&self, path: &str) -> bool {
        self.parameters.iter().any(|name| is_named(name, path))
    }

    /// Returns the first of `paths` that is among the parameters.
    pub fn named_parameter<'a>(&self, paths: &'a [String]) -> Option<&'a str> {
        paths.iter().find(|path| self.changes_parameter(path)).map(String::as_str)
    }

    /// True if all layers have one rank and one scale, alpha / rank.
    pub fn is_uniform(&self) -> bool {
        self.ranks.is_empty() && self.alphas.is_empty() && !self.rank_stabilized
    }

    /// True unless the file was written by PEFT in this version or a later one.
    pub fn is_before(&self, version: (u32, u32)) -> bool {
        self.version.is_none_or(|own| own < version)
    }

    /// True if the adapter changes the layer at `path`, such as `model.layers.0.self_attn.q_proj`.
    pub fn changes(&self, path: &str) -> bool {
        if self.excluded.contain(path) || !self.targets.contain(path) {
            return false;
        }
        let Some(blocks) = &self.blocks else { return true };
        if matches!(&self.targets, Modules::Names(names) if names.iter().any(|name| name == path)) {
            return true;
        }
        let found = self.block_number.iter().find_map(|pattern| pattern.captures(path));
        found.and_then(|found| found.name("idx")?.as_str().parse().ok()).is_some_and(|index| blocks.contains(&index))
    }

    /// Returns the first of `target_modules` that names one of `paths`, excluded ones apart. Names that the model does
    /// not have at all change nothing, as in PEFT: many adapters list those of several families.
    pub fn named_target<'a>(&self, paths: &'a [String]) -> Option<&'a str> {
        let Modules::Names(names) = &self.targets else { return None };
        let named = |path: &&String| names.iter().any(|name| is_named(name, path)) && !self.excluded.contain(path);
        paths.iter().find(named).map(String::as_str)
    }

    /// Rank and scale of the layer at `path`; ranks above `max_rank` are refused.
    pub fn scaling(&self, path: &str, max_rank: usize) -> Result<(usize, f32)> {
        let rank = first_match(&self.ranks, path).unwrap_or(self.rank);
        let alpha = first_match(&self.alphas, path).unwrap_or(self.alpha);
        if !(1.0..=MAX_RANK as f64).contains(&rank) || rank.fract() != 0.0 {
            return Err(refuse(format_args!(
                "the rank of `{path}` is {rank}, not a whole number from 1 to {MAX_RANK}"
            )));
        }
        if rank > max_rank as f64 {
            return Err(refuse(format_args!(
                "the rank of `{path}` is {rank}; this server's limits.max_adapter_rank is {max_rank}"
            )));
        }
        let divisor = if self.rank_stabilized { rank.sqrt() } else { rank };
        let scale = (alpha / divisor) as f32;
        if !scale.is_finite() {
            return Err(refuse(format_args!("the alpha of `{path}` is not a usable number")));
        }
        Ok((rank as usize, scale))
    }
}

impl Modules {
    fn contain(&self, path: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|name| is_named(name, path)),
            Self::Expression(expression) => expression.is_match(path),
            Self::AllLinear => true,
        }
    }
}

/// Parses `adapter_config.json` as Python does.
pub(super) fn parse(config: &[u8]) -> Result<Value> {
    python_json::parse(config).map_err(|error| refuse(format_args!("adapter_config.json: {error}")))
}

/// Whether `name` is the layer at `path` in full or its last parts.
fn is_named(name: &str, path: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.')) && !name.is_empty()
}

impl Pattern {
    fn new(field: &str, key: &str) -> Result<Self> {
        let name = key.strip_prefix('^').unwrap_or(key);
        if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')) {
            return Ok(Self::Plain { name: name.into(), whole: key.starts_with('^') });
        }
        Ok(Self::Expression(expression(field, key, &format!(r"^(?:(.*\.)?({key})$)"))?))
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Expression(expression) => expression.is_match(path),
            Self::Plain { name, whole } => {
                let Some(start) = path.len().checked_sub(name.len()) else { return false };
                let (before, end) = path.as_bytes().split_at(start);
                (before.is_empty() || (!whole && before.ends_with(b".")))
                    && name.bytes().zip(end).all(|(wanted, byte)| wanted == b'.' || wanted == *byte)
            }
        }
    }
}

/// PEFT takes the first key that matches, in the order of the file.
fn first_match(patterns: &[(Pattern, f64)], path: &str) -> Option<f64> {
    patterns.iter().find(|(pattern, _)| pattern.matches(path)).map(|(_, value)| *value)
}

fn expression(field: &str, shown: &str, whole: &str) -> Result<Regex> {
    if AMBIGUOUS.iter().any(|sign| shown.contains(sign)) {
        return Err(refuse(format_args!("the expression `{shown}` in {field} is not supported: name the layers")));
    }
    RegexBuilder::new(whole).size_limit(MAX_EXPRESSION_BYTES).build().map_err(|error| {
        let error = error.to_string();
        let why = error.lines().last().unwrap_or_default();
        refuse(format_args!("the expression `{shown}` in {field} is not supported ({why}): name the layers"))
    })
}

fn patterns(field: &str, map: Option<Map<String, Value>>) -> Result<Vec<(Pattern, f64)>> {
    let mut patterns = Vec::new();
    for (key, value) in map.unwrap_or_default() {
        let value = value.as_f64().ok_or_else(|| refuse(format_args!("`{key}` in {field} is not a number")))?;
        patterns.push((Pattern::new(field, &key)?, value));
        let expressions = patterns.iter().filter(|(pattern, _)| matches!(pattern, Pattern::Expression(_))).count();
        if expressions > MAX_EXPRESSIONS {
            return Err(refuse(format_args!("{field} has more than {MAX_EXPRESSIONS} expressions")));
        }
    }
    Ok(patterns)
}

/// Returns the first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let (first, rest) = text.split_once('.')?;
    let (second, _) = rest.split_once('.')?;
    Some((first.parse().ok()?, second.parse().ok()?))
}

/// A field that holds names.
fn names(field: &str, value: Option<Value>) -> Result<Vec<String>> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(names)) => names.into_iter().map(|name| one_name(field, name)).collect(),
        Some(_) => Err(refuse(format_args!("`{field}` must be a list of names"))),
    }
}

fn one_name(field: &str, name: Value) -> Result<String> {
    match name {
        Value::String(name) => Ok(name),
        _ => Err(refuse(format_args!("{field} has an entry that is no name"))),
    }
}

/// A field that holds names or one expression.
fn modules(field: &str, value: Option<Value>) -> Result<Option<Modules>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(all)) if field == "target_modules" && all.eq_ignore_ascii_case("all-linear") => {
            Ok(Some(Modules::AllLinear))
        }
        Some(Value::String(text)) => Ok(Some(Modules::Expression(expression(field, &text, &format!("^(?:{text})$"))?))),
        list @ Some(Value::Array(_)) => Ok(Some(Modules::Names(names(field, list)?))),
        Some(_) => Err(refuse(format_args!("{field} must be a list of names or an expression"))),
    }
}

/// `layers_to_transform`: a number or a list of them; an empty list means all.
fn block_numbers(value: Option<Value>) -> Result<Option<Vec<u64>>> {
    let number =
        |value: &Value| value.as_u64().ok_or_else(|| refuse("layers_to_transform must hold numbers of blocks"));
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(numbers)) if numbers.is_empty() => Ok(None),
        Some(Value::Array(numbers)) => Ok(Some(numbers.iter().map(number).collect::<Result<_>>()?)),
        Some(one) => Ok(Some(vec![number(&one)?])),
    }
}

/// Reads `layers_pattern`, the text before a block's number. Without one, any two parts before the first number do.
fn block_patterns(value: Option<Value>) -> Result<Vec<Regex>> {
    let names = match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(name)) if name.is_empty() => Vec::new(),
        Some(Value::Array(names)) if names.len() <= MAX_EXPRESSIONS => names,
        Some(name @ Value::String(_)) => vec![name],
        Some(_) => return Err(refuse("layers_pattern must be a name or a short list of names")),
    };
    if names.is_empty() {
        return Ok(vec![expression("layers_pattern", "", r"^.*?\.[^.]*\.(?P<idx>\d+)\.")?]);
    }
    names
        .iter()
        .map(|name| {
            let name = name.as_str().ok_or_else(|| refuse("layers_pattern has an entry that is no name"))?;
            expression("layers_pattern", name, &format!(r"^(?:(?:^|.*?\.){name}\.(?P<idx>\d+)\.)"))
        })
        .collect()
}

fn refuse_unsupported(rest: &Map<String, Value>) -> Result<()> {
    let named = |field: &str| Err(refuse(format_args!("`{field}` is not supported")));
    for (field, value) in rest {
        // A later PEFT's variants are switched on by fields of this form.
        if (UNSUPPORTED.contains(&field.as_str()) || field.starts_with("use_")) && !is_empty(value) {
            return named(field);
        }
    }
    if rest.get("bias").is_some_and(|bias| *bias != "none" && !bias.is_null()) {
        return Err(refuse("`bias` other than \"none\" is not supported"));
    }
    match rest.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => Ok(()),
        Some(Value::String(init)) if HARMLESS_INITS.contains(&init.to_ascii_lowercase().as_str()) => Ok(()),
        Some(init) => Err(refuse(format_args!(
            "`init_lora_weights` is {init}, which changes the base model: save the adapter with PEFT's \
             path_initial_model_for_weight_conversion"
        ))),
    }
}

/// What Python takes for false.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(true) => false,
    }
}
