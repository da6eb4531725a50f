use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::{FromRequest as _, Multipart, Request};
use axum::http::HeaderValue;
use futures::stream;
use proptest::prelude::*;

use super::*;

/// Name, file name and content of each part.
type Parts = Vec<(String, Option<String>, Vec<u8>)>;

fn headers(kind: &str) -> HeaderMap {
    [(CONTENT_TYPE, HeaderValue::from_str(kind).expect("a header"))].into_iter().collect()
}

/// The body in pieces of the lengths `sizes`, again and again.
fn pieces(body: &[u8], sizes: &[usize]) -> Body {
    let (mut rest, mut pieces) = (body.to_vec(), Vec::new());
    for size in sizes.iter().copied().cycle() {
        if rest.is_empty() {
            break;
        }
        let after = rest.split_off(size.clamp(1, rest.len()));
        pieces.push(Ok::<_, std::io::Error>(Bytes::from(std::mem::replace(&mut rest, after))));
    }
    Body::from_stream(stream::iter(pieces))
}

async fn read(kind: &str, body: Body) -> Result<Parts> {
    let pace = Pace::new(1, Duration::from_hours(1));
    let mut form = Form::new(&headers(kind), body, pace)?;
    let mut parts = Vec::new();
    while let Some(Disposition { name, filename }) = form.next_part().await? {
        let mut content = Vec::new();
        while let Some(piece) = form.piece().await? {
            assert!(!piece.is_empty());
            content.extend_from_slice(&piece);
        }
        parts.push((name.unwrap_or_default(), filename, content));
    }
    assert!(form.next_part().await?.is_none(), "the end stays the end");
    Ok(parts)
}

async fn read_by_multer(kind: &str, body: Body) -> Option<Parts> {
    let request = Request::builder().header(CONTENT_TYPE, kind).body(body).expect("a request");
    let mut form = Multipart::from_request(request, &()).await.ok()?;
    let mut parts = Vec::new();
    while let Some(field) = form.next_field().await.ok()? {
        let (name, filename) = (field.name().unwrap_or_default().to_owned(), field.file_name().map(str::to_owned));
        parts.push((name, filename, field.bytes().await.ok()?.to_vec()));
    }
    Some(parts)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(work)
}

fn written(boundary: &str, parts: &Parts, preamble: &str, padding: &str) -> Vec<u8> {
    let mut body = preamble.as_bytes().to_vec();
    for (name, filename, content) in parts {
        let filename = filename.as_ref().map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
        let head =
            format!("--{boundary}{padding}\r\nContent-Disposition: form-data; name=\"{name}\"{filename}\r\n\r\n");
        body.extend(head.into_bytes());
        body.extend(content);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{boundary}--\r\n").into_bytes());
    body
}

fn said(kind: &str, body: impl Into<Vec<u8>>) -> String {
    let body: Vec<u8> = body.into();
    let [whole, split] =
        [block_on(read(kind, pieces(&body, &[body.len().max(1)]))), block_on(read(kind, pieces(&body, &[1])))];
    let [whole, split] = [whole, split].map(|read| read.expect_err("a fault"));
    assert_eq!(whole.error.message, split.error.message, "the fault must not depend on the pieces");
    assert!((400..=415).contains(&whole.status.as_u16()), "{whole}");
    whole.error.message
}

proptest! {
    #[test]
    fn a_form_is_read_the_same_in_any_pieces_and_as_multer_reads_it(
        boundary in "[a-c-]{0,3}[a-c]",
        parts in prop::collection::vec(("[a-z]{1,4}", prop::option::of("[a-z.]{1,6}"), "[\r\n a-c-]{0,40}"), 0..5),
        preamble in prop::option::of("[a-z ]{0,9}\r\n"),
        padding in "[ \t]{0,3}",
        sizes in prop::collection::vec(1..50_usize, 1..6),
    ) {
        let delimiter = format!("\r\n--{boundary}");
        let parts: Parts = parts.into_iter().map(|(name, file, text)| (name, file, text.into_bytes())).collect();
        let holds = |content: &[u8]| memmem::find(&[b"\r\n", content, b"\r\n"].concat(), delimiter.as_bytes()).is_some();
        prop_assume!(!parts.iter().any(|(_, _, content)| holds(content)));
        let body = written(&boundary, &parts, preamble.as_deref().unwrap_or_default(), &padding);
        let kind = format!("multipart/form-data; boundary={boundary}");
        let read = block_on(read(&kind, pieces(&body, &sizes)));
        prop_assert_eq!(read.ok(), Some(parts.clone()));
        // It takes no form without parts.
        if !parts.is_empty() {
            prop_assert_eq!(block_on(read_by_multer(&kind, pieces(&body, &sizes))), Some(parts));
        }
    }

    #[test]
    fn anything_is_read_the_same_in_any_pieces(
        body in "(--b|\r\n|--|:|name|[a b;=\"]|Content-Disposition: form-data; name=b){0,30}",
        sizes in prop::collection::vec(1..9_usize, 1..6),
    ) {
        let kind = "multipart/form-data; boundary=b";
        let outcome = |sizes: &[usize]| block_on(read(kind, pieces(body.as_bytes(), sizes))).map_err(|it| it.error.message);
        prop_assert_eq!(outcome(&[body.len().max(1)]), outcome(&sizes));
    }
}

#[test]
fn a_form_without_its_boundary_or_with_an_endless_head_is_refused_after_some_kib() {
    let head = "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"";
    for (begin, says) in [("", "does not begin with its boundary"), (head, "longer than 8192 bytes")] {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let endless = stream::repeat_with(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 1000]))
        });
        let body = stream::iter([Ok(Bytes::from(begin))]);
        let body = Body::from_stream(futures::StreamExt::chain(body, endless));
        let problem = block_on(read("multipart/form-data; boundary=edge", body)).expect_err("it has no end");
        assert_eq!(problem.status, 400);
        assert!(problem.error.message.contains(says), "{problem}");
        assert!(count.load(Ordering::Relaxed) < 12, "read on after it was known");
    }
}

#[test]
fn what_is_wrong_with_a_form_is_said() {
    let kind = "multipart/form-data; boundary=edge";
    let part = "--edge\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n";
    let headers = format!("--edge\r\n{}\r\nx\r\n--edge--", "A: b\r\n".repeat(17));
    for (body, says) in [
        (String::new(), "'--edge--', did not come"),
        (part.to_owned(), "'--edge--', did not come"),
        (format!("{part}--edge\r\nContent-Disp"), "did not come"),
        (format!("{part}--edges\r\n\r\n\r\n--edge--"), "goes on: choose another boundary"),
        ("--edge\r\nno header\r\n\r\nx\r\n--edge--".into(), "'no header', which is no header"),
        (headers, "more than 16 headers"),
        (format!("{}--edge--", part.repeat(33)), "more than 32 parts"),
        (
            "--edge\r\nContent-Disposition: form-data; name=a\r\nContent-Disposition: form-data; name=b\r\n\r\n".into(),
            "two headers 'Content-Disposition'",
        ),
        ("--edge\r\nContent-Transfer-Encoding: base64\r\n\r\neA==\r\n--edge--".into(), "'base64': send it as it is"),
    ] {
        let message = said(kind, body);
        assert!(message.contains(says), "{message}");
    }
    for (kind, says) in [
        ("application/json", "not 'application/json'"),
        ("multipart/form-data", "names no boundary"),
        ("multipart/form-data; boundary=", "names no boundary"),
        (&format!("multipart/form-data; boundary={}", "b".repeat(71)), "longer than 70"),
        ("multipart/form-data; boundary=\"a b \"", "spaces inside"),
        ("multipart/form-data; boundary=\"a{b\"", "characters"),
    ] {
        let message = said(kind, part);
        assert!(message.contains(says), "{kind}: {message}");
    }
}

#[test]
fn a_boundary_may_be_quoted_and_a_part_without_a_name_is_read() {
    let body =
        "\r\n--a b\r\n\r\nx\r\n--a b\r\ncontent-disposition: form-data; name=\"n\"\r\n\r\n\r\n--a b--rest\r\n--a b\r\n";
    let parts = block_on(read("Multipart/Form-Data; charset=utf-8; Boundary=\"a b\"", Body::from(body)));
    let expected = [(String::new(), None, b"x".to_vec()), ("n".into(), None, Vec::new())];
    assert_eq!(parts.expect("a form"), expected);
}
