//! How the process stands that runs a model of the second engine, in words.

use maud::{Markup, html};

use crate::engine::child::standing::{Phase, Standing};
use crate::format;

/// Returns the state of the process, as a word and for how long.
pub(in crate::api::ui) fn state(standing: &Standing) -> Markup {
    let (class, word) = match standing.phase {
        Phase::Loading => ("queued", "loading"),
        Phase::Ready => ("succeeded", "ready"),
        Phase::Ended => ("failed", "ended"),
    };
    html! {
        span class={ "state " (class) } { (word) } " for " (format::duration(standing.since.as_secs_f64()))
        @if standing.phase == Phase::Ended { ", and started again after a pause" }
    }
}

/// Returns the memory of the process; while it loads, beside the size of what it reads.
pub(in crate::api::ui) fn memory(standing: &Standing) -> Markup {
    let (weights, is_loading) = (standing.weights_bytes, standing.phase == Phase::Loading);
    html! {
        @if let Some(resident) = standing.resident_bytes {
            @if is_loading && weights > 0 {
                progress max=(weights) value=(resident.min(weights)) aria-label="Memory beside the files' size" { (resident) } " "
            }
            (format::bytes(resident)) @if is_loading { ", of files of " (format::bytes(weights)) }
        } @else { "none" }
    }
}

/// Returns the facts of the process for a model's own page.
pub(super) fn facts(standing: &Standing) -> Markup {
    html! {
        dt { "Process" } dd { (state(standing)) }
        dt { "Memory" } dd { (memory(standing)) }
        @if let Some(time) = standing.loaded_in {
            dt { "Loaded in" } dd { (format::duration(time.as_secs_f64())) }
        }
        dt { "Started again" } dd { (times(standing.restarts)) }
    }
}

/// Words how often something happened.
pub(in crate::api::ui) fn times(count: u64) -> String {
    match count {
        0 => "never".into(),
        1 => "once".into(),
        _ => format!("{} times", format::count(count as f64)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_process_that_loads_shows_how_far_it_is_and_one_that_ended_has_no_memory() {
        let loading = Standing {
            phase: Phase::Loading,
            since: Duration::from_secs(12),
            loaded_in: None,
            resident_bytes: Some(30 << 20),
            weights_bytes: 60 << 20,
            restarts: 2,
        };
        let text = facts(&loading).into_string();
        assert!(text.contains("loading</span> for 12 s") && text.contains("2 times"), "{text}");
        assert!(text.contains(&format!("max=\"{}\" value=\"{}\"", 60 << 20, 30 << 20)), "{text}");
        assert!(!text.contains("Loaded in"), "{text}");
        let ready = Standing { phase: Phase::Ready, loaded_in: Some(Duration::from_secs(3)), ..loading };
        let text = facts(&ready).into_string();
        assert!(text.contains("ready</span>") && text.contains("3.0 s") && !text.contains("progress"), "{text}");
        let ended = Standing { phase: Phase::Ended, resident_bytes: None, restarts: 0, ..loading };
        let text = facts(&ended).into_string();
        assert!(
            text.contains("started again after a pause") && text.contains("none") && text.contains("never"),
            "{text}"
        );
    }
}
