//! Styles, scripts and images of the page, compiled into the program from `assets/ui`. Their path holds a number of all
//! of them together, so browsers may keep them for ever, and modules that import each other stay of one version.
//! `assets/ui/README.md` lists what others wrote.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use rust_embed::RustEmbed;
use sha2::{Digest as _, Sha256};

#[derive(RustEmbed)]
#[folder = "assets/ui"]
struct Assets;

/// The number of all files together.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut names: Vec<_> = Assets::iter().collect();
    names.sort_unstable();
    let mut hash = Sha256::new();
    for name in names {
        hash.update(name.as_bytes());
        hash.update(Assets::get(&name).map(|file| file.metadata.sha256_hash()).unwrap_or_default());
    }
    hex(&hash.finalize()[..8])
});

/// Returns the path of the file `name`.
pub(crate) fn path(name: &str) -> String {
    format!("/ui/assets/{}/{name}", *VERSION)
}

/// Sends a file.
pub(crate) async fn serve(
    Path((version, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, StatusCode> {
    let (kind, file) = kind(&name).zip(Assets::get(&name)).ok_or(StatusCode::NOT_FOUND)?;
    let tag = format!("\"{}\"", hex(&file.metadata.sha256_hash()));
    // A page of another version of the program gets the file, and asks again the next time.
    let cached = if version == *VERSION { "public, max-age=31536000, immutable" } else { "no-cache" };
    let known = headers.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok()).unwrap_or_default();
    let is_known = known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag);
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, kind)], file.data.into_owned()).into_response()
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(cached));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// Returns the type of a file; `None` for those that are only here for readers of the sources.
fn kind(name: &str) -> Option<&'static str> {
    match name.rsplit_once('.')?.1 {
        "css" => Some("text/css; charset=utf-8"),
        "js" => Some("text/javascript; charset=utf-8"),
        "svg" => Some("image/svg+xml"),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bound is for compressed files; these are sent as they are, so they keep it as they are.
    const MOST: usize = 200_000;

    #[test]
    fn all_files_together_are_small() {
        let bytes: usize = Assets::iter().filter_map(|name| Assets::get(&name)).map(|file| file.data.len()).sum();
        assert!((10_000..MOST).contains(&bytes), "{bytes} bytes");
    }

    #[test]
    fn files_of_others_are_the_listed_ones() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/ui");
        let list = std::fs::read_to_string(folder.join("README.md")).expect("the list");
        let rows = list.lines().filter(|line| line.starts_with("| `"));
        let rows: Vec<Vec<&str>> =
            rows.map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`')).collect()).collect();
        assert!(rows.len() >= 2, "{rows:?}");
        for row in rows {
            let (name, hash, license) = (row[1], row[4], row[5]);
            let file = Assets::get(name).unwrap_or_else(|| panic!("{name} is not there"));
            assert_eq!(hex(&file.metadata.sha256_hash()), hash, "{name}");
            let license = std::fs::read_to_string(folder.join(license)).expect("its licence");
            assert!(license.contains("Permission is hereby granted"), "{name}");
        }
    }

    #[tokio::test]
    async fn a_file_is_kept_for_ever_under_its_own_number_only() {
        let get = async |version: &str, known: Option<&HeaderValue>| {
            let headers = known.map(|known| (header::IF_NONE_MATCH, known.clone())).into_iter().collect();
            serve(Path((version.to_owned(), "page.css".into())), headers).await.expect("a file")
        };
        let fresh = get(&VERSION, None).await;
        assert_eq!(fresh.headers()["cache-control"], "public, max-age=31536000, immutable");
        assert_eq!(fresh.headers()["content-type"], "text/css; charset=utf-8");
        assert_eq!(get("0", None).await.headers()["cache-control"], "no-cache");
        assert_eq!(get(&VERSION, Some(&fresh.headers()["etag"])).await.status(), 304);
    }

    #[tokio::test]
    async fn nothing_but_the_files_is_sent() {
        for name in ["README.md", "../page.css", "LICENSE-uplot", "nothing"] {
            let path = Path((VERSION.clone(), name.to_owned()));
            assert!(serve(path, HeaderMap::new()).await.is_err(), "{name}");
        }
    }
}
