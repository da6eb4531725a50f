//! Bars drawn on the server. They say nothing that the tables beside them do not, so screen readers skip them.

use maud::{Markup, html};

/// Width of a column and its place, and the height of the drawing, in units of its own.
const WIDTH: f64 = 8.0;
const STEP: f64 = 10.0;
const HEIGHT: f64 = 100.0;

/// Draws a column for each entry, of up to three parts that stand on one another, with what the parts are.
pub(super) fn columns(entries: &[(String, [f64; 3])], parts: [&str; 3]) -> Markup {
    let most = entries.iter().map(|(_, values)| values.iter().sum::<f64>()).fold(0.0, f64::max);
    let across = STEP * entries.len() as f64;
    html! {
        @if most > 0.0 {
            svg.bars viewBox={ "0 0 " (across) " " (HEIGHT) } preserveAspectRatio="none" aria-hidden="true" {
                @for (index, (label, values)) in entries.iter().enumerate() {
                    @for (part, value) in values.iter().enumerate() {
                        @let top = values[..=part].iter().sum::<f64>();
                        @if *value > 0.0 {
                            rect class={ "bar-" (part + 1) } x=(STEP * index as f64 + 1.0) width=(WIDTH)
                                y=(unit(HEIGHT * (1.0 - top / most))) height=(unit(HEIGHT * value / most)) {
                                title { (label) ": " (parts[part]) }
                            }
                        }
                    }
                }
            }
            p.hint {
                @if let (Some((first, _)), Some((last, _))) = (entries.first(), entries.last()) {
                    (first) " to " (last) ". From below: "
                }
                @for (part, name) in parts.iter().enumerate() {
                    span class={ "legend bar-" (part + 1) } { (name) } " "
                }
            }
        }
    }
}

/// Draws how much of `most` a value is.
pub(super) fn share(value: f64, most: f64) -> Markup {
    html! {
        @if most > 0.0 {
            svg.share viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
                rect.bar-1 x="0" y="0" height="8" width=(unit(100.0 * value / most)) {}
            }
        }
    }
}

fn unit(length: f64) -> String {
    format!("{length:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_column_stand_on_one_another() {
        let entries = [("a".to_owned(), [1.0, 3.0, 0.0]), ("b".to_owned(), [0.0; 3])];
        let text = columns(&entries, ["one", "two", "three"]).into_string();
        assert_eq!(text.matches("<rect").count(), 2);
        assert!(
            text.contains("y=\"75.00\" height=\"25.00\"") && text.contains("y=\"0.00\" height=\"75.00\""),
            "{text}"
        );
        assert_eq!(columns(&[], ["", "", ""]).into_string(), "");
    }
}
