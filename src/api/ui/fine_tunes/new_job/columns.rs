//! The step between a table and its training lines: its first rows, and a form for each kind of line that could be made
//! of them. The table is a file of the visitor's with the purpose `user_data` until it is converted or discarded.

use axum::Form;
use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use maud::{Markup, html};

use super::conversion::{Conversion, Converted};
use super::draft::url_pairs::encode;
use super::draft::{DISTILLATION, Draft};
use super::kinds::{Kind, SEPARATORS, Source, kind};
use super::tables::{Cell, MAX_COLUMNS, Rows};
use super::targets::{PROMPTS, TARGETS, Target};
use super::{PATH, RAW, SECTION, TRAINING, deposit, findings, settings_of};
use crate::api::http::error::{Problem, Result};
use crate::api::http::query::QueryPairs;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::page;
use crate::api::ui::security::see;
use crate::api::ui::visitor::Visitor;
use crate::off_thread::off_thread;
use crate::store::files::File;

/// Rows that are shown, and characters of a cell.
const SHOWN_ROWS: usize = 5;
const SHOWN_CELL: usize = 200;

/// The beginning of a file.
struct Beginning {
    source: Source,
    columns: Vec<String>,
    rows: Vec<Result<Vec<Cell>, String>>,
}

/// What a form or an address says of the file.
struct Asked(Vec<(String, String)>);

impl Asked {
    fn get(&self, name: &str) -> &str {
        self.0.iter().rev().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// Returns how the file is to be read: as it was recognised, unless a person said otherwise.
    fn source(&self, recognised: Source) -> Source {
        let Source::Table { separator, header } = recognised else { return recognised };
        let chosen = SEPARATORS.iter().find(|(word, ..)| *word == self.get("separator"));
        Source::Table {
            separator: chosen.map_or(separator, |(.., chosen)| *chosen),
            header: match self.get("header") {
                "yes" => true,
                "no" => false,
                _ => header,
            },
        }
    }
}

/// Shows the step.
pub(super) async fn show(
    State(pages): State<Pages>,
    visitor: Visitor,
    QueryPairs(pairs): QueryPairs,
) -> Result<Markup, Fault> {
    Ok(step(&pages, &visitor, &Asked(pairs), None).await?)
}

async fn step(pages: &Pages, visitor: &Visitor, asked: &Asked, fault: Option<Markup>) -> Result<Markup> {
    let file = find(pages, visitor, asked).await?;
    let beginning = beginning(pages, &file, asked).await?;
    let draft = Draft::of(&asked.0);
    let title = "Which column is which?";
    let body = html! {
        p.hint { a href=(SECTION.path) { "All fine-tunes" } }
        h1 { (title) }
        p { bdi { (file.filename) } " is " (words(beginning.source)) ". Choose below what its columns are, and each row becomes an example." }
        @if let Some(fault) = fault { section.card aria-label="What is wrong" { (fault) } }
        (preview(&beginning))
        (reading(&file, &beginning, &draft))
        @if beginning.columns.is_empty() {
            p.fault { "No row could be read." }
        } @else {
            @if beginning.source == Source::Array { (as_it_is(&file, &draft)) }
            @let targets = if draft.method() == DISTILLATION { PROMPTS } else { TARGETS };
            @let best = best(targets, &beginning.columns);
            @for target in targets { (target_form(target, target.id == best, &file, &beginning, &draft, asked)) }
        }
        form method="post" action={ (PATH) "/discard" } {
            input type="hidden" name="file" value=(file.id);
            p { button.quiet { "Discard the file" } }
        }
    };
    Ok(page(&visitor.frame(title, SECTION.path), body))
}

/// Finds the visitor's file.
async fn find(pages: &Pages, visitor: &Visitor, asked: &Asked) -> Result<File> {
    let file = pages.api.store.file(&visitor.caller.organization, asked.get("file")).await?;
    if file.purpose != RAW {
        return Err(Problem::bad_request(format!(
            "The file {} has the purpose '{}': only tables are converted.",
            file.id, file.purpose
        )));
    }
    Ok(file)
}

/// Reads the beginning of the file.
async fn beginning(pages: &Pages, file: &File, asked: &Asked) -> Result<Beginning> {
    let mut content = pages.api.store.open_file(file).await?;
    let filename = file.filename.clone();
    let context = format!("read the file {}", file.id);
    let choice = Asked(asked.0.clone());
    off_thread("look at a table", move || {
        let source = match kind(&mut content, &filename).map_err(Problem::io(context.clone()))? {
            Kind::Convertible(source) => choice.source(source),
            Kind::Refused(why) => return Err(Problem::bad_request(why)),
            Kind::Lines => {
                return Err(Problem::bad_request("The file is neither a table nor a JSON array of objects."));
            }
        };
        let read = || -> std::io::Result<Beginning> {
            let mut rows = Rows::open(content.try_clone()?, source)?;
            let mut shown = Vec::new();
            while let Some((_, row)) = rows.next_row()? {
                shown.push(row);
                if shown.len() == SHOWN_ROWS {
                    break;
                }
            }
            Ok(Beginning { source, columns: rows.columns, rows: shown })
        };
        read().map_err(Problem::io(context))
    })
    .await
}

fn words(source: Source) -> String {
    match source {
        Source::Array => "a JSON array".into(),
        Source::Table { separator, .. } => {
            let name = SEPARATORS.iter().find(|(.., known)| *known == separator).map_or("a sign", |(name, ..)| name);
            format!("a table with a {name} between its cells")
        }
    }
}

fn preview(beginning: &Beginning) -> Markup {
    let cut = |text: &str| {
        let mut cut: String = text.chars().take(SHOWN_CELL).collect();
        if cut.len() < text.len() {
            cut.push('…');
        }
        cut
    };
    html! {
        div.scroll tabindex="0" role="region" aria-label="First rows" {
            table {
                caption { "The first rows" }
                thead { tr { @for column in beginning.columns.iter().take(MAX_COLUMNS) { th scope="col" { bdi { (cut(column)) } } } } }
                tbody {
                    @for row in &beginning.rows {
                        tr {
                            @match row {
                                Ok(cells) => @for cell in cells.iter().take(MAX_COLUMNS) {
                                    td.text dir="auto" { @match cell { Cell::Text(text) => (cut(text)), Cell::Nested => span.soft { "(an array or an object)" } } }
                                },
                                Err(fault) => td.fault colspan=(beginning.columns.len().clamp(1, MAX_COLUMNS)) { "This row " (fault) },
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The form for how the table is read.
fn reading(file: &File, beginning: &Beginning, draft: &Draft) -> Markup {
    let Source::Table { separator, header } = beginning.source else { return html! {} };
    html! {
        form method="get" action={ (PATH) "/columns" } {
            (hidden(file, draft))
            div.row {
                label for="separator" { "Between the cells" }
                select id="separator" name="separator" {
                    @for (word, label, byte) in SEPARATORS { option value=(word) selected[byte == separator] { (label) } }
                }
                label for="header" { "First row" }
                select id="header" name="header" {
                    option value="yes" selected[header] { "names the columns" }
                    option value="no" selected[!header] { "is a row like the others" }
                }
                button.quiet type="submit" { "Read it so" }
            }
        }
    }
}

/// The fields of all forms of this step.
fn hidden(file: &File, draft: &Draft) -> Markup {
    html! {
        input type="hidden" name="file" value=(file.id);
        @for (name, value) in draft.pairs() { input type="hidden" name=(name) value=(value); }
    }
}

fn source_fields(source: Source) -> Markup {
    html! {
        @if let Source::Table { separator, header } = source {
            @for (word, _, byte) in SEPARATORS { @if byte == separator { input type="hidden" name="separator" value=(word); } }
            input type="hidden" name="header" value=(if header { "yes" } else { "no" });
        }
    }
}

fn as_it_is(file: &File, draft: &Draft) -> Markup {
    html! {
        form.card method="post" action={ (PATH) "/columns" } {
            (hidden(file, draft))
            input type="hidden" name="format" value="objects";
            p { "If the objects of the array have the form of training lines already, each becomes a line as it is." }
            p { button type="submit" { "Make a line of each object" } }
        }
    }
}

/// The kind of line that the names of the columns fit best.
fn best(targets: &'static [Target], columns: &[String]) -> &'static str {
    let share = |target: &Target| {
        let guesses = target.guess(columns);
        let required: Vec<_> = target.roles.iter().zip(&guesses).filter(|(role, _)| role.required).collect();
        let found = required.iter().filter(|(_, guess)| guess.is_some()).count();
        // Of two that fit wholly, the one that takes more of the columns.
        (found == required.len(), if found == required.len() { guesses.iter().flatten().count() } else { 0 })
    };
    let mut best = &targets[0];
    for target in targets {
        if share(target) > share(best) {
            best = target;
        }
    }
    best.id
}

fn target_form(
    target: &Target,
    is_open: bool,
    file: &File,
    beginning: &Beginning,
    draft: &Draft,
    asked: &Asked,
) -> Markup {
    let columns = &beginning.columns;
    let is_asked = asked.get("format") == target.id;
    let guesses = if is_asked {
        target.roles.iter().map(|role| asked.get(role.id).parse().ok()).collect()
    } else {
        target.guess(columns)
    };
    let any_asked = !asked.get("format").is_empty();
    html! {
        details.card open[if any_asked { is_asked } else { is_open }] {
            summary { strong { (target.title) } }
            form method="post" action={ (PATH) "/columns" } {
                (hidden(file, draft))
                (source_fields(beginning.source))
                input type="hidden" name="format" value=(target.id);
                p.hint { (target.hint) }
                div.fields {
                    @for (role, guess) in target.roles.iter().zip(guesses) {
                        @let id = format!("{}-{}", target.id, role.id);
                        div {
                            label for=(id) { (role.label) @if !role.required { " (if there is one)" } }
                            select id=(id) name=(role.id) required[role.required] {
                                option value="" selected[guess.is_none()] { @if role.required { "Choose a column" } @else { "None" } }
                                @for (index, column) in columns.iter().take(MAX_COLUMNS).enumerate() {
                                    option value=(index) selected[guess == Some(index)] { (column) }
                                }
                            }
                        }
                    }
                    @if target.id == "chat" {
                        div {
                            label for="system-text" { "System message of all others (if any)" }
                            input type="text" id="system-text" name="system_text" value=(asked.get("system_text")) dir="auto";
                        }
                    }
                }
                p {
                    label.check {
                        input type="checkbox" name="skip" value="yes" checked[asked.get("skip") == "yes"];
                        " Leave out rows that lack one of them"
                    }
                }
                p { button type="submit" { "Make the examples" } }
            }
        }
    }
}

/// Makes training lines, uploads them, and goes on to the settings.
pub(super) async fn convert(
    State(pages): State<Pages>,
    visitor: Visitor,
    form: Result<Form<Vec<(String, String)>>, FormRejection>,
) -> Result<Response, Fault> {
    let Form(pairs) = form.map_err(|fault| Problem::bad_request(fault.body_text()))?;
    let asked = Asked(pairs);
    let file = find(&pages, &visitor, &asked).await?;
    let Beginning { source, columns, .. } = beginning(&pages, &file, &asked).await?;
    let conversion = match conversion(&asked, source, &columns) {
        Ok(conversion) => conversion,
        Err(why) => return again(&pages, &visitor, &asked, html! { p.fault role="alert" { (why) } }).await,
    };
    let content = pages.api.store.open_file(&file).await?;
    let scratch = pages.api.store.scratch.to_path_buf();
    let (path, left_out) = match off_thread("convert a table", move || conversion.run(content, &scratch)).await? {
        Converted::Lines { path, left_out } => (path, left_out),
        Converted::Faulty(faults) => {
            let word = source.row_word();
            let fault = findings::faults(&faults, "No file was made, as there are", word);
            return again(&pages, &visitor, &asked, fault).await;
        }
    };
    match deposit::upload(&pages, &visitor, &path, &renamed(&file.filename), TRAINING).await? {
        Ok(id) => {
            // What was only kept for this step. If it cannot be deleted now, it can be later, as any file.
            if let Err(refusal) = deposit::discard(&pages, &visitor, &file.id).await? {
                tracing::debug!(file = file.id, "a converted table stays: {}", refusal.message);
            }
            Ok(see(&settings_of(Draft::of(&asked.0), &id, left_out)))
        }
        Err(refusal) => {
            again(&pages, &visitor, &asked, html! { p.fault role="alert" { bdi { (refusal.message) } } }).await
        }
    }
}

/// Shows the step with what is wrong.
async fn again(pages: &Pages, visitor: &Visitor, asked: &Asked, fault: Markup) -> Result<Response, Fault> {
    Ok((StatusCode::BAD_REQUEST, step(pages, visitor, asked, Some(fault)).await?).into_response())
}

/// Reads the form, or says what is missing.
fn conversion(asked: &Asked, source: Source, columns: &[String]) -> Result<Conversion, String> {
    let format = asked.get("format");
    let target = match format {
        "objects" if source == Source::Array => None,
        _ => Some(Target::of(format).ok_or("Choose what the columns are.")?),
    };
    let roles = target.map_or(&[][..], |target| target.roles);
    let mut chosen = Vec::with_capacity(roles.len());
    for role in roles {
        let column = asked.get(role.id).parse().ok().filter(|index| *index < columns.len());
        if column.is_none() && role.required {
            return Err(format!("Choose the column that holds \"{}\".", role.label));
        }
        if column.is_some() && chosen.contains(&column) {
            return Err("One column stands for two things: choose another one for one of them.".into());
        }
        chosen.push(column);
    }
    let (system, skip) = (asked.get("system_text").to_owned(), asked.get("skip") == "yes");
    Ok(Conversion { source, target, columns: chosen, system, skip })
}

/// Names the file of lines after the table.
fn renamed(filename: &str) -> String {
    let stem = filename.rsplit_once('.').map_or(filename, |(stem, _)| stem);
    format!("{stem}.jsonl")
}

/// Deletes a table that is not wanted any more.
pub(super) async fn discard(
    State(pages): State<Pages>,
    visitor: Visitor,
    form: Result<Form<Vec<(String, String)>>, FormRejection>,
) -> Result<Response, Fault> {
    let Form(pairs) = form.map_err(|fault| Problem::bad_request(fault.body_text()))?;
    // Found first: only ids of tables become part of a path.
    let file = find(&pages, &visitor, &Asked(pairs)).await?;
    deposit::discard(&pages, &visitor, &file.id).await??;
    Ok(see(PATH))
}

/// Returns the address of this step for a file that is no training file yet.
pub(super) fn address(file: &str, draft: &Draft) -> String {
    format!("{PATH}/columns?{}", encode([("file", file)].into_iter().chain(draft.pairs())))
}
