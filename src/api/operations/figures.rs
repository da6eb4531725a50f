//! The recorded metrics as values, and how much they grew in the last hour: what the page shows of `/metrics`.
//! [`health`](super::health) renders them and takes a sample of some every few minutes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Time between samples, and their number in an hour.
const EVERY: Duration = Duration::from_mins(5);
const SAMPLES: usize = 12;
/// Time between looks at the speed of answers.
const SPEED_EVERY: Duration = Duration::from_mins(1);
/// What is sampled besides [`REQUESTS`].
const SAMPLED: [&str; 9] = [
    "attune_engine_steps_total",
    "attune_engine_failed_steps_total",
    "attune_engine_restarts_total",
    "attune_adapter_load_failures_total",
    "attune_preemptions_total",
    "attune_queue_seconds_sum",
    "attune_queue_seconds_count",
    "attune_time_to_first_token_seconds_sum",
    "attune_time_to_first_token_seconds_count",
];
/// Answered requests, of which those that failed are sampled.
pub(crate) const REQUESTS: &str = "attune_http_requests_total";
const TOKENS: &str = "attune_tokens_total";

static HISTORY: Mutex<History> = Mutex::new(History::new());

/// One value with its labels.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    /// Name of the metric.
    pub name: String,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// All values of a moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(Vec<Figure>);

/// Samples of the last hour.
struct History {
    samples: VecDeque<HashMap<String, f64>>,
    sampled: Option<Instant>,
    /// When tokens were counted last, and how many there were.
    counted: Option<(Instant, f64)>,
    busiest: Option<f64>,
}

impl Figure {
    /// Returns a label, or nothing.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// Returns what tells this value from all others.
    fn place(&self) -> String {
        self.labels.iter().fold(self.name.clone(), |text, (name, value)| format!("{text}\n{name}={value}"))
    }

    /// True for a request that failed.
    pub(crate) fn is_failure(&self) -> bool {
        self.name == REQUESTS && self.label("status").starts_with(['4', '5'])
    }

    fn is_sampled(&self) -> bool {
        self.is_failure() || SAMPLED.contains(&self.name.as_str())
    }
}

impl Figures {
    /// Reads Prometheus' text; lines of another form are left out.
    pub(crate) fn read(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(figure).collect())
    }

    /// Returns the values of the metric `name`.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Figure> {
        self.0.iter().filter(move |figure| figure.name == name)
    }

    /// Returns the requests that failed.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &Figure> {
        self.0.iter().filter(|figure| figure.is_failure())
    }

    /// Sums up the values of the metric `name` that have this label.
    pub(crate) fn sum(&self, name: &str, label: &str, value: &str) -> f64 {
        self.all(name).filter(|figure| figure.label(label) == value).map(|figure| figure.value).sum()
    }

    /// Returns how much the sampled values grew in the last hour, or since the start if that is not as long ago.
    pub(crate) fn grown(&self) -> Self {
        HISTORY.lock().grown(self)
    }
}

/// Returns the tokens of answers per second of the busiest minute since the start; `None` if there was none yet.
pub(crate) fn busiest_tokens_per_second() -> Option<f64> {
    HISTORY.lock().busiest
}

/// Takes what is due of `render`'s text. Called every few seconds.
pub(super) fn sample(render: impl FnOnce() -> String) {
    let now = Instant::now();
    let mut history = HISTORY.lock();
    if history.is_due(now) {
        history.take(now, &Figures::read(&render()));
    }
}

impl History {
    const fn new() -> Self {
        Self { samples: VecDeque::new(), sampled: None, counted: None, busiest: None }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.counted.is_none_or(|(last, _)| now.duration_since(last) >= SPEED_EVERY)
    }

    fn take(&mut self, now: Instant, figures: &Figures) {
        let tokens = figures.sum(TOKENS, "kind", "completion");
        if let Some((last, before)) = self.counted {
            let speed = (tokens - before) / now.duration_since(last).as_secs_f64().max(1e-3);
            self.busiest = Some(speed).filter(|speed| *speed > self.busiest.unwrap_or(0.0)).or(self.busiest);
        }
        self.counted = Some((now, tokens));
        if self.sampled.is_none_or(|last| now.duration_since(last) >= EVERY) {
            self.sampled = Some(now);
            if self.samples.len() == SAMPLES {
                self.samples.pop_front();
            }
            let sampled = figures.0.iter().filter(|figure| figure.is_sampled());
            self.samples.push_back(sampled.map(|figure| (figure.place(), figure.value)).collect());
        }
    }

    fn grown(&self, now: &Figures) -> Figures {
        // As long as an hour is not over, everything since the start counts.
        let before = if self.samples.len() == SAMPLES { self.samples.front() } else { None };
        let grown = now.0.iter().filter(|figure| figure.is_sampled()).map(|figure| {
            let old = before.and_then(|before| before.get(&figure.place())).copied().unwrap_or(0.0);
            Figure { value: (figure.value - old).max(0.0), ..figure.clone() }
        });
        Figures(grown.collect())
    }
}

/// Reads `name{label="value",…} 1.5`.
fn figure(line: &str) -> Option<Figure> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.trim_start_matches(',').to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Figure { name: name.to_owned(), labels, value })
}

/// Reads a label's value up to its closing quote; also returns what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(count: u32) -> Figures {
        Figures::read(&format!(
            "# TYPE {REQUESTS} counter\n\
             {REQUESTS}{{route=\"/v1/x\",method=\"GET\",status=\"500\"}} {count}\n\
             {REQUESTS}{{route=\"/v1/x\",method=\"GET\",status=\"200\"}} 70\n"
        ))
    }

    #[test]
    fn the_text_of_prometheus_is_read_with_its_quotes() {
        let figures =
            Figures::read("# HELP a b\na{x=\"1, \\\"2\\\"}\\\\\\n\",y=\"\"} 3\nb 0.5\nbroken{ 1\n\nc{x=\"1\"} NaN\n");
        let a = figures.all("a").next().expect("a value");
        assert_eq!((a.label("x"), a.label("y"), a.label("z"), a.value), ("1, \"2\"}\\\n", "", "", 3.0));
        assert!((figures.sum("b", "x", "") - 0.5).abs() < 1e-12);
        assert_eq!(figures.all("broken").count(), 0);
    }

    #[test]
    fn the_last_hour_begins_at_the_sample_of_an_hour_ago() {
        let begin = Instant::now();
        let mut history = History::new();
        let grown = |history: &History, count| history.grown(&failed(count)).failures().next().map(|one| one.value);
        history.take(begin, &failed(1));
        assert_eq!(grown(&history, 4), Some(4.0), "since the start");
        for sample in 1..=12 {
            history.take(begin + EVERY * sample, &failed(sample + 1));
        }
        assert_eq!(history.samples.len(), SAMPLES);
        assert_eq!(grown(&history, 14), Some(12.0), "the first sample has gone");
        assert_eq!(history.grown(&failed(14)).all(REQUESTS).count(), 1, "what went well is no failure");
    }

    #[test]
    fn the_busiest_minute_is_remembered() {
        let begin = Instant::now();
        let mut history = History::new();
        let tokens = |count: u32| Figures::read(&format!("{TOKENS}{{model=\"a\",kind=\"completion\"}} {count}\n"));
        history.take(begin, &tokens(0));
        assert_eq!(history.busiest, None);
        for (minute, count) in [(1, 600), (2, 6600), (3, 6600)] {
            let now = begin + SPEED_EVERY * minute;
            assert!(history.is_due(now));
            history.take(now, &tokens(count));
        }
        assert!(history.busiest.is_some_and(|busiest| (busiest - 100.0).abs() < 1e-9), "{:?}", history.busiest);
    }
}
