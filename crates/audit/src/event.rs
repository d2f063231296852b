//! Decides if a JSON object is an audit event.

use std::borrow::Cow;

use crate::{API_VERSION, DEPTH_MAX, LEVELS, scan};

/// Checks if `event`, valid JSON, is an audit event. Returns the index of its level in [`LEVELS`],
/// or the byte offset and a description of the fault. If a key occurs twice, the first counts.
pub(super) fn check(event: &[u8]) -> Result<usize, (usize, Cow<'static, str>)> {
    if event.first() != Some(&b'{') {
        return Err((0, "not an object".into()));
    }
    let (mut audit_id, mut stage, mut level) = (None, None, None);
    let (mut kind, mut api_version) = (None, None);
    let mut members = scan::members(event);
    for member in &mut members {
        let slot = match &*member.name() {
            b"auditID" => &mut audit_id,
            b"stage" => &mut stage,
            b"level" => &mut level,
            b"kind" => &mut kind,
            b"apiVersion" => &mut api_version,
            _ => continue,
        };
        slot.get_or_insert(member.value);
    }
    if members.depth() > DEPTH_MAX {
        return Err((0, format!("nested more than {DEPTH_MAX} deep").into()));
    }
    let at = |value: &[u8]| value.as_ptr() as usize - event.as_ptr() as usize;
    if kind.is_some() || api_version.is_some() {
        if kind.and_then(scan::string).as_deref() != Some(b"Event") {
            return Err((kind.map_or(0, at), "kind is not Event".into()));
        }
        if api_version.and_then(scan::string).as_deref() != Some(API_VERSION.as_bytes()) {
            let version = api_version.and_then(scan::string);
            let version = version.as_deref().and_then(|version| std::str::from_utf8(version).ok());
            return Err((api_version.map_or(0, at), wrong_version(version).into()));
        }
    }
    match audit_id {
        None => return Err((0, "auditID is missing".into())),
        Some(value) if value.first() != Some(&b'"') => {
            return Err((at(value), "auditID is not a string".into()));
        }
        Some(value) if value == b"\"\"" => return Err((at(value), "auditID is empty".into())),
        Some(_) => {}
    }
    match stage.map(|value| (value, scan::string(value))) {
        None => return Err((0, "stage is missing".into())),
        Some((value, known)) => {
            match known.as_deref() {
                Some(b"RequestReceived" | b"ResponseStarted" | b"ResponseComplete" | b"Panic") => {}
                _ => return Err((
                    at(value),
                    "stage is not one of RequestReceived, ResponseStarted, ResponseComplete, Panic"
                        .into(),
                )),
            }
        }
    }
    let level = level.and_then(scan::string);
    let known = LEVELS.iter().position(|name| level.as_deref() == Some(name.as_bytes()));
    Ok(known.unwrap_or(LEVELS.len() - 1))
}

/// Returns the message for a wrong `apiVersion`; `None` is one that is missing or not a string.
pub(super) fn wrong_version(version: Option<&str>) -> String {
    match version {
        Some("audit.k8s.io/v1beta1" | "audit.k8s.io/v1alpha1") => {
            format!(
                "apiVersion is a beta version, removed in Kubernetes 1.24: only {API_VERSION} is accepted"
            )
        }
        Some(version) => {
            format!("apiVersion is {}: only {API_VERSION} is accepted", quoted(version))
        }
        None => format!("apiVersion is missing or not a string: only {API_VERSION} is accepted"),
    }
}

/// Returns a value that a sender has sent, for a message that may be logged: in quotation marks, at
/// most the first 64 characters, with control characters escaped.
pub(super) fn quoted(value: &str) -> String {
    let short: String = value.chars().take(64).collect();
    format!("{short:?}")
}
