//! A server whose GPU is lost reports it and ends, so that its supervisor starts it again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use attune::app::App;
use attune::config::Config;
use attune::model::device::DeviceChoice;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

async fn status(url: &str) -> reqwest::Result<u16> {
    Ok(reqwest::Client::builder().no_proxy().build()?.get(url).send().await?.status().as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_its_device_is_not_ready_and_ends_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { data_dir: folder.path().into(), device: DeviceChoice::Cpu, ..Config::default() };
    let app = App::build(config.check().unwrap()).await.unwrap();
    let health = app.catalog().entries()[0].model.health.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(app.run(listener, CancellationToken::new()));

    // A failure on a device that still answers is no reason to end.
    assert!(health.check());
    assert_eq!(status(&format!("{address}/ready")).await.unwrap(), 200);
    health.lose();
    // While requests in flight end, new ones are turned away.
    if let Ok(status) = status(&format!("{address}/ready")).await {
        assert_eq!(status, 503);
    }
    let ended = tokio::time::timeout(Duration::from_secs(30), server).await.unwrap().unwrap();
    assert!(ended.unwrap_err().to_string().contains("the GPU does not answer any more"));
    assert!(status(&format!("{address}/ready")).await.is_err());
}
