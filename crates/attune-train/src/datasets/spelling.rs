//! Finds the known name that an unknown one was probably meant as. Called by the checks of training files, and by `api`
//! for the fields of requests.

/// Characters that a name may have to be compared: the time grows with the square.
const LONGEST: usize = 64;

/// Returns the name of `known` that `name` is probably a spelling of: the same but for case and separators, or a few
/// letters off; `None` if there is no such name.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.chars().count() > LONGEST {
        return None;
    }
    let plain = plain(name);
    let distances = known.into_iter().map(|other| (strsim::damerau_levenshtein(&plain, &self::plain(other)), other));
    let near = distances.filter(|(distance, other)| *distance == 0 || *distance <= tolerance(&plain, other));
    near.min_by_key(|(distance, _)| *distance).map(|(_, other)| other)
}

/// Returns the number of letters that may differ: a quarter of the shorter name, so that short names never match by
/// accident.
fn tolerance(name: &str, other: &str) -> usize {
    (name.chars().count().min(other.chars().count()) / 4).min(3)
}

/// Returns a name in lower case without separators: `nEpochs`, `n-epochs` and `N_EPOCHS` are the same.
pub fn plain(name: &str) -> String {
    name.chars().filter(|letter| letter.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn names_are_found_by_their_spelling_and_strangers_are_not() {
        let known = ["n_epochs", "batch_size", "rank", "prompt", "completion", "messages"];
        for (name, expected) in [
            ("nEpochs", Some("n_epochs")),
            ("n-epoch", Some("n_epochs")),
            ("BATCHSIZE", Some("batch_size")),
            ("bacth_size", Some("batch_size")),
            ("rnak", Some("rank")),
            ("Prompt", Some("prompt")),
            ("completions", Some("completion")),
            ("mesages", Some("messages")),
            ("r", None),
            ("bank account", None),
            ("temperature", None),
        ] {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
        assert_eq!(nearest(&"n".repeat(1 << 20), known), None);
    }
}
