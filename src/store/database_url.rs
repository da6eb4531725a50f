//! Reads `database_url` without ever showing it: it holds a password, and a password with an unescaped `/` or `?` ends
//! up in any part of it. Called by [`Store`](super::Store) when it connects.

use std::str::FromStr as _;

use sqlx::postgres::PgConnectOptions;

use crate::store::{Error, Result};

/// The parameters after `?` that are understood; others would be ignored, and written to the log with their values.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];
/// The values of `sslmode`.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Returns what the URL says of the connection, or an error with the wanted form and nothing of the URL.
pub(super) fn connect_options(url: &str) -> Result<PgConnectOptions> {
    let fault = |what: String| Error::Setup(format!("database_url: {what}"));
    let form = || {
        fault(
            "it must have the form postgres://USER:PASSWORD@HOST:PORT/DATABASE; write the characters %, /, ?, #, @ and : \
             of a password as %25, %2F, %3F, %23, %40 and %3A"
                .into(),
        )
    };
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if !matches!(scheme, Some("postgres" | "postgresql")) || url.contains('#') {
        return Err(form());
    }
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let is_option = name.starts_with("options[") && name.ends_with(']');
        if !PARAMETERS.contains(&name) && !is_option {
            let known = PARAMETERS.join(", ");
            return Err(fault(format!("a parameter after `?` is not known (it is not shown); these are: {known}")));
        }
        if matches!(name, "sslmode" | "ssl-mode") && !SSL_MODES.contains(&value) {
            return Err(fault(format!("{name} must be one of {}", SSL_MODES.join(", "))));
        }
    }
    PgConnectOptions::from_str(url).map_err(|_| form())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood_is_read() {
        for url in [
            "postgres://attune@localhost/attune?host=/tmp/x",
            "postgresql://a:b%2Fc@db.example.com:5433/attune?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            "postgres://a@db/attune?options[search_path]=x&application_name=y&statement-cache-capacity=10",
        ] {
            assert!(connect_options(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn no_error_shows_a_part_of_the_url() {
        for url in [
            "topsecret",
            "mysql://a:topsecret@db/x",
            "postgres:a:topsecret@db/x",
            "postgres://a:topsecret/more@db/x",
            "postgres://a:12?topsecret@db/x",
            "postgres://a:12?topsecret=1@db/x",
            "postgres://a:12#topsecret@db/x",
            "postgres://a@db/x?topsecret",
            "postgres://a@db/x?unknown=topsecret",
            "postgres://a@db/x?sslmode=topsecret",
            "postgres://a@db/x?port=topsecret",
            "postgres://a@db/x?hostaddr=topsecret",
            "postgres://a@db/x?statement-cache-capacity=topsecret",
            "postgres://a:%ff%fetopsecret@db/x",
            "postgres://a:b@[topsecret/x",
        ] {
            let said = connect_options(url).expect_err(url).to_string();
            assert!(said.starts_with("database_url: ") && !said.contains("topsecret"), "{url}: {said}");
        }
    }
}
