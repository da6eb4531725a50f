//! What was found in the files of a new fine-tune: what was understood, with a few examples as they are learned, or the
//! faults with their lines.

use maud::{Markup, html};

use crate::api::http::error::Problem;
use crate::datasets::faults::{Faults, ShownLine};
use crate::datasets::parse::Format;
use crate::datasets::{DatasetReport, NotedLines, ShownExample, ShownPiece};
use crate::format;
use crate::jobs::worker::examination::{Examination, Finding, Understood};

/// Id of the section, by which the script asks for it.
pub(super) const ID: &str = "understood";

/// Shows the section; `None` if the files have not been read yet. `again` leads to the form for another file.
pub(super) fn section(found: Option<&Result<Examination, Problem>>, check: &str, again: &str) -> Markup {
    html! {
        section id=(ID) data-part data-missing[found.is_none()] aria-labelledby="understood-title" {
            h2 id="understood-title" { "What was understood" }
            @match found {
                None => p { a href=(check) { "Read the file" } " – it is large, so that this takes a moment." },
                Some(Err(problem)) => p.fault role="alert" { bdi { (problem.error.message) } },
                Some(Ok(found)) => {
                    (finding(&found.training, "training file", again))
                    @if let Some(validation) = &found.validation {
                        h3 { "Validation file" }
                        (finding(validation, "validation file", again))
                        (note(&found.shared, "validation example", "is in the training file, too", "are in the training file, too"))
                    }
                }
            }
        }
    }
}

fn finding(found: &Finding, name: &str, again: &str) -> Markup {
    html! {
        @match found {
            Finding::Understood(understood) => (understood_of(understood)),
            Finding::Refused(message) => p.fault role="alert" { bdi { (message) } },
            Finding::Faulty(found) => {
                (faults(found, &format!("The {name} has"), "Line"))
                p { a href=(again) { "Choose the corrected file" } }
            }
        }
    }
}

/// Shows faults by line, each with what to change and with the lines themselves. `word` is that for a line.
pub(super) fn faults(found: &Faults, begin: &str, word: &str) -> Markup {
    let [lines, others] = found.counts();
    let plural =
        |count: usize, one: &str, many: &str| if count == 1 { one.to_owned() } else { format!("{count} {many}") };
    let words = word.to_lowercase();
    html! {
        p.fault role="alert" {
            (begin) " faults on " (plural(lines, &format!("one {words}"), &format!("{words}s"))) "."
        }
        ul.faults {
            @for fault in found.shown() {
                li {
                    p { bdi { (reworded(&fault.sentence, word)) } }
                    @for line in &fault.lines { (shown_line(line, word)) }
                }
            }
            @if others > 0 {
                li { "And " (plural(others, &format!("one more {words}"), &format!("more {words}s"))) " with other faults." }
            }
        }
    }
}

/// Faults begin with the word "Line"; those of other things than lines with theirs.
fn reworded(sentence: &str, word: &str) -> String {
    match sentence.strip_prefix("Line") {
        Some(rest) => format!("{word}{rest}"),
        None => sentence.to_owned(),
    }
}

fn shown_line(line: &ShownLine, word: &str) -> Markup {
    html! {
        figure.line {
            figcaption.hint { (word) " " (line.number) }
            pre tabindex="0" dir="auto" {
                @if line.cut[0] { "…" }
                @if line.text.is_empty() { span.soft { "(nothing)" } } @else { code { (line.text) } }
                @if line.cut[1] { "…" }
            }
        }
    }
}

fn understood_of(understood: &Understood) -> Markup {
    let Understood { report, examples } = understood;
    let count = |number: usize| format::count(number as f64);
    html! {
        dl.facts {
            @if let Some(format) = report.format { dt { "Format" } dd { (format_words(format)) } }
            dt { "Examples" } dd { (count(report.examples)) }
            @if report.is_of_texts() {
                dt { "Texts" } dd { (count(report.texts)) }
                dt { "Tokens" } dd { (count(report.tokens)) }
            } @else {
                dt { "Tokens" } dd { (count(report.tokens)) ", " (count(report.target_tokens)) " of them learned" }
            }
            dt { "Longest example" } dd { (count(report.longest)) " tokens" }
            dt { "Duplicates" } dd { (if report.duplicates.count == 0 { "none".into() } else { count(report.duplicates.count) }) }
        }
        (notes(report))
        @if !examples.is_empty() {
            h3 { @if examples.len() == 1 { "The first example, as the model reads it" } @else { "The first examples, as the model reads them" } }
            @if examples.iter().any(|example| !matches!(example, ShownExample::Texts(..))) {
                p.hint { mark.learned { "Marked" } " is what the model learns to write; the rest it only reads." }
            }
            @for (index, example) in examples.iter().enumerate() { (shown_example(index + 1, example)) }
        }
    }
}

fn format_words(format: Format) -> &'static str {
    match format {
        Format::Completion => "prompts and completions",
        Format::Chat => "chats",
        Format::Pair => "pairs of texts that belong together",
        Format::ScoredPair => "pairs of texts with a score",
        Format::LabelledPair => "pairs of texts with a label",
    }
}

/// What of the file is worth a look.
fn notes(report: &DatasetReport) -> Markup {
    let contradiction = report.first_contradiction.map_or_else(String::new, |(line, earlier)| {
        format!(" an earlier one, such as line {line} line {earlier}: the model cannot learn both")
    });
    html! {
        (note(&report.truncated, "example", "is cut at the end, as it is longer than the model takes", "are cut at the end, as they are longer than the model takes"))
        (note(&report.dropped, "example", "is left out: nothing of its answer fits", "are left out: nothing of their answers fits"))
        (note(&report.duplicates, "example", "repeats an earlier one", "repeat an earlier one"))
        (note(&report.contradictions, "example", &format!("contradicts{contradiction}"), &format!("contradict{contradiction}")))
        (note(&report.altered, "example", "has an answer that the chat template changes: it is not learned as it stands", "have an answer that the chat template changes: it is not learned as it stands"))
        (note(&report.ends_named, "example", "has an answer that names a token that ends answers: a served answer ends there", "have an answer that names a token that ends answers: a served answer ends there"))
    }
}

fn note(lines: &NotedLines, what: &str, one: &str, many: &str) -> Markup {
    html! {
        @match lines.count {
            0 => {}
            1 => p.event-warning { "One " (what) " " (one) " (" (lines.to_string()) ")." },
            count => p.event-warning { (format::count(count as f64)) " " (what) "s " (many) " (" (lines.to_string()) ")." },
        }
    }
}

fn shown_example(number: usize, example: &ShownExample) -> Markup {
    let label = format!("Example {number}");
    html! {
        @match example {
            ShownExample::Answer(pieces) => (shown_pieces(&label, pieces)),
            ShownExample::Preference([chosen, rejected]) => {
                (shown_pieces(&format!("{label}, the better answer"), chosen))
                (shown_pieces(&format!("{label}, the worse answer"), rejected))
            }
            ShownExample::Texts(texts, number) => figure.line {
                figcaption.hint {
                    (label) @if let Some(number) = number { ", score or label " (number) }
                }
                ol.texts { @for text in texts { li { pre dir="auto" { (text) } } } }
            },
        }
    }
}

fn shown_pieces(label: &str, pieces: &[ShownPiece]) -> Markup {
    html! {
        figure.line {
            figcaption.hint { (label) }
            pre.example tabindex="0" dir="auto" {
                @for piece in pieces {
                    @if piece.weight >= 1.0 {
                        mark.learned { (piece.text) }
                    } @else if piece.weight > 0.0 {
                        mark.learned title={ "Learned with the weight " (piece.weight) } { (piece.text) }
                    } @else {
                        span { (piece.text) }
                    }
                    @if piece.skipped > 0 { span.soft { " … " (format::count(piece.skipped as f64)) " tokens … " } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "<script>alert(1)</script>\"'\u{202e}shalom";

    #[test]
    fn faults_show_their_lines_as_text() {
        let mut found = Faults::default();
        found.push_shown(3, "message 2: has the role `bot`: use `assistant`", Some(HOSTILE.as_bytes()));
        found.push_shown(5, "is empty: remove it", Some(b""));
        let page = faults(&found, "The training file has", "Line").into_string();
        assert!(page.contains("Line 3 (message 2) has the role `bot`: use `assistant`."), "{page}");
        assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script>"), "{page}");
        assert!(page.contains("faults on 2 lines") && page.contains("(nothing)"), "{page}");
        let page = faults(&found, "The array has", "Element").into_string();
        assert!(page.contains("Element 3 (message 2)") && page.contains("2 elements"), "{page}");
    }

    #[test]
    fn what_is_learned_is_marked_and_stays_text() {
        let piece = |text: &str, weight| ShownPiece { text: text.into(), weight, skipped: 0 };
        let cut = ShownPiece { skipped: 1234, ..piece("read", 0.0) };
        let examples = vec![
            ShownExample::Answer(vec![cut, piece(HOSTILE, 1.0)]),
            ShownExample::Texts(vec!["<b>".into()], Some(0.5)),
        ];
        let report =
            DatasetReport { format: Some(Format::Chat), examples: 12, target_tokens: 34, ..Default::default() };
        let page = understood_of(&Understood { report, examples }).into_string();
        assert!(page.contains("<mark class=\"learned\">&lt;script&gt;alert(1)"), "{page}");
        assert!(page.contains("<span>read</span>") && page.contains("1,234 tokens"), "{page}");
        assert!(!page.contains("<script>") && !page.contains("<b>"), "{page}");
        assert!(page.contains("34 of them learned"), "{page}");
    }
}
