//! `attune health`: asks a server on this machine whether it is ready, for the health checks of containers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::{Error, Result};

/// Longest wait for the answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Asks the server that listens on `listen`; an error if it is not ready.
pub(super) async fn ask(listen: SocketAddr) -> Result<()> {
    let url = format!("http://{}/ready", reachable(listen));
    let away = |error: reqwest::Error| Error::Unavailable(format!("{url} does not answer: {error}"));
    let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().map_err(away)?;
    let status = http.get(&url).send().await.map_err(away)?.status();
    if status.is_success() { Ok(()) } else { Err(Error::Unavailable(format!("{url} answers {status}"))) }
}

/// Returns the address by which a server on `listen` is reached from its own machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let address = match listen.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::new(address, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_every_address_is_asked_at_the_local_one() {
        for (listen, asked) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:9000", "[::1]:9000"),
            ("10.0.0.7:80", "10.0.0.7:80"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
        ] {
            assert_eq!(reachable(listen.parse().expect("an address")).to_string(), asked);
        }
    }
}
