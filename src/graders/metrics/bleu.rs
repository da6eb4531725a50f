//! BLEU of one text, as sacrebleu's `sentence_bleu` computes it, and GLEU, its symmetric relative. Both over the tokens
//! that sacrebleu calls `13a`.

use std::sync::LazyLock;

use regex::Regex;

use super::words::{common_runs, runs_in, split};

/// Longest runs of tokens.
const ORDERS: usize = 4;

/// Patterns of the tokenizer with what takes their place, in order.
static RULES: LazyLock<Option<[(Regex, &str); 4]>> = LazyLock::new(|| {
    let rule = |pattern: &str| Regex::new(pattern).ok();
    Some([
        // Marks but for the apostrophe, comma, hyphen and period.
        (rule(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])")?, " ${1} "),
        // Period and comma, unless they stand between digits.
        (rule(r"([^0-9])([\.,])")?, "${1} ${2} "),
        (rule(r"([\.,])([^0-9])")?, " ${1} ${2}"),
        // A hyphen after a digit.
        (rule(r"([0-9])(-)")?, "${1} ${2} "),
    ])
});

/// Returns the text with spaces between its tokens.
fn spaced(text: &str) -> String {
    let text = text.trim_end_matches(super::words::is_space);
    let mut text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (escape, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(escape, character);
    }
    text = format!(" {text} ");
    for (pattern, replacement) in RULES.iter().flatten() {
        text = pattern.replace_all(&text, *replacement).into_owned();
    }
    text
}

/// Returns the geometric mean of the precisions of runs of 1 to 4 tokens, times the penalty for a text shorter than its
/// reference. A precision of 0 counts as half of the least possible one, the next as a quarter, and so on; runs longer
/// than the text do not count. 0 if no token is right.
pub(super) fn bleu(text: &str, reference: &str) -> f64 {
    let (text, reference) = (spaced(text), spaced(reference));
    let (tokens, reference): (Vec<&str>, Vec<&str>) = (split(&text).collect(), split(&reference).collect());
    let (mut orders, mut logarithms, mut halvings) = (0, 0.0, 1.0);
    for order in 1..=ORDERS {
        let runs = runs_in(tokens.len(), order);
        if runs == 0 {
            break;
        }
        let right = common_runs(&tokens, &reference, order);
        if order == 1 && right == 0 {
            return 0.0;
        }
        let precision = if right == 0 {
            halvings *= 2.0;
            1.0 / (halvings * runs as f64)
        } else {
            right as f64 / runs as f64
        };
        logarithms += precision.ln();
        orders += 1;
    }
    if orders == 0 {
        return 0.0;
    }
    let penalty = (1.0 - reference.len() as f64 / tokens.len() as f64).min(0.0).exp();
    penalty * (logarithms / f64::from(orders)).exp()
}

/// Returns the share of runs of 1 to 4 tokens that both texts have, of the runs in the one that has more.
pub(super) fn gleu(text: &str, reference: &str) -> f64 {
    let (text, reference) = (spaced(text), spaced(reference));
    let (tokens, reference): (Vec<&str>, Vec<&str>) = (split(&text).collect(), split(&reference).collect());
    let all = |tokens: usize| (1..=ORDERS).map(|order| runs_in(tokens, order)).sum::<usize>();
    let most = all(tokens.len()).max(all(reference.len()));
    let common: usize = (1..=ORDERS).map(|order| common_runs(&tokens, &reference, order)).sum();
    if most == 0 { 0.0 } else { common as f64 / most as f64 }
}
