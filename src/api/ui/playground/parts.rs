//! The parts of the playground: its form, and a column for each model. `playground.js` fills columns that came without
//! an answer; it finds their places by `data-…`.

use maud::{Markup, html};

use super::answers::{Answer, Outcome, Token};
use super::form::{Ask, FieldFault, MOST_MODELS, NUMBERS};
use super::request::ApiRequest;
use crate::api::ui::words;
use crate::config::Price;
use crate::format;

/// A column: the request to one model, and what came of it.
pub(super) struct Column {
    pub request: ApiRequest,
    /// What its tokens cost; `None` without a price.
    pub price: Option<Price>,
    /// `None` if the script is to ask.
    pub outcome: Option<Outcome>,
}

/// The links between the pages of the playground; `here` is the path of this one.
pub(super) fn pages(here: &str) -> Markup {
    html! {
        p.row {
            @for (path, label) in [("/ui/playground", "Answers"), ("/ui/playground/texts", "Similarity of texts")] {
                a href=(path) aria-current=[(here == path).then_some("page")] { (label) }
            }
        }
    }
}

/// The inputs for the names of models, with those that are offered.
pub(super) fn model_inputs(models: &[String], offered: &[String], fault: Option<&FieldFault>) -> Markup {
    let is_wrong = fault.is_some_and(|fault| fault.field == "model");
    html! {
        div.models {
            @for index in 0..MOST_MODELS.max(models.len()) {
                div {
                    label for={ "model-" (index) } { "Model " (index + 1) @if index > 0 { span.hint { " (if you like)" } } }
                    input type="text" id={ "model-" (index) } name="model" list="offered" spellcheck="false"
                        autocomplete="off" value=(models.get(index).map_or("", String::as_str))
                        aria-invalid=[is_wrong.then_some("true")] aria-describedby=[is_wrong.then_some("fault")];
                }
            }
        }
        datalist id="offered" { @for name in offered { option value=(name) {} } }
    }
}

/// Says what is wrong with a form.
pub(super) fn fault_of(fault: Option<&FieldFault>) -> Markup {
    html! { @if let Some(fault) = fault { p.fault id="fault" role="alert" { bdi { (fault.message) } } } }
}

/// A text of several lines. A browser drops the first line break of it, so one is put before.
pub(super) fn lines(name: &str, id: &str, rows: u32, text: &str, fault: Option<&FieldFault>) -> Markup {
    let is_wrong = fault.is_some_and(|fault| fault.field == name);
    html! {
        textarea id=(id) name=(name) rows=(rows) dir="auto" aria-invalid=[is_wrong.then_some("true")]
            aria-describedby=[is_wrong.then_some("fault")] { "\n" (text) }
    }
}

/// The form.
pub(super) fn form(ask: &Ask, offered: &[String], fault: Option<&FieldFault>) -> Markup {
    let uses_settings =
        NUMBERS.iter().zip(&ask.numbers).any(|(field, typed)| field.name != "max_tokens" && !typed.is_empty());
    let opens = fault.is_some() || uses_settings || ask.wants_probabilities;
    html! {
        form.card id="ask" method="post" action="/ui/playground" {
            (fault_of(fault))
            (model_inputs(&ask.models, offered, fault))
            fieldset {
                legend { "What they get" }
                @for (value, label) in [("chat", "Chat"), ("text", "A text to go on with")] {
                    label.choice {
                        input type="radio" name="form" value=(value) checked[ask.is_text == (value == "text")];
                        " " (label)
                    }
                }
            }
            details open[!ask.system.is_empty() || !ask.turns.is_empty() || fault.is_some()] {
                summary { "System message and conversation" }
                label for="system" { "System message" }
                (lines("system", "system", 2, &ask.system, fault))
                @for (index, turn) in ask.turns.iter().enumerate() { (self::turn(index, turn.is_answer, &turn.content, fault)) }
                @if !ask.turns.is_empty() { p.hint { "An emptied message is left out." } }
            }
            label for="prompt" { "Prompt" }
            (lines("prompt", "prompt", 4, &ask.prompt, fault))
            details open[opens] {
                summary { "Settings" }
                p.hint { "What is empty is as the model has it. The same seed gives the same answer again." }
                div.numbers { @for (field, typed) in NUMBERS.iter().zip(&ask.numbers) { (number(field, typed, fault)) } }
                label.choice {
                    input type="checkbox" name="probabilities" checked[ask.wants_probabilities];
                    " Show the probabilities of tokens"
                }
            }
            details open[!ask.stop.is_empty() || !ask.schema.is_empty() || fault.is_some()] {
                summary { "Stop texts and JSON schema" }
                label for="stop" { "Stop texts" }
                p.hint { "One in each line; " code { "\\n" } " stands for a line break." }
                (lines("stop", "stop", 2, &ask.stop, fault))
                label for="schema" { "JSON schema" }
                p.hint { "Answers then follow it for sure." }
                (lines("schema", "schema", 4, &ask.schema, fault))
            }
            div.row {
                button type="submit" { "Ask" }
                button.quiet type="button" id="stop-asking" hidden { "Stop" }
            }
        }
    }
}

fn turn(index: usize, is_answer: bool, content: &str, fault: Option<&FieldFault>) -> Markup {
    let id = format!("content-{index}");
    html! {
        div {
            label { span.hidden { "Who says message " (index + 1) }
                select name="role" {
                    option value="user" selected[!is_answer] { "User" }
                    option value="assistant" selected[is_answer] { "Model" }
                }
            }
            label.hidden for=(id) { "Message " (index + 1) }
            (lines("content", &id, 2, content, fault))
        }
    }
}

fn number(field: &super::form::NumberField, typed: &str, fault: Option<&FieldFault>) -> Markup {
    let given = |text: &'static str| (!text.is_empty()).then_some(text);
    let is_wrong = fault.is_some_and(|fault| fault.field == field.name);
    html! {
        div {
            label for=(field.name) { (field.label) }
            input type="number" id=(field.name) name=(field.name) value=(typed) step=(field.step)
                min=[given(field.least)] max=[given(field.most)] aria-invalid=[is_wrong.then_some("true")]
                aria-describedby=[is_wrong.then_some("fault")];
        }
    }
}

/// The columns, side by side.
pub(super) fn columns(columns: &[Column], server: &str, currency: &str) -> Markup {
    html! { div.columns { @for (index, one) in columns.iter().enumerate() { (column(index, one, server, currency)) } } }
}

fn column(index: usize, column: &Column, server: &str, currency: &str) -> Markup {
    let Column { request, price, outcome } = column;
    let (answer, failure) = match outcome {
        Some(Outcome::Answered(answer)) => (Some(answer), None),
        Some(Outcome::Failed(message)) => (None, Some(message)),
        None => (None, None),
    };
    let per_million = price.map(|price| [price.prompt, price.cached_prompt.unwrap_or(price.prompt), price.completion]);
    let per_million = per_million.map(|prices| prices.map(|price| price.to_string()).join(" "));
    let title = format!("column-{index}");
    html! {
        section.card.column aria-labelledby=(title) data-model=(request.model()) data-price=[per_million]
            data-currency=(currency) {
            h2 id=(title) { bdi { (request.model()) } }
            p.fault role="alert" data-fault hidden[failure.is_none()] { bdi { (failure.map_or("", String::as_str)) } }
            div.answer data-answer dir="auto" { (answer.map_or("", |answer| &answer.text)) }
            (tokens(answer))
            (facts(answer, price.as_ref(), currency))
            button.quiet type="submit" form="ask" name="keep" formaction="/ui/playground/go-on" data-keep
                value=(answer.map_or("", |answer| &answer.text)) hidden[answer.is_none()] { "Go on with this answer" }
            (code(request, server))
        }
    }
}

/// The request as code.
pub(super) fn code(request: &ApiRequest, server: &str) -> Markup {
    html! {
        @for (label, text) in [("curl", request.curl(server)), ("Python", request.python(server))] {
            details.code {
                summary { "As " (label) }
                button.quiet type="button" data-copy hidden { "Copy" }
                pre dir="ltr" { code { (text) } }
            }
        }
    }
}

fn tokens(answer: Option<&Answer>) -> Markup {
    let tokens = answer.map_or(&[][..], |answer| &answer.tokens);
    html! {
        details.probabilities open hidden[tokens.is_empty()] {
            summary { "Probabilities of the tokens" }
            p.hint { "Point at a token, or move the focus to it: what else could have stood there." }
            div.tokens data-tokens { @for token in tokens { (self::token(token)) } }
        }
    }
}

fn token(token: &Token) -> Markup {
    html! {
        span class={ "token " (sureness(token.logprob)) } tabindex="0" {
            (token.text.replace('\n', "⏎\n"))
            span.tip role="tooltip" dir="ltr" {
                strong { bdi { (shown(&token.text)) } " " (percent(token.logprob)) }
                @for (other, logprob) in token.top.iter().filter(|(other, _)| *other != token.text) {
                    br;
                    bdi { (shown(other)) } " " (percent(*logprob))
                }
            }
        }
    }
}

/// Returns a token as it is named: its spaces and breaks can be seen.
fn shown(token: &str) -> String {
    serde_json::Value::from(token).to_string()
}

fn percent(logprob: f64) -> String {
    let percent = 100.0 * logprob.exp();
    if percent > 0.0 && percent < 0.1 { "below 0.1 %".into() } else { format!("{percent:.1} %") }
}

/// Returns the class of a token, by which it is underlined.
fn sureness(logprob: f64) -> &'static str {
    match logprob.exp() {
        0.9.. => "sure",
        0.5.. => "likely",
        0.1.. => "doubtful",
        _ => "rare",
    }
}

/// What the answer took and cost; facts that are not known yet are hidden.
fn facts(answer: Option<&Answer>, price: Option<&Price>, currency: &str) -> Markup {
    let of = |read: &dyn Fn(&Answer) -> String| answer.map(read).unwrap_or_default();
    let cost = |answer: &Answer| match price {
        Some(price) => format::money(answer.usage.cost(price), currency),
        None => "no price is set".into(),
    };
    let rows = [
        ("first", "First token after", String::new()),
        ("took", "Took", of(&|answer| format!("{:.2} s", answer.took.as_secs_f64()))),
        ("speed", "Tokens per second", of(&speed)),
        ("tokens", "Tokens", of(&used)),
        ("cost", "Cost", of(&cost)),
        ("end", "Ended", of(&|answer| end(&answer.end).into())),
    ];
    html! {
        dl.facts {
            @for (name, label, value) in rows {
                div hidden[value.is_empty()] { dt { (label) } dd data-fact=(name) { (value) } }
            }
        }
    }
}

fn speed(answer: &Answer) -> String {
    let seconds = answer.took.as_secs_f64();
    let tokens = answer.usage.completion as f64;
    if seconds > 0.0 {
        format!("{}, with the reading of the prompt", words::figure(tokens / seconds))
    } else {
        String::new()
    }
}

fn used(answer: &Answer) -> String {
    let usage = &answer.usage;
    let count = |tokens: u64| format::count(tokens as f64);
    let cached = if usage.cached > 0 { format!(" ({} from the cache)", count(usage.cached)) } else { String::new() };
    format!("{} read{cached}, {} written", count(usage.prompt), count(usage.completion))
}

fn end(reason: &str) -> &'static str {
    match reason {
        "length" => "at the most tokens",
        "stop" => "by itself, or at a stop text",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Map;

    use super::*;
    use crate::api::ui::playground::answers::Usage;
    use crate::api::ui::playground::form::Turn;
    use crate::api::ui::playground::request::CHAT;

    const HOSTILE: &str = "</textarea><script>alert(1)</script>\"'";

    #[test]
    fn texts_of_users_and_models_stay_texts() {
        let ask = Ask {
            models: vec![HOSTILE.into()],
            system: HOSTILE.into(),
            turns: vec![Turn { is_answer: true, content: HOSTILE.into() }],
            prompt: HOSTILE.into(),
            stop: HOSTILE.into(),
            schema: HOSTILE.into(),
            ..Ask::default()
        };
        let fault = FieldFault { field: "schema", message: HOSTILE.into() };
        let token =
            Token { text: HOSTILE.into(), logprob: -0.1, top: vec![(HOSTILE.into(), -0.1), ("b".into(), -9.0)] };
        let answered = Outcome::Answered(Answer { text: HOSTILE.into(), tokens: vec![token], ..Answer::default() });
        let column = |outcome| Column { request: ApiRequest::new(CHAT, HOSTILE, &Map::new()), price: None, outcome };
        let shown = [
            form(&ask, &[HOSTILE.into()], Some(&fault)).into_string(),
            columns(&[column(Some(answered)), column(Some(Outcome::Failed(HOSTILE.into())))], "http://a", "USD")
                .into_string(),
        ];
        for markup in shown {
            assert!(!markup.contains("<script"), "{markup}");
            assert!(markup.contains("&lt;/textarea&gt;&lt;script&gt;"), "{markup}");
        }
    }

    #[test]
    fn an_answer_is_shown_with_what_it_took_and_cost() {
        let answer = Answer {
            text: "hello".into(),
            end: "length".into(),
            usage: Usage { prompt: 1_200, cached: 200, completion: 50 },
            took: Duration::from_secs(2),
            ..Answer::default()
        };
        let price = Price { prompt: 2.0, cached_prompt: Some(1.0), completion: 10.0, training: 0.0, batch: None };
        let request = ApiRequest::new(CHAT, "demo", &Map::new());
        let column = Column { request, price: Some(price), outcome: Some(Outcome::Answered(answer)) };
        let markup = columns(&[column], "http://box", "EUR").into_string();
        for words in [
            "1,200 read (200 from the cache), 50 written",
            "0.0027 EUR",
            "25, with the reading",
            "at the most tokens",
            "data-price=\"2 1 10\"",
            "value=\"hello\"",
        ] {
            assert!(markup.contains(words), "{words}\n{markup}");
        }
    }

    #[test]
    fn probabilities_are_percentages_with_a_mark_besides_the_colour() {
        assert_eq!(
            (percent(0.0), percent(-1.0), percent(-20.0)),
            ("100.0 %".into(), "36.8 %".into(), "below 0.1 %".into())
        );
        assert_eq!(percent(f64::NEG_INFINITY), "0.0 %");
        assert_eq!(
            (sureness(0.0), sureness(-0.5), sureness(-1.0), sureness(-3.0)),
            ("sure", "likely", "doubtful", "rare")
        );
    }
}
