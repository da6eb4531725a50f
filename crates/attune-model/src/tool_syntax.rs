//! The syntax of a model's tool calls, found out once from its chat template, which alone tells it: it shows the tools
//! to the model and renders the calls of earlier turns.
//!
//! Read by `api/chat`, which makes the grammar of an answer from it, finds the calls in the answer, and renders the
//! messages itself for models whose template knows nothing of tools.

/// The markup of calls: `trigger`, `open`, the calls with `separator` between them, `close`. A call is
/// `{"name": "…", "arguments_key": {…}}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolSyntax {
    /// Text that begins the calls, anywhere in an answer. If it is empty, calls begin with the answer or not at all.
    pub trigger: &'static str,
    /// Text between the trigger and the first call.
    pub open: &'static str,
    /// Key of the arguments: `arguments` or `parameters`.
    pub arguments_key: &'static str,
    /// Text between two calls.
    pub separator: &'static str,
    /// Text after the last call.
    pub close: &'static str,
    /// True if the template shows tools and renders calls; otherwise both are written into the messages as text.
    pub in_template: bool,
    /// True if ids of calls must be nine letters or digits (Mistral's templates insist).
    pub short_ids: bool,
}

impl ToolSyntax {
    /// Marks that are tokens of their own in many vocabularies.
    pub const MARKS: [&'static str; 3] = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]"];

    /// One JSON object per call between `<tool_call>` tags: Hermes, Qwen and many fine-tunes.
    pub const HERMES: Self = Self {
        trigger: "<tool_call>",
        open: "\n",
        arguments_key: "arguments",
        separator: "\n</tool_call>\n<tool_call>\n",
        close: "\n</tool_call>",
        in_template: true,
        short_ids: false,
    };

    /// [`ToolSyntax::HERMES`] for models whose template does not show tools, or shows them in an unknown form.
    pub const PLAIN: Self = Self { in_template: false, ..Self::HERMES };

    /// A JSON object that is the whole answer: Llama 3.1 and later.
    pub const LLAMA: Self = Self {
        trigger: "",
        open: "",
        arguments_key: "parameters",
        separator: "; ",
        close: "",
        in_template: true,
        short_ids: false,
    };

    /// A JSON array after `[TOOL_CALLS]`: Mistral.
    pub const MISTRAL: Self = Self {
        trigger: "[TOOL_CALLS]",
        open: "[",
        arguments_key: "arguments",
        separator: ", ",
        close: "]",
        in_template: true,
        short_ids: true,
    };

    /// Returns the beginning of a call of `name` whose `arguments` are written as JSON, up to their end.
    pub fn beginning(&self, name: &str, arguments: &str) -> String {
        format!("{}{}{{\"name\": \"{name}\", \"{}\": {arguments}", self.trigger, self.open, self.arguments_key)
    }

    /// Returns the syntax that a template with this `source` seems to show; `reads_tools` if it reads the variable
    /// `tools`. Whether it writes calls so is seen when it renders one.
    pub fn of_template(source: &str, reads_tools: bool) -> Self {
        let has = |text: &str| source.contains(text);
        if !reads_tools {
            Self::PLAIN
        } else if has("[TOOL_CALLS] [") {
            Self { open: " [", ..Self::MISTRAL }
        } else if has("[TOOL_CALLS]") && !has("[ARGS]") {
            Self::MISTRAL
        } else if has("<tool_call>") && !has("<function=") && !has("<arg_key>") {
            Self::HERMES
        } else if has("\"parameters\":") && has("\"name\":") {
            Self::LLAMA
        } else {
            Self::PLAIN
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_says_which_syntax_its_model_writes() {
        let qwen =
            "{%- if tools %}<tool_call>\\n{\"name\": <function-name>, \"arguments\": <args>}\\n</tool_call>{% endif %}";
        let llama = "{%- if tools is not none %}{\"name\": function name, \"parameters\": dictionary}{{ '{\"name\": \"' + \
                     tool_call.name + '\", ' }}{{ '\"parameters\": ' }}";
        let mistral = "{{- \"[AVAILABLE_TOOLS][\" }}{{- \"[TOOL_CALLS][\" }}";
        for (source, reads_tools, expected) in [
            (qwen, true, ToolSyntax::HERMES),
            (llama, true, ToolSyntax::LLAMA),
            (mistral, true, ToolSyntax::MISTRAL),
            ("{{ '[TOOL_CALLS] [' }}", true, ToolSyntax { open: " [", ..ToolSyntax::MISTRAL }),
            ("<tool_call>\\n<function=name>", true, ToolSyntax::PLAIN),
            ("[TOOL_CALLS]name[ARGS]{}", true, ToolSyntax::PLAIN),
            ("{% for tool in tools %}{{ tool }}{% endfor %}", true, ToolSyntax::PLAIN),
            (qwen, false, ToolSyntax::PLAIN),
            ("{{ messages }}", false, ToolSyntax::PLAIN),
        ] {
            assert_eq!(ToolSyntax::of_template(source, reads_tools), expected, "{source}");
        }
    }
}
