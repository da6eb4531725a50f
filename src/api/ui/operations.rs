//! Operations, for admins: engines, queue, memory, adapters and errors as they are now. This file holds the section and
//! that page; [`keys`] makes, limits and revokes API keys.

mod errors;
mod keys;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use maud::{Markup, html};

use crate::adapters::status::Status;
use crate::api::http::error::Result;
use crate::api::operations::figures::{Figure, Figures};
use crate::api::operations::health;
use crate::api::ui::Pages;
use crate::api::ui::fault::Fault;
use crate::api::ui::layout::page;
use crate::api::ui::models::elsewhere;
use crate::api::ui::section::Section;
use crate::api::ui::visitor::Visitor;
use crate::api::ui::words::{in_path, moment};
use crate::engine::catalog::CatalogEntry;
use crate::jobs::JobStatus;
use crate::jobs::standing::Unfinished;
use crate::{format, system};

pub(super) const SECTION: Section = Section { path: "/ui/operations", label: "Operations", admin: true, routes };

/// Jobs on the page.
const JOBS: i64 = 50;
/// Seconds between looks of an open page.
const REFRESH: u32 = 30;

fn routes() -> Router<Pages> {
    Router::new()
        .route("/ui/operations", get(show))
        .route("/ui/operations/keys", get(keys::list).post(keys::create))
        .route("/ui/operations/keys/{id}", post(keys::change))
}

/// Shows the server as it is now.
async fn show(State(pages): State<Pages>, visitor: Visitor) -> Result<Markup, Fault> {
    let (jobs, more) = pages.api.queue.unfinished(JOBS).await?;
    let figures = health::figures(&pages.api);
    let grown = figures.grown();
    let models: Vec<&str> = pages.api.catalog.entries().iter().map(|entry| entry.model.id.as_str()).collect();
    let body = html! {
        h1 { "Operations" }
        p { a href="/ui/operations/keys" { "API keys: make, limit, revoke" } }
        div id="now" data-refresh=(REFRESH) {
            (engines(&models, &figures, &grown))
            (processes(pages.api.catalog.entries()))
            (queue(&jobs, more, visitor.caller.organization.as_ref()))
            (memory(&figures))
            (adapters(&pages.api.registry.status()))
            (errors::show(&grown))
        }
        p.hint {
            "Figures are this process's; those of the last hour count to five minutes. " code { "/metrics" } " has all."
        }
    };
    Ok(page(&visitor.frame("Operations", SECTION.path), body))
}

/// Shows each engine: who waits and runs, its steps, its cache.
fn engines(models: &[&str], figures: &Figures, grown: &Figures) -> Markup {
    let now = |name: &str, model: &str| format::count(figures.sum(name, "model", model));
    let hour = |name: &str, model: &str| grown.sum(name, "model", model);
    let steps = |name: &str, model: &str| format::count(hour(name, model));
    let mean = |name: &str, model: &str| {
        let count = hour(&format!("{name}_count"), model);
        if count > 0.0 { milliseconds(hour(&format!("{name}_sum"), model) / count) } else { "–".into() }
    };
    html! {
        section aria-labelledby="engines-title" {
            h2 id="engines-title" { "Engines" }
            div.scroll tabindex="0" role="region" aria-label="Engines" {
                table.stack {
                    thead {
                        tr {
                            th scope="col" { "Model" } th.number scope="col" { "Waiting" }
                            th.number scope="col" { "Running" } th.number scope="col" { "Mean wait" }
                            th.number scope="col" { "First token after" }
                            th.number scope="col" { "Steps, last hour" } th.number scope="col" { "Failed" }
                            th scope="col" { "Cache blocks" }
                        }
                    }
                    tbody {
                        @for model in models {
                            tr {
                                th scope="row" { bdi { (model) } }
                                td.number data-label="Waiting" { (now("attune_queue_waiting", model)) }
                                td.number data-label="Running" { (now("attune_running_sequences", model)) }
                                td.number data-label="Mean wait" { (mean("attune_queue_seconds", model)) }
                                td.number data-label="First token after" {
                                    (mean("attune_time_to_first_token_seconds", model))
                                }
                                td.number data-label="Steps, last hour" { (steps("attune_engine_steps_total", model)) }
                                td.number data-label="Failed" { (steps("attune_engine_failed_steps_total", model)) }
                                td data-label="Cache blocks" { (cache(figures, model)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Shows the processes that run models of the second engine.
fn processes(entries: &[CatalogEntry]) -> Markup {
    let standings = entries.iter().filter_map(|entry| Some((&entry.model.id, entry.backend.standing()?)));
    let standings: Vec<_> = standings.collect();
    html! {
        @if !standings.is_empty() {
            section aria-labelledby="processes-title" {
                h2 id="processes-title" { "Second engine" }
                div.scroll tabindex="0" role="region" aria-label="Second engine" {
                    table.stack {
                        thead {
                            tr {
                                th scope="col" { "Model" } th scope="col" { "Process" } th scope="col" { "Memory" }
                                th.number scope="col" { "Started again" }
                            }
                        }
                        tbody {
                            @for (model, standing) in &standings {
                                tr {
                                    th scope="row" { bdi { (model) } }
                                    td data-label="Process" { (elsewhere::state(standing)) }
                                    td data-label="Memory" { (elsewhere::memory(standing)) }
                                    td.number data-label="Started again" { (elsewhere::times(standing.restarts)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Words a time of an engine, which is short on most days.
fn milliseconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{} ms", format::count(seconds * 1000.0)) } else { format::duration(seconds) }
}

/// Shows how full the cache of an engine is; an encoder has none.
fn cache(figures: &Figures, model: &str) -> Markup {
    let blocks = |name: &str| figures.sum(name, "model", model);
    let (used, kept) = (blocks("attune_kv_blocks_used"), blocks("attune_kv_blocks_cached"));
    let total = used + kept + blocks("attune_kv_blocks_free");
    html! {
        @if total > 0.0 {
            progress max=(total) value=(used) aria-label="Cache blocks in use" { (used) }
            div.hint { (format::count(used)) " used, " (format::count(kept)) " kept, of " (format::count(total)) }
        } @else { "–" }
    }
}

/// Shows jobs that have not ended.
fn queue(jobs: &[Unfinished], more: bool, own: &str) -> Markup {
    let count = |status: JobStatus| jobs.iter().filter(|job| job.status == status).count();
    html! {
        section aria-labelledby="queue-title" {
            h2 id="queue-title" { "Fine-tune jobs" }
            p {
                (count(JobStatus::Running)) " running, " (count(JobStatus::Queued)) " waiting, "
                (count(JobStatus::Paused)) " paused" @if more { ", and more than these" } "."
            }
            @if !jobs.is_empty() {
                div.scroll tabindex="0" role="region" aria-label="Jobs" {
                    table.stack {
                        thead {
                            tr {
                                th scope="col" { "Job" } th scope="col" { "Organisation" } th scope="col" { "State" }
                                th scope="col" { "Worker" } th.number scope="col" { "Attempt" }
                                th scope="col" { "Created" } th scope="col" { "In this state since" }
                            }
                        }
                        tbody {
                            @for job in jobs {
                                tr {
                                    th.mono scope="row" {
                                        @if job.organization == own {
                                            a href={ "/ui/fine-tunes/" (in_path(&job.id)) } { (job.id) }
                                        } @else { (job.id) }
                                    }
                                    td data-label="Organisation" { bdi { (job.organization) } }
                                    td data-label="State" {
                                        span class={ "state " (job.status.word()) } { (job.status.word()) }
                                        @if let Some(stop) = &job.stop_request { ", to " (stop) }
                                    }
                                    td data-label="Worker" { @if let Some(worker) = &job.worker { bdi { (worker) } } }
                                    td.number data-label="Attempt" { (job.attempt) }
                                    td data-label="Created" { (moment(job.created_at)) }
                                    td data-label="Since" { (moment(job.updated_at)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Shows the process's memory, connections and open files.
fn memory(figures: &Figures) -> Markup {
    let bytes = |name: &str| figures.all(name).map(|figure| figure.value).sum::<f64>();
    let first = |name: &'static str| figures.all(name).next().map(|figure| format::count(figure.value));
    html! {
        section aria-labelledby="memory-title" {
            h2 id="memory-title" { "Memory and connections" }
            dl.facts {
                @if let Some(resident) = system::resident_bytes() {
                    dt { "Memory of the process" } dd { (format::bytes(resident)) }
                }
                dt { "Held by requests" } dd { (format::bytes(bytes("attune_request_memory_bytes").max(0.0) as u64)) }
                dt { "Connections" } dd { (format::count(bytes("attune_connections"))) }
                @if let Some(open) = first("process_open_fds") {
                    dt { "Open files" } dd { (open) @if let Some(most) = first("process_max_fds") { " of " (most) } }
                }
            }
        }
    }
}

/// Shows the adapters in each tier.
fn adapters(status: &Status) -> Markup {
    let memory = &status.memory;
    let tiers = [
        ("device", status.on_device(), memory.device_bytes(), memory.budgets.device, memory.evictions.device),
        ("host memory", status.in_host(), memory.host_bytes(), memory.budgets.host, memory.evictions.host),
    ];
    html! {
        section aria-labelledby="adapters-title" {
            h2 id="adapters-title" { "Adapters" }
            table {
                thead {
                    tr {
                        th scope="col" { "Tier" } th.number scope="col" { "Adapters" } th scope="col" { "Size" }
                        th.number scope="col" { "Let go for room" }
                    }
                }
                tbody {
                    @for (tier, count, bytes, budget, evictions) in tiers {
                        tr {
                            th scope="row" { (tier) }
                            td.number { (count) }
                            td {
                                @if budget > 0 {
                                    progress max=(budget) value=(bytes) aria-label={ "Used of the " (tier) } { (bytes) } " "
                                }
                                (format::bytes(bytes)) " of " (format::bytes(budget))
                            }
                            td.number { (format::count(evictions as f64)) }
                        }
                    }
                }
            }
            p.hint {
                (status.leases()) " leases, " (status.loading) " being loaded, " (status.retired())
                " without a name that wait for their last lease; since the start " (status.loads_from_host)
                " loads from host memory, " (status.loads_from_disk) " from the storage, " (status.failed_loads) " failed."
            }
        }
    }
}

/// Words the labels of a figure that the page shows.
fn route_of(figure: &Figure) -> String {
    format!("{} {}", figure.label("method"), figure.label("route"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_shows_its_queue_and_its_cache() {
        let figures = Figures::read(
            "attune_queue_waiting{model=\"a\"} 3\nattune_kv_blocks_used{model=\"a\"} 25\n\
             attune_kv_blocks_cached{model=\"a\"} 5\nattune_kv_blocks_free{model=\"a\"} 70\n",
        );
        let grown = Figures::read(
            "attune_queue_seconds_sum{model=\"a\"} 0.5\nattune_queue_seconds_count{model=\"a\"} 4\n\
             attune_engine_steps_total{model=\"a\"} 1200\n",
        );
        let text = engines(&["a", "<b>"], &figures, &grown).into_string();
        assert!(text.contains(">125 ms<") && text.contains(">1,200<"), "{text}");
        assert!(text.contains("25 used, 5 kept, of 100") && text.contains("max=\"100\" value=\"25\""), "{text}");
        assert!(text.contains("&lt;b&gt;"), "{text}");
    }
}
