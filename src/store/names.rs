//! The forms of names. Asked by the configuration, the registry and the API.

use std::sync::LazyLock;

use regex::Regex;

/// What [`is_visible`] asks of a name, for messages.
pub const VISIBLE: &str = "visible characters with single spaces between them";

/// True for names of the forms that jobs give their models: `ft:{base}:…` and `{base}:ft-…`.
pub fn is_job_name(name: &str) -> bool {
    name.starts_with("ft:") || name.contains(":ft-")
}

/// Returns the base in a name of one of these forms; `None` for other names. In `ft:{base}:{organization}:…` it ends at
/// the first colon.
pub fn base_in_job_name(name: &str) -> Option<&str> {
    match name.strip_prefix("ft:") {
        Some(rest) => rest.split(':').next().filter(|base| !base.is_empty()),
        None => name.split_once(":ft-").map(|(base, _)| base),
    }
}

/// True for names that jobs on the model `base`, or on an alias of this name, give their models.
pub fn is_job_name_of(name: &str, base: &str) -> bool {
    let behind = |start: &str| name.strip_prefix(start).and_then(|rest| rest.strip_prefix(base));
    behind("ft:").is_some_and(|rest| rest.starts_with(':')) || behind("").is_some_and(|rest| rest.starts_with(":ft-"))
}

/// True for a name that looks like what it is: no control character, none without width, none that changes the
/// direction of the text, none that Unicode has not assigned, no blank but single spaces inside. Two names that are
/// shown alike could otherwise be two.
pub fn is_visible(name: &str) -> bool {
    // Category C has control, format, private and unassigned characters; Z has every blank.
    const HIDDEN: &str = r"[\p{C}[\p{Z}--\x20]\p{Default_Ignorable_Code_Point}\u{2800}]|^\x20|\x20$|\x20\x20";
    static PATTERN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(HIDDEN).ok());
    !name.is_empty() && PATTERN.as_ref().is_some_and(|hidden| !hidden.is_match(name))
}

#[cfg(test)]
mod tests {
    use super::{base_in_job_name, is_job_name_of, is_visible};

    #[test]
    fn the_base_is_read_from_the_name_of_a_fine_tuned_model() {
        for (name, base) in [
            ("ft:gpt-4o-mini-2024-07-18:acme:support:9aBcDeFg", Some("gpt-4o-mini-2024-07-18")),
            ("ft:gpt-4o-mini-2024-07-18:acme::9aBcDeFg:ckpt-step-30", Some("gpt-4o-mini-2024-07-18")),
            ("ft:a/b:org::x", Some("a/b")),
            ("curie:ft-acme-2022-02-15-04-21-04", Some("curie")),
            ("gpt-4o-mini", None),
            ("ft:", None),
        ] {
            assert_eq!(base_in_job_name(name), base, "{name}");
        }
    }

    #[test]
    fn the_names_of_a_bases_models_are_known_whatever_is_in_its_id() {
        for (name, base, is_of) in [
            ("ft:demo:acme::1", "demo", true),
            ("demo:ft-acme-1", "demo", true),
            ("ft:qwen:7b:acme::1", "qwen:7b", true),
            ("ft:demo2:acme::1", "demo", false),
            ("ft:demo", "demo", false),
            ("demo", "demo", false),
            ("mydemo:ft-acme-1", "demo", false),
        ] {
            assert_eq!(is_job_name_of(name, base), is_of, "{name} of {base}");
        }
    }

    #[test]
    fn a_name_that_looks_like_what_it_is_passes() {
        for name in ["sql", "team/My adapter:v2", "東京", "gpt-3.5-turbo", "naïve", "हिन्दी", "🙂"] {
            assert!(is_visible(name), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_found() {
        for name in ["", " ", " a", "a ", "a  b", "a\n", "a\tb", "a\0b", "a\u{7f}", "a\u{85}"] {
            assert!(!is_visible(name), "{name:?}");
        }
        let hidden = [
            '\u{a0}',
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{180e}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{2028}',
            '\u{2029}',
            '\u{202e}',
            '\u{2066}',
            '\u{2800}',
            '\u{3000}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{fff9}',
            '\u{e000}',
            '\u{378}',
            '\u{ffff}',
            '\u{1d173}',
            '\u{e0041}',
        ];
        for character in hidden {
            assert!(!is_visible(&format!("a{character}b")), "{character:?}");
        }
    }
}
