use serde_json::json;

use super::*;

fn ask(fields: &Value) -> Result<Asked> {
    let mut body = json!({"model": "m", "input": "U"});
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    let request: CreateResponse = serde_json::from_value(body).expect("a request");
    Asked::of(&request, vec![ChatMessage::default()])
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}})
}

#[test]
fn tools_are_taken_flat_or_as_in_a_chat_and_those_of_servers_are_named() {
    let nested = json!({"type": "function", "function": {"name": "g", "description": "D", "strict": true}});
    let custom = json!({"type": "custom", "name": "c", "format": {"type": "text"}});
    let asked = ask(&json!({"tools": [{"type": "web_search"}, tool("f"), nested, custom]})).expect("a request");
    let tools = asked.chat.tools.as_deref().expect("tools");
    let functions = tools.iter().filter_map(|tool| Some(tool.function.as_ref()?.name.as_str()));
    assert_eq!(functions.collect::<Vec<_>>(), ["f", "g"]);
    assert_eq!(tools[2].custom.as_ref().expect("a custom tool").name, "c");
    assert_eq!(asked.names.skipped, ["tools[0]: web_search"]);
    let shown = serde_json::to_value(&asked.tools).expect("JSON");
    assert_eq!(
        shown[1],
        json!({"type": "function", "name": "g", "description": "D", "parameters": null, "strict": true})
    );
    assert_eq!(shown[2]["format"], json!({"type": "text"}));
    // Errors name the places in the request.
    let problem = Problem::invalid("tools[1].function.parameters", "'tools[1].function.parameters' is wrong.");
    let told = asked.names.tell(problem).error;
    assert_eq!(told.param.as_deref(), Some("tools[2].parameters"));
    assert_eq!((told.message.as_str(), told.code), ("'tools[2].parameters' is wrong.", Some("invalid_value")));
}

#[test]
fn one_tool_or_some_of_them_can_be_chosen() {
    let choose = |choice: Value| ask(&json!({"tools": [tool("f"), tool("g")], "tool_choice": choice}));
    let asked = choose(json!({"type": "function", "name": "g"})).expect("a choice").chat;
    assert!(
        matches!(asked.tool_choice, Some(ToolChoice::Named(named)) if named.function.as_ref().expect("one").name == "g")
    );
    let allowed = json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]});
    let asked = choose(allowed.clone()).expect("a choice");
    assert_eq!(asked.chat.callable, Some(vec!["g".into()]));
    assert!(matches!(asked.chat.tool_choice, Some(ToolChoice::Mode(mode)) if mode == "required"));
    assert_eq!(asked.tool_choice, allowed);
    for wrong in [
        json!({"type": "function", "name": "h"}),
        json!({"type": "custom", "name": "g"}),
        json!({"type": "web_search"}),
        json!({"type": "allowed_tools", "mode": "auto", "tools": []}),
        json!({"type": "allowed_tools", "tools": [{"type": "mcp", "server_label": "x"}]}),
        json!(3),
    ] {
        let problem = choose(wrong.clone()).err().unwrap_or_else(|| panic!("{wrong} was not refused"));
        assert_eq!(problem.error.param.as_deref(), Some("tool_choice"), "{wrong}");
    }
}

#[test]
fn the_form_of_the_text_is_flat() {
    let schema = json!({"type": "object", "properties": {}});
    let format = json!({"type": "json_schema", "name": "n", "schema": schema, "strict": true});
    let asked = ask(&json!({"text": {"format": format, "verbosity": "low"}})).expect("a request");
    let made = asked.chat.response_format.expect("a form").schema().expect("a schema");
    assert_eq!(made, Some(schema.clone()));
    let shown = serde_json::to_value(&asked.text).expect("JSON");
    let expected = json!({"type": "json_schema", "name": "n", "description": null, "schema": schema, "strict": true});
    assert_eq!(shown, json!({"format": expected, "verbosity": "low"}));
    // Any JSON.
    for format in [json!({"type": "json_schema"}), json!({"type": "json_object"})] {
        let asked = ask(&json!({"text": {"format": format}})).expect("a request");
        assert_eq!(asked.chat.response_format.expect("a form").kind, "json_object");
        assert_eq!(asked.text.format, json!({"type": "json_object"}));
    }
    let asked = ask(&json!({"text": {"format": {"type": "text"}}})).expect("a request");
    assert!(asked.chat.response_format.is_none() && !asked.is_structured);
}

#[test]
fn the_effort_none_switches_thinking_off() {
    let variables = |effort: &str| {
        let asked = ask(&json!({"reasoning": {"effort": effort}, "chat_template_kwargs": {"thinking": true}}));
        let asked = asked.expect("a request");
        (asked.chat.chat_template_kwargs.map(Value::from), asked.reasoning.effort)
    };
    let off = json!({"thinking": true, "enable_thinking": false});
    assert_eq!(variables("none"), (Some(off), Some("none".into())));
    assert_eq!(variables("high"), (Some(json!({"thinking": true})), Some("high".into())));
    // Not one that all clients know.
    assert_eq!(variables("minimal").1, None);
}

#[test]
fn what_is_wrong_is_blamed_by_its_field() {
    for (fields, param) in [
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
        (json!({"truncation": "some"}), "truncation"),
        (json!({"reasoning": {"effort": "huge"}}), "reasoning.effort"),
        (json!({"reasoning": {"summary": "long"}}), "reasoning.summary"),
        (json!({"text": {"verbosity": "chatty"}}), "text.verbosity"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
        (json!({"text": {"format": {"type": "text", "schema": {}}}}), "text.format.schema"),
        (json!({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}), "text.format.name"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
        (json!({"tools": [{"type": "function", "function": {"nome": "f"}}]}), "tools[0].function.name"),
        (json!({"tools": [{"type": "function", "function": {"name": 7}}]}), "tools[0].function.name"),
        (json!({"tools": [{"type": "function", "function": "f"}]}), "tools[0].function"),
        (json!({"text": {"format": {"type": "json_schema", "json_schema": {"name": "n"}}}}), "text.format.json_schema"),
        (json!({"tool_choice": {"type": "allowed_tools", "mode": "never", "tools": []}}), "tool_choice.mode"),
        (json!({"tool_choice": {"type": "allowed_tools", "mode": true, "tools": []}}), "tool_choice.mode"),
        (json!({"tools": [{"type": "custom"}]}), "tools[0].name"),
        (json!({"metadata": {"a": 1}}), "metadata"),
    ] {
        let problem = ask(&fields).err().unwrap_or_else(|| panic!("{fields} was not refused"));
        assert_eq!(problem.error.param.as_deref(), Some(param), "{fields}");
        assert!(problem.error.code.is_some(), "{fields}");
    }
}

#[test]
fn errors_of_a_chat_have_the_names_of_this_route() {
    let names = Names::default();
    for (param, told) in [
        ("messages", "input"),
        ("messages[3].content", "input"),
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("response_format", "text.format"),
        ("tool_choice", "tool_choice"),
    ] {
        assert_eq!(names.tell(Problem::invalid(param, "no")).error.param.as_deref(), Some(told));
    }
    let bare = names.tell(Problem::bad_request("no")).error;
    assert_eq!((bare.param.as_deref(), bare.code), (Some("input"), Some("invalid_value")));
    assert_eq!(complete(Problem::model_not_found("m")).error.param.as_deref(), Some("model"));
}
