//! Fields of the form of a distillation, and what can be chosen in them.

use maud::{Markup, html};

use super::super::draft::Draft;
use super::request::{ANSWER, LONGEST, is_stored};
use crate::api::ui::Pages;
use crate::api::ui::words::isolated;
use crate::store::files::File;

/// What comes before the name of a teacher of the configuration.
const TEACHER: &str = "teacher:";

/// Where prompts come from.
pub(super) fn prompts_fields(fields: &Fields<'_>, files: &[File], models: &[String]) -> Markup {
    let draft = fields.draft;
    let chosen = draft.get("prompts");
    let is_listed = files.iter().any(|file| file.id == chosen);
    html! {
        h2 { "Prompts" }
        fieldset {
            legend { "Where they come from" }
            label.choice { input type="radio" name="from" value="file" checked[!is_stored(draft)]; "A file" }
            label.choice { input type="radio" name="from" value="stored" checked[is_stored(draft)]; "Chats that this server has stored" }
        }
        div.fields {
            div {
                label for="prompts" { "File of prompts" }
                select id="prompts" name="prompts" aria-describedby="prompts-hint" aria-invalid=[fields.invalid("prompts")] {
                    option value="" selected[chosen.is_empty()] { "Choose a file" }
                    @if !chosen.is_empty() && !is_listed { option value=(chosen) selected { (chosen) } }
                    @for file in files {
                        option value=(file.id) selected[file.id == chosen] { (isolated(&file.filename)) " (" (file.id) ")" }
                    }
                }
                p.hint id="prompts-hint" { "Or " a href="#upload-title" { "upload one below" } ". An answer at the end of a line is left out." }
            }
        }
        details open[is_stored(draft)] {
            summary { "Which stored chats" }
            p.hint { "Without a choice the newest ones. Programs ask to have a chat stored with " span.mono { "store" } "." }
            div.fields {
                div {
                    label for="stored_model" { "Answered by" }
                    select id="stored_model" name="stored_model" {
                        option value="" { "Any model" }
                        (options(models, draft.get("stored_model")))
                    }
                }
                (fields.text("note", "Note", "A name in the chats' metadata."))
                (fields.text("note_value", "Value of the note", "As it was written there."))
                (fields.date("created_after", "From"))
                (fields.date("created_before", "Until"))
                (fields.number("limit", "Chats at the most", ("1", "100000", "1"), "The newest; 10,000 if left empty."))
            }
        }
    }
}

/// Which answers are fit to learn from.
pub(super) fn filter_fields(fields: &Fields<'_>, pages: &Pages, models: &[String]) -> Markup {
    let draft = fields.draft;
    let chosen = draft.get("filter");
    html! {
        h2 { "Answers that are kept" }
        p { "Answers that were cut, that are empty or that refuse are always left out." }
        div.fields {
            div {
                label for="filter" { "And of the others" }
                select id="filter" name="filter" aria-invalid=[fields.invalid("filter")] {
                    @for (word, label) in FILTERS { option value=(word) selected[word == chosen] { (label) } }
                }
            }
            (fields.text("filter_text", "The text", "For answers that must contain a text: a word, or a sign of the right form."))
            (fields.text("filter_field", "The field", &format!("For the right answer: where a line of the file has it; {ANSWER} if left empty.")))
            div {
                label for="judge" { "The judge" }
                select id="judge" name="judge" aria-describedby="judge-hint" aria-invalid=[fields.invalid("judge")] {
                    option value="" { "Choose a model" }
                    (teachers(pages, draft.get("judge"), models))
                }
                p.hint id="judge-hint" { "It reads each prompt with its answer, and is paid from the same budget." }
            }
            (fields.text("judge_rule", "A rule for the judge", "Such as: The answer must name one product."))
        }
        details open[chosen == "json"] {
            summary { "Graders of your own" }
            label for="graders" { "Graders as JSON" }
            textarea id="graders" name="graders" rows="6" maxlength=(LONGEST) spellcheck="false" aria-describedby="graders-hint" aria-invalid=[fields.invalid("graders")] { (draft.get("graders")) }
            p.hint id="graders-hint" { "An array of graders as the API takes them; choose \"What my graders pass\" above." }
        }
    }
}

/// The choices, by their words.
const FILTERS: [(&str, &str); 5] = [
    ("", "Keep all"),
    ("same", "Those that are the right answer, which the file has"),
    ("contains", "Those that contain a text"),
    ("judge", "Those that a model finds good"),
    ("json", "What my graders pass"),
];

/// The teachers of the configuration, with their prices, and the models of this server.
pub(super) fn teachers(pages: &Pages, chosen: &str, models: &[String]) -> Markup {
    let config = &pages.api.config;
    let named = |name: &str| chosen.strip_prefix(TEACHER) == Some(name);
    let is_known = chosen.is_empty()
        || models.iter().any(|model| model == chosen)
        || config.teachers.keys().any(|name| named(name));
    html! {
        @if !is_known { option value=(chosen) selected { (chosen) } }
        @for (name, teacher) in &config.teachers {
            @let price = teacher.price_per_million;
            option value={ (TEACHER) (name) } selected[named(name)] {
                (name)
                @if price.prompt > 0.0 || price.completion > 0.0 {
                    " (" (price.prompt) " " (config.currency) " per million tokens read, " (price.completion) " written)"
                }
            }
        }
        @for model in models { option value=(model) selected[model == chosen] { (model) } }
    }
}

pub(super) fn options(models: &[String], chosen: &str) -> Markup {
    html! {
        @if !chosen.is_empty() && !models.iter().any(|model| model == chosen) { option value=(chosen) selected { (chosen) } }
        @for model in models { option value=(model) selected[model == chosen] { (model) } }
    }
}

/// Makes the plain fields of the form; one that was refused is marked.
pub(super) struct Fields<'a> {
    pub draft: &'a Draft,
    /// The field at fault, as the API names it.
    pub param: Option<&'a str>,
}

impl Fields<'_> {
    pub(super) fn invalid(&self, name: &str) -> Option<&'static str> {
        let is_blamed = self.param.is_some_and(|param| param.split(['.', '[']).any(|part| part == name));
        is_blamed.then_some("true")
    }

    pub(super) fn number(
        &self,
        name: &str,
        label: &str,
        (least, most, step): (&str, &str, &str),
        hint: &str,
    ) -> Markup {
        let bound = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        html! {
            div {
                label for=(name) { (label) }
                input type="number" id=(name) name=(name) value=(self.draft.get(name)) min=[bound(least)] max=[bound(most)] step=(step)
                    aria-describedby={ (name) "-hint" } aria-invalid=[self.invalid(name)];
                p.hint id={ (name) "-hint" } { (hint) }
            }
        }
    }

    pub(super) fn text(&self, name: &str, label: &str, hint: &str) -> Markup {
        let most = if name == "suffix" { 64 } else { LONGEST };
        html! {
            div {
                label for=(name) { (label) }
                input type="text" id=(name) name=(name) value=(self.draft.get(name)) maxlength=(most) dir="auto"
                    aria-describedby={ (name) "-hint" } aria-invalid=[self.invalid(name)];
                p.hint id={ (name) "-hint" } { (hint) }
            }
        }
    }

    fn date(&self, name: &str, label: &str) -> Markup {
        html! {
            div {
                label for=(name) { (label) }
                input type="date" id=(name) name=(name) value=(self.draft.get(name)) aria-invalid=[self.invalid(name)];
            }
        }
    }
}
