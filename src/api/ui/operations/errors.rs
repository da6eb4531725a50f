//! Requests of the last hour that failed, and steps and loads that did, by how often.

use maud::{Markup, html};

use super::route_of;
use crate::api::operations::figures::{Figure, Figures};
use crate::format;

/// Rows at the most.
const ROWS: usize = 50;

/// Shows them; `grown` are the figures of the last hour.
pub(super) fn show(grown: &Figures) -> Markup {
    let mut failures: Vec<&Figure> = grown.failures().filter(|figure| figure.value > 0.0).collect();
    // The server's own faults first.
    failures.sort_by(|one, two| {
        let key = |figure: &Figure| (figure.label("status").starts_with('5'), figure.value);
        key(two).partial_cmp(&key(one)).unwrap_or(std::cmp::Ordering::Equal)
    });
    let own: f64 = sum(&failures, '5');
    let clients: f64 = sum(&failures, '4');
    let others = [
        ("attune_engine_failed_steps_total", "failed steps"),
        ("attune_engine_restarts_total", "restarts of engines"),
        ("attune_adapter_load_failures_total", "adapters that could not be loaded"),
    ];
    html! {
        section aria-labelledby="errors-title" {
            h2 id="errors-title" { "Errors of the last hour" }
            p id="errors-said" {
                (format::count(own)) " by the server, " (format::count(clients)) " refused requests"
                @for (name, words) in others {
                    @let count = grown.all(name).map(|figure| figure.value).sum::<f64>();
                    ", " (format::count(count)) " " (words)
                }
                "."
            }
            @if !failures.is_empty() {
                div.scroll tabindex="0" role="region" aria-label="Errors" {
                    table {
                        thead {
                            tr {
                                th scope="col" { "Route" } th scope="col" { "Status" }
                                th.number scope="col" { "Requests" }
                            }
                        }
                        tbody {
                            @for figure in failures.iter().take(ROWS) {
                                @let status = figure.label("status");
                                tr {
                                    th.mono scope="row" { (route_of(figure)) }
                                    td { span.fault[status.starts_with('5')] { (status) } }
                                    td.number { (format::count(figure.value)) }
                                }
                            }
                        }
                    }
                }
                @if failures.len() > ROWS {
                    p.hint {
                        (format::count((failures.len() - ROWS) as f64)) " more kinds of failure, each of fewer requests, are in "
                        code { "/metrics" } "."
                    }
                }
            }
        }
    }
}

fn sum(failures: &[&Figure], first: char) -> f64 {
    failures.iter().filter(|figure| figure.label("status").starts_with(first)).map(|figure| figure.value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_faults_stand_first() {
        let figures = Figures::read(
            "attune_http_requests_total{route=\"/v1/a\",method=\"GET\",status=\"404\"} 9\n\
             attune_http_requests_total{route=\"/v1/b\",method=\"POST\",status=\"500\"} 2\n\
             attune_http_requests_total{route=\"/v1/c\",method=\"POST\",status=\"200\"} 5\n\
             attune_http_requests_total{route=\"/v1/d\",method=\"POST\",status=\"400\"} 0\n",
        );
        let text = show(&figures).into_string();
        assert!(text.contains("2 by the server, 9 refused requests, 0 failed steps"), "{text}");
        let (own, other) = (text.find("POST /v1/b"), text.find("GET /v1/a"));
        assert!(own.is_some() && own < other, "{text}");
        assert!(!text.contains("/v1/c") && !text.contains("/v1/d"), "{text}");
    }
}
