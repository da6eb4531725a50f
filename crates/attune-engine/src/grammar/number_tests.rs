//! The expressions of numbers against all numbers of a grid.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use llguidance::derivre::Regex;
use serde_json::json;

use super::*;

fn pattern(schema: &Value, integer: bool) -> Option<Regex> {
    match form(schema.as_object().unwrap(), integer).unwrap()? {
        Form::Pattern(pattern) => Some(Regex::new(&pattern).unwrap()),
        Form::Multiples { .. } => panic!("{schema} is no pattern"),
    }
}

fn grid() -> Vec<String> {
    let wholes = (0..=13).chain([19, 20, 98, 99, 100, 101, 122, 123, 124, 999, 1000, 12_345]);
    let fractions =
        ["", ".0", ".05", ".1", ".25", ".4", ".45", ".456", ".4560", ".457", ".5", ".50", ".51", ".9", ".99"];
    let numbers = wholes.flat_map(|whole| fractions.map(move |fraction| format!("{whole}{fraction}")));
    numbers.flat_map(|number| [number.clone(), format!("-{number}")]).collect()
}

#[test]
fn a_number_is_allowed_if_and_only_if_it_is_within_its_bounds() {
    let bounds =
        ["-123.456", "-10", "-1", "-0.5", "-0.05", "0", "0.05", "0.5", "1", "1.5", "9.99", "10", "100", "123.456"];
    let bounds: Vec<Option<&str>> = bounds.into_iter().map(Some).chain([None]).collect();
    let grid: Vec<(String, Decimal)> =
        grid().into_iter().map(|text| (text.clone(), Decimal::parse(&text).unwrap())).collect();
    for low in &bounds {
        for high in &bounds {
            for (low_keyword, high_keyword) in [
                ("minimum", "maximum"),
                ("minimum", "exclusiveMaximum"),
                ("exclusiveMinimum", "maximum"),
                ("exclusiveMinimum", "exclusiveMaximum"),
            ] {
                let mut schema = json!({});
                for (keyword, bound) in [(low_keyword, low), (high_keyword, high)] {
                    if let Some(bound) = bound {
                        schema[keyword] = serde_json::from_str(bound).unwrap();
                    }
                }
                check(&schema, &grid);
            }
        }
    }
}

fn check(schema: &Value, grid: &[(String, Decimal)]) {
    let (low, high) = bounds(schema.as_object().unwrap()).unwrap();
    let within = |number: &Decimal| {
        low.as_ref().is_none_or(|(low, included)| number > low || (*included && number == low))
            && high.as_ref().is_none_or(|(high, included)| number < high || (*included && number == high))
    };
    for integer in [false, true] {
        let mut allowed = pattern(schema, integer);
        for (text, number) in grid {
            let taken = allowed.as_mut().is_some_and(|allowed| allowed.is_match(text));
            let shortest = !text.contains('.') || !text.ends_with('0');
            let minus_zero = text.starts_with('-') && !number.is_negative();
            let fits = within(number) && (!integer || !text.contains('.'));
            if taken {
                assert!(fits, "{schema} takes {text}");
            } else {
                assert!(!fits || !shortest || minus_zero, "{schema} refuses {text}");
            }
        }
    }
}

#[test]
fn whole_numbers_have_64_bits_unless_their_bounds_say_otherwise() {
    for (schema, text, fine) in [
        (json!({}), "9223372036854775807", true),
        (json!({}), "9223372036854775808", false),
        (json!({}), "-9223372036854775808", true),
        (json!({"minimum": i64::MIN, "maximum": i64::MAX}), "-9223372036854775808", true),
        (json!({"minimum": 1_000_000_000_000_000_000_u64}), "999999999999999999", false),
        (json!({"minimum": 1_000_000_000_000_000_000_u64}), "1000000000000000000", true),
        (json!({"minimum": 0, "maximum": u64::MAX}), "18446744073709551615", true),
        (json!({"minimum": 0, "maximum": u64::MAX}), "18446744073709551616", false),
        (json!({"minimum": 9_007_199_254_740_993_i64}), "9007199254740993", true),
        (json!({"minimum": 9_007_199_254_740_993_i64}), "9007199254740992", false),
        (json!({"maximum": 1e300}), "1", true),
        (json!({"exclusiveMinimum": 0.5, "exclusiveMaximum": 1.5}), "1", true),
    ] {
        assert_eq!(pattern(&schema, true).unwrap().is_match(text), fine, "{schema}: {text}");
    }
    assert!(form(json!({"minimum": 1e30}).as_object().unwrap(), true).is_err());
    assert_eq!(form(json!({"exclusiveMinimum": 0.2, "maximum": 0.9}).as_object().unwrap(), true), Ok(None));
}

#[test]
fn numbers_have_a_longest_form() {
    let mut any = pattern(&json!({}), false).unwrap();
    for (text, fine) in [
        ("-0.5", true),
        ("6.02e23", true),
        ("1e-299", true),
        ("12345678901234567890.5", true),
        ("123456789012345678901", false),
        ("1e1000", false),
        ("12e299", false),
        ("01", false),
        ("1.", false),
    ] {
        assert_eq!(any.is_match(text), fine, "{text}");
    }
    let mut positive = pattern(&json!({"exclusiveMinimum": 0}), false).unwrap();
    assert!(
        positive.is_match("0.1") && !positive.is_match("0") && !positive.is_match(&format!("0.{}1", "0".repeat(30)))
    );
}

#[test]
fn steps_of_powers_of_ten_are_digits_after_the_point() {
    let mut cents = pattern(&json!({"multipleOf": 0.01, "minimum": 0.125, "maximum": 2}), false).unwrap();
    for (text, fine) in [("0.13", true), ("0.12", false), ("2", true), ("1.5", true), ("1.234", false), ("2.01", false)]
    {
        assert_eq!(cents.is_match(text), fine, "{text}");
    }
    let multiples = |schema: Value, integer| form(schema.as_object().unwrap(), integer).unwrap();
    let Some(Form::Multiples { schema, .. }) = multiples(json!({"multipleOf": 0.25, "exclusiveMinimum": 0.5}), false)
    else {
        panic!("no multiples")
    };
    assert_eq!(schema["minimum"], 0.75);
    assert_eq!(multiples(json!({"multipleOf": 7, "minimum": 1, "maximum": 6}), true), None);
    assert_eq!(multiples(json!({"multipleOf": 7, "minimum": 1, "maximum": 7}), true), Some(Form::Pattern("7".into())));
}
