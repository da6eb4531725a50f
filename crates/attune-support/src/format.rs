//! Formats durations, sizes, counts and money for people. Used in events and by the command line.
//!
//! Own code, since events that clients read hold these texts: indicatif writes `3.40 MiB`, jiff `12m 3s`.

/// Formats a duration: `0.4 s`, `42 s`, `12 min 3 s`, `3 h 5 min`, `2 d 4 h`.
pub fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let seconds = seconds.round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// Formats the bounds of a duration: `33 to 45 s`, `13 to 57 min`, `50 s to 3 min 5 s`; one duration if both look the
/// same.
pub fn duration_range(low: f64, high: f64) -> String {
    let [first, last] = [low, high].map(duration);
    if first == last {
        return first;
    }
    if low >= 600.0 && high < 3600.0 {
        let [low, high] = [low, high].map(|seconds| (seconds / 60.0).round());
        return if low < high { format!("{low} to {high} min") } else { format!("{low} min") };
    }
    match (first.strip_suffix(" s"), last.strip_suffix(" s")) {
        (Some(low), Some(_)) if high < 59.5 => format!("{low} to {last}"),
        _ => format!("{first} to {last}"),
    }
}

/// Formats a size: `512 B`, `3.4 MiB`, `1.2 GiB`.
pub fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut name = "B";
    for unit in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        name = unit;
    }
    if name == "B" { format!("{bytes} B") } else { format!("{value:.1} {name}") }
}

/// Formats a count: `12,345`; below 100 with one decimal unless it is whole.
pub fn count(number: f64) -> String {
    if number.abs() < 99.95 && number.fract().abs() > 0.05 {
        return format!("{number:.1}");
    }
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0.0 { format!("-{text}") } else { text }
}

/// Formats an amount of money: `12.30 USD`; below a cent with two significant digits, such as `0.0042 USD`.
pub fn money(amount: f64, currency: &str) -> String {
    if amount == 0.0 || amount.abs() >= 0.01 {
        return format!("{amount:.2} {currency}");
    }
    let places = (1.0 - amount.abs().log10().floor()).clamp(2.0, 12.0) as usize;
    format!("{amount:.places$} {currency}")
}

/// Formats the rest of a list: `, one, two`.
pub fn listed(parts: &[String]) -> String {
    parts.iter().fold(String::new(), |text, part| text + ", " + part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_have_units() {
        for (seconds, text) in
            [(0.42, "0.4 s"), (42.4, "42 s"), (723.0, "12 min 3 s"), (11_100.0, "3 h 5 min"), (187_200.0, "2 d 4 h")]
        {
            assert_eq!(duration(seconds), text);
        }
        for (low, high, text) in [
            (0.42, 0.8, "0.4 to 0.8 s"),
            (33.2, 45.0, "33 to 45 s"),
            (42.0, 42.3, "42 s"),
            (50.0, 185.0, "50 s to 3 min 5 s"),
            (780.0, 3432.0, "13 to 57 min"),
            (780.0, 790.0, "13 min"),
            (3000.0, 11_100.0, "50 min 0 s to 3 h 5 min"),
        ] {
            assert_eq!(duration_range(low, high), text);
        }
        assert_eq!([bytes(512), bytes(3_565_158), bytes(5 << 30)], ["512 B", "3.4 MiB", "5.0 GiB"]);
        assert_eq!([count(5.0), count(45.25), count(1234.4), count(1_234_567.0)], ["5", "45.2", "1,234", "1,234,567"]);
        let money = |amount| money(amount, "USD");
        assert_eq!(
            [money(12.3), money(0.0), money(0.0042), money(0.01)],
            ["12.30 USD", "0.00 USD", "0.0042 USD", "0.01 USD"]
        );
        assert_eq!(listed(&["a".into(), "b".into()]), ", a, b");
    }
}
