//! Tools, calls and their results as plain text, for templates that know none of them. Tools are described in the system
//! message, or to the first user where a template refuses or leaves out what a system says.

use serde_json::{Value, json};

use super::arguments;
use super::message::{Call, Message, Role};
use super::tools::ToolDefinition;
use crate::tool_syntax::ToolSyntax;

/// Writes a conversation in texts alone: tools in words in the system message, or in the first one of a user if the
/// template does not write the system's; calls in the form of `syntax` in the answers, results as messages of the user.
pub(super) fn messages(
    messages: &[Message],
    tools: &[ToolDefinition],
    syntax: ToolSyntax,
    writes_system: bool,
) -> Vec<Value> {
    let mut written = join_results(messages.iter().map(|message| in_text(message, syntax)).collect());
    if !tools.is_empty() {
        let words = in_words(tools, syntax);
        let user = written.iter_mut().find(|message| message["role"] == "user");
        match user.filter(|_| !writes_system) {
            Some(user) => {
                user["content"] = format!("{words}\n\n{}", user["content"].as_str().unwrap_or_default()).into();
            }
            None => add_to_system(&mut written, &words),
        }
    }
    written
}

/// Describes the tools in words.
fn in_words(tools: &[ToolDefinition], syntax: ToolSyntax) -> String {
    let listed: Vec<String> = tools.iter().map(|tool| tool.described().to_string()).collect();
    format!(
        "You can call functions. Each line describes one, with the JSON schema of its arguments:\n{}\n\
         To call a function, answer with\n{}{}{{\"name\": \"its name\", \"{}\": {{its arguments}}}}{}",
        listed.join("\n"),
        syntax.trigger,
        syntax.open,
        syntax.arguments_key,
        syntax.close
    )
}

/// Appends `text` to the first message if that is a system message, else inserts a system message.
fn add_to_system(messages: &mut Vec<Value>, text: &str) {
    match messages.first_mut() {
        Some(first) if first["role"] == "system" => {
            let content = first["content"].as_str().unwrap_or_default();
            first["content"] = format!("{content}\n\n{text}").trim_start().into();
        }
        _ => messages.insert(0, json!({"role": "system", "content": text})),
    }
}

fn in_text(message: &Message, syntax: ToolSyntax) -> Value {
    let content = &message.content;
    if message.role == Role::Tool {
        return message.text_for_template(&format!("<tool_response>\n{content}\n</tool_response>"));
    }
    if message.calls.is_empty() {
        return message.text_for_template(content);
    }
    let call = |Call { name, arguments, .. }: &Call| {
        let (name, arguments) = (Value::from(name.as_str()), arguments::write(arguments));
        format!("{{\"name\": {name}, \"{}\": {arguments}}}", syntax.arguments_key)
    };
    let calls: Vec<String> = message.calls.iter().map(call).collect();
    let calls = format!("{}{}{}{}", syntax.trigger, syntax.open, calls.join(syntax.separator), syntax.close);
    message.text_for_template(&if content.is_empty() { calls } else { format!("{content}\n{calls}") })
}

/// Turns the results of tools into messages of the user, with all results to one turn in one message: many templates
/// allow no other role, and no two messages of one role in a row.
fn join_results(messages: Vec<Value>) -> Vec<Value> {
    let mut joined: Vec<Value> = Vec::with_capacity(messages.len());
    let mut after_tool = false;
    for mut message in messages {
        let is_tool = message["role"] == "tool";
        if is_tool {
            message["role"] = "user".into();
        }
        match joined.last_mut() {
            Some(last) if is_tool && after_tool => {
                let (before, more) = (last["content"].as_str(), message["content"].as_str());
                last["content"] = format!("{}\n{}", before.unwrap_or_default(), more.unwrap_or_default()).into();
            }
            _ => joined.push(message),
        }
        after_tool = is_tool;
    }
    joined
}
