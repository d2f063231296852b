//! Serves the evidence log below `/evidence/`, as C2SP `tlog-tiles` asks for it: the checkpoint,
//! the tiles and the entries. The line hashes are not served.

use std::path::Path;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HeaderValue;
use hyper::{Response, StatusCode, header};

use super::text;
use evidence_log::reader::{Directory, Files as _};
use evidence_log::tlog::note::NOTE_BYTES_MAX;
use evidence_log::tlog::tile::{CHECKPOINT, Tile};

pub(super) const PREFIX: &str = "/evidence/";

/// Returns the response for a file of the log in the directory `log`, which is `None` without
/// evidence. `path` is the URL's path, which begins with [`PREFIX`]. Blocks the thread.
pub(super) fn response(log: Option<&Path>, path: &str) -> Response<Full<Bytes>> {
    let Some(log) = log else {
        return text(StatusCode::NOT_FOUND, "there is no evidence in the config\n".to_owned());
    };
    let (directory, path) = (Directory::at(log), path.strip_prefix(PREFIX).unwrap_or(path));
    let (found, kind, caching) = match Tile::parse(path) {
        // The content of a tile, whole or partial, never changes.
        Some(tile) => (
            directory.tile(tile),
            "application/octet-stream",
            "public, max-age=31536000, immutable",
        ),
        None if path == CHECKPOINT => {
            (directory.read(CHECKPOINT, NOTE_BYTES_MAX), "text/plain; charset=utf-8", "no-cache")
        }
        None => (Ok(None), "", ""),
    };
    match found {
        Ok(Some(bytes)) => {
            let mut response = Response::new(Full::from(bytes));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
            response
        }
        Ok(None) => text(StatusCode::NOT_FOUND, "the log has no such file\n".to_owned()),
        Err(error) => {
            tracing::warn!(
                %error,
                path,
                "cannot read a file of the evidence that was requested at the admin address: the \
                 response is 500"
            );
            let said = "the file can't be read, and the relay's log says why\n".to_owned();
            text(StatusCode::INTERNAL_SERVER_ERROR, said)
        }
    }
}
