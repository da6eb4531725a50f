//! Porter's stemmer for English ("An algorithm for suffix stripping", 1980), with the changes that nltk makes to it by
//! default: a few words have stems of their own, words of two letters stay, and `y`, `ies` and `ied` after short stems.

/// Words with a stem that the rules would not give.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// Suffixes of step 2 and what takes their place after a stem of some length.
const STEP_2: [(&str, &str); 21] = [
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];

/// The same of step 3.
const STEP_3: [(&str, &str); 7] =
    [("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")];

/// Suffixes that step 4 takes off long stems; `ion` after `s` and `t` alone.
const STEP_4: [&str; 19] = [
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate", "iti",
    "ous", "ive", "ize",
];

/// Returns the stem of a word in lower case.
pub(super) fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    if word.chars().count() <= 2 {
        return word.to_owned();
    }
    let word = step_1c(step_1b(step_1a(word.to_owned())));
    step_5(&step_4(step_3(step_2(word))))
}

/// Tells for each letter whether it is a consonant. `y` is one at the begin and after a vowel.
fn consonants(word: &str) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::with_capacity(word.len());
    for letter in word.chars() {
        let flag = match letter {
            'a' | 'e' | 'i' | 'o' | 'u' => false,
            'y' => flags.last().is_none_or(|before| !before),
            _ => true,
        };
        flags.push(flag);
    }
    flags
}

/// Returns how often a consonant follows a vowel.
fn measure(word: &str) -> usize {
    consonants(word).windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

fn has_vowel(word: &str) -> bool {
    consonants(word).contains(&false)
}

/// True if the word ends with consonant, vowel, and a consonant other than w, x and y; or is a vowel and a consonant.
fn ends_short(word: &str) -> bool {
    match consonants(word)[..] {
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        [first, last] => !first && last,
        _ => false,
    }
}

/// Returns the last letter if it is a consonant and stands twice.
fn double_consonant(word: &str) -> Option<char> {
    let mut letters = word.chars().rev();
    let last = letters.next().filter(|last| letters.next() == Some(*last))?;
    consonants(word).last().copied().unwrap_or(false).then_some(last)
}

/// Plurals.
fn step_1a(word: String) -> String {
    if let Some(stem) = word.strip_suffix("ies") {
        return format!("{stem}{}", if stem.chars().count() == 1 { "ie" } else { "i" });
    }
    match word.strip_suffix('s') {
        Some(stem) if word.ends_with("sses") => stem.trim_end_matches('e').to_owned(),
        Some(stem) if !word.ends_with("ss") => stem.to_owned(),
        _ => word,
    }
}

/// Past tense and participles.
fn step_1b(word: String) -> String {
    if let Some(stem) = word.strip_suffix("ied") {
        return format!("{stem}{}", if stem.chars().count() == 1 { "ie" } else { "i" });
    }
    if let Some(stem) = word.strip_suffix("eed") {
        return if measure(stem) > 0 { format!("{stem}ee") } else { word };
    }
    let stem = ["ed", "ing"].iter().filter_map(|suffix| word.strip_suffix(suffix)).find(|stem| has_vowel(stem));
    let Some(stem) = stem else { return word };
    if ["at", "bl", "iz"].iter().any(|end| stem.ends_with(end)) {
        return format!("{stem}e");
    }
    match double_consonant(stem) {
        Some('l' | 's' | 'z') => stem.to_owned(),
        Some(last) => stem.strip_suffix(last).unwrap_or(stem).to_owned(),
        None if measure(stem) == 1 && ends_short(stem) => format!("{stem}e"),
        None => stem.to_owned(),
    }
}

/// A last `y` becomes `i` after a consonant that is not the first letter.
fn step_1c(word: String) -> String {
    match word.strip_suffix('y') {
        Some(stem) if stem.chars().count() > 1 && consonants(stem).last() == Some(&true) => format!("{stem}i"),
        _ => word,
    }
}

/// Replaces the first suffix of `rules` that the word has, after a stem with a measure above 0.
fn replaced(word: String, rules: &[(&str, &str)]) -> String {
    let found = rules.iter().find_map(|(suffix, replacement)| Some((word.strip_suffix(suffix)?, replacement)));
    match found {
        Some((stem, replacement)) if measure(stem) > 0 => format!("{stem}{replacement}"),
        _ => word,
    }
}

fn step_2(mut word: String) -> String {
    while let Some(stem) = word.strip_suffix("alli").filter(|stem| measure(stem) > 0) {
        word = format!("{stem}al");
    }
    // The `l` counts as a part of the stem.
    if let Some(stem) = word.strip_suffix("ogi").filter(|stem| stem.ends_with('l')) {
        return if measure(stem) > 0 { format!("{stem}og") } else { word };
    }
    replaced(word, &STEP_2)
}

fn step_3(word: String) -> String {
    replaced(word, &STEP_3)
}

fn step_4(word: String) -> String {
    let found = STEP_4.iter().find_map(|suffix| Some((word.strip_suffix(suffix)?, *suffix)));
    match found {
        Some((stem, "ion")) if measure(stem) > 1 && stem.ends_with(['s', 't']) => stem.to_owned(),
        Some((stem, suffix)) if suffix != "ion" && measure(stem) > 1 => stem.to_owned(),
        _ => word,
    }
}

/// A last `e`, and one of two `l`.
fn step_5(word: &str) -> String {
    let without = word.strip_suffix('e').filter(|stem| {
        let measure = measure(stem);
        measure > 1 || (measure == 1 && !ends_short(stem))
    });
    let word = without.unwrap_or(word);
    match word.strip_suffix('l') {
        Some(stem) if stem.ends_with('l') && measure(stem) > 1 => stem.to_owned(),
        _ => word.to_owned(),
    }
}
