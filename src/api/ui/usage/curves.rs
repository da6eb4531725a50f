//! The costs over requests per day, as lines with their table: a machine, more machines as one is not enough, and each
//! price. `costs.js` draws the table better where it runs.

use std::fmt::Write as _;

use maud::{Markup, html};

use crate::config::Price;
use crate::costs::{Comparison, Plan};
use crate::format;

/// Points of a line.
const POINTS: usize = 41;
/// Models that are drawn: more colours nobody tells apart.
const MOST_LINES: usize = 5;
/// How far beyond the requests asked for a break-even may lie to be drawn.
const FARTHEST: f64 = 20.0;
/// Size of the drawing, in units of its own.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 160.0;

/// Shows the lines of the first models.
pub(super) fn show(plan: &Plan, compared: &[(&str, Price, Comparison)], currency: &str) -> Markup {
    let drawn = &compared[..compared.len().min(MOST_LINES)];
    let requests = across(plan, drawn);
    let at = |number: f64| Plan { requests_per_day: number, ..*plan };
    let Some((_, price, _)) = drawn.first() else { return html! {} };
    let own: Vec<f64> = requests.iter().map(|number| at(*number).compare(price).own()).collect();
    let by_token: Vec<Vec<f64>> = drawn
        .iter()
        .map(|(_, price, _)| requests.iter().map(|number| at(*number).compare(price).by_token).collect())
        .collect();
    let most = by_token.iter().flatten().chain(&own).copied().fold(f64::MIN_POSITIVE, f64::max);
    let marks = drawn.iter().filter_map(|(_, _, costs)| costs.break_even);
    let last = requests.last().copied().unwrap_or(1.0);
    html! {
        section aria-labelledby="curves-title" {
            h2 id="curves-title" { "Over requests a day" }
            figure.card.chart {
                figcaption {
                    "Cost a day, from no request to " (format::count(last)) ", up to " (format::money(most, currency))
                }
                p.hidden id="said" role="status" aria-live="polite" {}
                div.plot id="plot" data-unit="Requests a day" {
                    svg.curve viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" aria-hidden="true" {
                        @for mark in marks.filter(|mark| *mark <= last) {
                            @let x = format!("{:.1}", WIDTH * mark / last);
                            line.mark x1=(x) x2=(x) y1="0" y2=(HEIGHT) data-mark=(mark) {}
                        }
                        polyline.line.line-1 points=(points(&requests, &own, most)) {}
                        @for (index, line) in by_token.iter().enumerate() {
                            polyline class={ "line line-" (index + 2) } points=(points(&requests, line, most)) {}
                        }
                    }
                }
                p.hint {
                    span.legend.bar-1 { "own machine" } " "
                    @for (index, (model, _, _)) in drawn.iter().enumerate() {
                        span class={ "legend bar-" (index + 2) } { bdi { (model) } } " "
                    }
                    "Dashed lines across are break-evens."
                }
                details {
                    summary { "As a table" }
                    div.scroll tabindex="0" role="region" aria-label="Cost a day, as a table" {
                        table id="points" {
                            thead {
                                tr {
                                    th scope="col" { "Requests a day" } th.number scope="col" { "Own machine" }
                                    @for (model, _, _) in drawn { th.number scope="col" { bdi { (model) } } }
                                }
                            }
                            tbody {
                                @for (row, number) in requests.iter().enumerate() {
                                    tr {
                                        th scope="row" data-value=(number) { (format::count(*number)) }
                                        td.number data-value=(own[row]) { (format::money(own[row], currency)) }
                                        @for line in &by_token {
                                            td.number data-value=(line[row]) { (format::money(line[row], currency)) }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
                @if compared.len() > drawn.len() {
                    p.hint { "The first " (MOST_LINES) " models of the table are drawn." }
                }
            }
        }
    }
}

/// Returns the requests per day that are drawn: half as many again as the plan's, or as the farthest break-even near
/// it.
fn across(plan: &Plan, drawn: &[(&str, Price, Comparison)]) -> Vec<f64> {
    let near = |even: &f64| *even <= plan.requests_per_day * FARTHEST;
    let evens = drawn.iter().filter_map(|(_, _, costs)| costs.break_even).filter(near);
    let last = (evens.fold(plan.requests_per_day, f64::max) * 1.5).ceil();
    (0..POINTS).map(|point| last * point as f64 / (POINTS - 1) as f64).collect()
}

fn points(requests: &[f64], costs: &[f64], most: f64) -> String {
    let last = requests.last().copied().unwrap_or(1.0).max(f64::MIN_POSITIVE);
    let mut points = String::new();
    for (number, cost) in requests.iter().zip(costs) {
        let _ = write!(points, "{:.1},{:.1} ", WIDTH * number / last, HEIGHT * (1.0 - cost / most));
    }
    points.truncate(points.trim_end().len());
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        requests_per_day: 1000.0,
        prompt_tokens: 400.0,
        completion_tokens: 100.0,
        price_per_hour: 0.2,
        hours_per_day: 24.0,
        tokens_per_second: None,
        training_tokens_per_month: 0.0,
    };

    #[test]
    fn the_break_even_is_drawn_where_the_lines_cross() {
        let price = Price { prompt: 1.0, completion: 4.0, ..Price::default() };
        let compared = [("<b>", price, PLAN.compare(&price))];
        let requests = across(&PLAN, &compared);
        assert_eq!((requests.len(), requests[0], requests[POINTS - 1]), (POINTS, 0.0, 9000.0));
        let text = show(&PLAN, &compared, "USD").into_string();
        assert!(text.contains("data-mark=\"6000\"") && text.contains("x1=\"266.7\""), "{text}");
        assert!(text.contains("&lt;b&gt;") && !text.contains("<b>"), "{text}");
        assert_eq!(text.matches("<polyline").count(), 2);
    }

    #[test]
    fn a_break_even_that_is_far_away_does_not_flatten_the_rest() {
        let price = Price { prompt: 0.001, ..Price::default() };
        let compared = [("cheap", price, PLAN.compare(&price))];
        assert!(compared[0].2.break_even.is_some_and(|even| even > 1e6));
        assert_eq!(across(&PLAN, &compared).last(), Some(&1500.0));
    }
}
