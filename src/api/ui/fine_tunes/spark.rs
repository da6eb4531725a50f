//! Lines drawn on the server: small ones in lists, and the one that stands on a job's page until its script draws a
//! better one. They say nothing that the figures beside them do not, so screen readers skip them.

use std::fmt::Write as _;

use maud::{Markup, html};

/// Size of the drawing, in units of its own.
const WIDTH: f64 = 128.0;
const HEIGHT: f64 = 32.0;
/// Room for half of the line's width.
const MARGIN: f64 = 2.0;

/// Draws the values from left to right; nothing if there are fewer than two.
pub(super) fn line(values: &[f64]) -> Markup {
    let points = points(values);
    html! {
        @if !points.is_empty() {
            svg.spark viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" aria-hidden="true" {
                polyline.line points=(points) {}
            }
        }
    }
}

/// Draws the values as large as the page is wide.
pub(super) fn curve(values: &[f64]) -> Markup {
    let points = points(values);
    html! {
        @if !points.is_empty() {
            svg.curve viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" aria-hidden="true" {
                polyline.line points=(points) {}
            }
        }
    }
}

fn points(values: &[f64]) -> String {
    let finite = || values.iter().copied().filter(|value| value.is_finite());
    let (low, high) =
        finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let mut points = String::new();
    if finite().count() < 2 {
        return points;
    }
    let across = (WIDTH - 2.0 * MARGIN) / (values.len() - 1) as f64;
    // A flat line stands in the middle.
    let span = if high > low { high - low } else { 1.0 };
    let rise = if high > low { 0.0 } else { 0.5 };
    for (index, value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
        let x = MARGIN + across * index as f64;
        let y = MARGIN + (HEIGHT - 2.0 * MARGIN) * (1.0 - rise - (value - low) / span);
        let _ = write!(points, "{x:.1},{y:.1} ");
    }
    points.truncate(points.trim_end().len());
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_value_is_at_the_top_and_the_last_at_the_right() {
        assert_eq!(points(&[4.0, 2.0, 0.0]), "2.0,2.0 64.0,16.0 126.0,30.0");
    }

    #[test]
    fn values_that_are_no_numbers_are_left_out() {
        assert_eq!(points(&[4.0, f64::NAN, 0.0]), "2.0,2.0 126.0,30.0");
        assert_eq!(points(&[1.0, 1.0]), "2.0,16.0 126.0,16.0");
        assert_eq!((points(&[1.0]), points(&[]), points(&[f64::NAN; 3])), Default::default());
    }
}
