//! Chat templates in the styles of ChatML, Llama 3 and Mistral, compared with the output of transformers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::json;

use super::*;

const CHATML: &str = "{%- if tools %}
    {{- '<|im_start|>system\\nTools:' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
";

const LLAMA3: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + \
'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

const MISTRAL: &str = "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content.strip() %}\
{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}\
{%- for message in rest %}{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}\
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}\
{%- if message.role == 'user' %}{%- if loop.last and system is defined %}\
{{- '[INST] ' + system + '\n\n' + message.content + '[/INST]' }}{%- else %}{{- '[INST] ' + message.content + '[/INST]' }}\
{%- endif %}{%- else %}{% generation %}{{- ' ' + message.content + eos_token }}{% endgeneration %}{%- endif %}{%- endfor %}";

fn template(config: &Value) -> ChatTemplate {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    ChatTemplate::read(folder.path()).unwrap().unwrap()
}

impl ChatTemplate {
    fn render(&self, messages: &[Value], tools: Option<&[Value]>, begin_answer: bool) -> Result<String> {
        self.apply(messages, tools, &TemplateOptions { begin_answer, ..TemplateOptions::default() })
    }
}

fn chat(turns: &[(&str, &str)]) -> Vec<Value> {
    turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
}

#[test]
fn chatml_renders_turns_tools_and_the_opening_of_the_answer() {
    let template = template(&json!({"chat_template": CHATML}));
    let messages = chat(&[("system", "Be <kind> & 'brief'."), ("user", "Grüße")]);
    let plain = "<|im_start|>system\nBe <kind> & 'brief'.<|im_end|>\n<|im_start|>user\nGrüße<|im_end|>\n";
    assert_eq!(template.render(&messages, None, false).unwrap(), plain);
    let opened = template.render(&messages, None, true).unwrap();
    assert_eq!(opened, format!("{plain}<|im_start|>assistant\n"));

    let tools = [json!({"type": "function", "function": {"name": "weather", "args": ["ü", 1, null, 0.5]}})];
    let with_tools = template.render(&messages[1..], Some(&tools), false).unwrap();
    let listed = r#"{"type": "function", "function": {"name": "weather", "args": ["ü", 1, null, 0.5]}}"#;
    assert!(with_tools.starts_with(&format!("<|im_start|>system\nTools:\n{listed}<|im_end|>\n")), "{with_tools}");
}

#[test]
fn llama3_begins_with_the_begin_token_and_trims_contents() {
    let template = template(&json!({"chat_template": LLAMA3, "bos_token": {"content": "<|begin_of_text|>"}}));
    let expected = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>\
                    <|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(template.render(&chat(&[("user", "  Hi \n")]), None, true).unwrap(), expected);
}

#[test]
fn mistral_puts_the_system_text_into_the_last_turn_and_refuses_wrong_orders() {
    let named = json!([{"name": "rag", "template": "no"}, {"name": "default", "template": MISTRAL}]);
    let template = template(&json!({"chat_template": named, "bos_token": "<s>", "eos_token": "</s>"}));
    let messages = chat(&[("system", " S "), ("user", "a"), ("assistant", "b"), ("user", "c")]);
    let text = template.render(&messages, None, true).unwrap();
    assert_eq!(text, "<s>[INST] a[/INST] b</s>[INST] S\n\nc[/INST]");

    let error = template.render(&chat(&[("user", "a"), ("user", "b")]), None, true).unwrap_err();
    let Error::Template(message) = error else { panic!("not the client's fault: {error}") };
    assert_eq!(message, "Conversation roles must alternate user/assistant/user/assistant/...");
}

#[test]
fn messages_that_a_template_cannot_take_are_the_clients_fault() {
    let template = template(&json!({"chat_template": CHATML}));
    let messages = [json!({"role": "user"})];
    assert!(matches!(template.render(&messages, None, true), Err(Error::Template(_))));
}

#[test]
fn tojson_indents_and_dates_are_written() {
    let source = "{{ messages | tojson(indent=2) }}|{{ strftime_now('%Y') | length }}";
    let template = template(&json!({"chat_template": source}));
    let text = template.render(&[json!({"b": 1, "a": 2})], None, false).unwrap();
    assert_eq!(text, "[\n  {\n    \"b\": 1,\n    \"a\": 2\n  }\n]|4");
}

#[test]
fn templates_render_as_jinja2_renders_them() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/templates.json");
    let table: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let (messages, tools) = (table["messages"].as_array().unwrap(), table["tools"].as_array().unwrap());
    let mut wrong = Vec::new();
    for pair in table["rendered"].as_array().unwrap() {
        let template = template(&json!({"chat_template": pair[0]}));
        let rendered = template.render(messages, Some(tools), true);
        if rendered.as_deref().ok() != pair[1].as_str() {
            wrong.push(format!("{}\n  expected {}\n  rendered {rendered:?}", pair[0], pair[1]));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_chat_with_tools_takes_the_template_for_tools_and_any_other_the_default() {
    let named = json!([
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | length }} tools{% for message in messages if message.tool_calls %}\
         {{ '<tool_call>\n{\"name\": \"probe\", \"arguments\": {\"a\": 1}}' }}{% endfor %}"},
    ]);
    let template = template(&json!({"chat_template": named}));
    let messages = chat(&[("user", "Hi")]);
    assert_eq!(template.render(&messages, Some(&[json!({})]), true).unwrap(), "1 tools");
    for tools in [None, Some([].as_slice())] {
        assert_eq!(template.render(&messages, tools, true).unwrap(), "plain");
    }
    assert_eq!(template.tool_syntax(), ToolSyntax::HERMES);
}

#[test]
fn additional_templates_are_read_from_their_folder_and_win_over_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer_config.json", &json!({"chat_template": "old"}).to_string());
    write("chat_template.jinja", "plain\r\ntext");
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "with {{ tools[0].name }}");
    write("additional_chat_templates/rag.jinja", "{% broken");
    let template = ChatTemplate::read(folder.path()).unwrap().unwrap();
    assert_eq!(template.render(&[], None, true).unwrap(), "plain\ntext");
    assert_eq!(template.render(&[], Some(&[json!({"name": "f"})]), true).unwrap(), "with f");
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let template = ChatTemplate::read(folder.path()).unwrap().unwrap();
    let error = template.render(&[], None, true).unwrap_err().to_string();
    assert!(error.contains("rag, tool_use") && error.contains("no default"), "{error}");
}

#[test]
fn a_template_in_the_file_of_a_processor_is_read_if_there_is_no_other() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("chat_template.json"), json!({"chat_template": "x"}).to_string()).unwrap();
    assert_eq!(ChatTemplate::read(folder.path()).unwrap().unwrap().render(&[], None, true).unwrap(), "x");
}

#[test]
fn the_file_of_its_own_wins_and_a_broken_template_names_its_file() {
    let folder = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::read(folder.path()).unwrap().is_none());
    std::fs::write(folder.path().join("tokenizer_config.json"), json!({"chat_template": "old"}).to_string()).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ messages[0].content }}\n").unwrap();
    let template = ChatTemplate::read(folder.path()).unwrap().unwrap();
    assert_eq!(template.render(&chat(&[("user", "x")]), None, true).unwrap(), "x");
    std::fs::write(folder.path().join("chat_template.jinja"), "{% if %}").unwrap();
    let error = ChatTemplate::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
}

#[test]
fn the_present_is_the_one_that_was_given_and_variables_reach_the_template() {
    let source = "{% macro date() %}{{ strftime_now('%d %b %Y %H:%M') }}{% endmacro %}{{ date() }}|\
                  {{ 'on' if enable_thinking else 'off' }}|{{ 'none' if documents is none }}|{{ messages | length }}";
    let template = template(&json!({"chat_template": source}));
    let now = Some(1_700_000_000);
    let Value::Object(variables) = json!({"enable_thinking": false, "messages": []}) else { unreachable!() };
    let options = TemplateOptions { variables, now, ..TemplateOptions::default() };
    let text = template.apply(&chat(&[("user", "a"), ("user", "b")]), None, &options).unwrap();
    assert_eq!(text, "14 Nov 2023 22:13|off|none|2", "a variable never replaces the conversation");
}
