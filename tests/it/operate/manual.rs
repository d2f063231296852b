//! The manual at the admin address: its pages, their links, and the links that lead to them from
//! alerts, the dashboard, findings and commands.

use std::io::Read as _;

use url::Url;

use crate::support::http::{Response, get};
use crate::support::prelude::*;
use crate::support::rules::values;
use crate::support::setup::{config, start};

/// The address to which the links of the shipped rules and of the dashboard lead.
const FORWARDED: &str = "http://127.0.0.1:9090/";

/// Returns the values of an attribute in a page, in which it stands after a space.
fn attributes(html: &str, name: &str) -> Vec<String> {
    let begin = format!(" {name}=\"");
    let values = html.split(&begin).skip(1);
    values.map(|rest| rest.split('"').next().unwrap().replace("&amp;", "&")).collect()
}

/// Asks for a page of the manual, and checks its headers.
fn page(client: &mut Client, path: &str, headers: &[(&str, &str)]) -> Response {
    let response = client.request("GET", path, headers, b"").unwrap();
    assert_eq!(response.status, 200, "{path}");
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(response.header(name), Some(value), "{path}: {name}");
    }
    let policy = response.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'self'; "), "{path}: {policy}");
    assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
    response
}

/// Method: with tokens in the config, all pages are opened from the table of contents on, without a
/// token. Each link must lead to a page, and its anchor to a heading.
#[test]
fn every_link_of_the_manual_leads_to_a_page_and_to_a_heading_and_needs_no_token() {
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "r3ader\n").unwrap();
    let sink = TcpSink::start();
    let tokens = format!("bearer_token_file = {0:?}, metrics_token_file = {0:?}", text(&token));
    let relay = Relay::start(&with_admin(&config(&sink, "", ""), &tokens));
    assert_eq!(get(relay.admin(), "/status").unwrap().status, 401);
    let mut client = Client::connect(relay.admin()).unwrap();
    let origin = Url::parse(&format!("http://{}/contents", relay.admin())).unwrap();
    let (mut todo, mut anchors) = (vec![origin.path().to_owned()], BTreeMap::new());
    let mut links = Vec::new();
    while let Some(path) = todo.pop() {
        if anchors.contains_key(&path) {
            continue;
        }
        let html = page(&mut client, &path, &[]).text();
        let ids: Vec<String> = attributes(&html, "id");
        let distinct: BTreeSet<String> = ids.iter().cloned().collect();
        assert_eq!(ids.len(), distinct.len(), "{path}: two headings have one anchor");
        let is_file = path.contains('.');
        assert!(is_file || html.contains("<h1 id="), "{path}");
        assert!(is_file || !html.contains("<img") && !html.contains(" style="), "{path}");
        for link in attributes(&html, "href").into_iter().filter(|_| !is_file) {
            let target = origin.join(&path).unwrap().join(&link).unwrap();
            if target.origin() == origin.origin() && target.path() != "/" {
                assert!(!link.starts_with('/'), "{path}: {link}: a proxy may add a prefix");
                todo.push(target.path().to_owned());
                links.push((path.clone(), target));
            }
        }
        anchors.insert(path, distinct);
    }
    for (path, target) in &links {
        let known = &anchors[target.path()];
        assert!(target.fragment().is_none_or(|it| known.contains(it)), "{path}: {target}");
    }
    assert!(links.len() > 800, "{}", links.len());
    // These are the pages of docs/SUMMARY.md, which another test compares with the files.
    let contents = std::fs::read_to_string(repository().join("docs/SUMMARY.md")).unwrap();
    for link in contents.split("](").skip(1).filter_map(|rest| rest.split(".md)").next()) {
        let is_served = anchors.contains_key(&format!("/{link}"));
        assert_ne!(is_served, link.starts_with("internals/"), "{link}");
    }
    for path in ["/config/stdout.toml", "/manual.css"] {
        assert!(anchors.contains_key(path), "{path}");
    }
}

#[test]
fn a_client_without_gzip_gets_the_page_as_it_is_and_an_unknown_page_names_the_contents() {
    let (relay, _sink) = start("", "");
    let mut client = Client::connect(relay.admin()).unwrap();
    let path = "/runbooks/KubeAuditForwarderOutputDown";
    let plain = page(&mut client, path, &[]);
    assert_eq!(plain.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(plain.header("content-encoding"), None);
    assert!(plain.text().contains("<h1 id=\"kubeauditforwarderoutputdown\">"), "{}", plain.text());
    let packed = page(&mut client, path, &[("Accept-Encoding", "br, gzip, deflate")]);
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert_eq!(packed.header("content-type"), plain.header("content-type"));
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(&*packed.body).read_to_string(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain.text());
    let config = page(&mut client, "/config/stdout.toml", &[]);
    assert_eq!(config.header("content-type"), Some("text/plain; charset=utf-8"));
    let file = std::fs::read_to_string(repository().join("config/stdout.toml")).unwrap();
    assert_eq!(config.text(), file);
    let style = page(&mut client, "/manual.css", &[]);
    assert_eq!(style.header("content-type"), Some("text/css; charset=utf-8"));
    let unknown = ["/runbooks", "/runbooks/", "/runbooks/X", "/runbooks/../start", "/SUMMARY.md"];
    for path in unknown.into_iter().chain(["/internals/glossary", "/config/x", "//contents"]) {
        let answer = client.request("GET", path, &[], b"").unwrap();
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.text().ends_with("the manual is at /contents\n"), "{}", answer.text());
    }
    assert_eq!(client.request("POST", path, &[], b"").unwrap().status, 405);
    let mut stream = std::net::TcpStream::connect(relay.admin()).unwrap();
    let head = format!("HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    relay.finish(Backlog::Empty);
}

/// Method: each link of an alert, of the dashboard, of a finding and of `doctor` is opened at a
/// real relay, whose only output is down. It must show the page of that name.
#[test]
fn the_links_of_alerts_findings_and_the_dashboard_open_their_page_at_a_relay() {
    let (relay, mut sink) = start("", "");
    let read = |name: &str| std::fs::read_to_string(repository().join(name)).unwrap();
    let opens = |path: &str| {
        let name = path.rsplit('/').next().unwrap();
        let html = get(relay.admin(), path).unwrap().text();
        let title = if name == "README" { "Runbooks" } else { name };
        assert!(html.contains(&format!("<title>{title}</title>")), "{path}: {html}");
    };
    let rules = read("deploy/monitoring/rules.yaml");
    let links = values(&rules, "runbook_url:");
    assert!(links.len() > 25, "{links:?}");
    for link in links {
        opens(link.strip_prefix(FORWARDED.trim_end_matches('/')).unwrap());
    }
    let dashboard = read("deploy/overlays/monitoring/dashboard.json");
    let base = dashboard.split(FORWARDED).nth(1).unwrap().split('"').next().unwrap();
    let links = dashboard.split("\"${runbooks:raw}").skip(1);
    let links: Vec<_> = links.map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(links.len() > 25, "{links:?}");
    links.iter().for_each(|link| opens(&format!("/{base}{link}")));

    sink.close();
    assert_accepted(&relay.post(&generated_batch(1, 10, 600)), 10);
    let mut finding = Value::Null;
    wait_until("the finding", PATIENCE, || {
        let status = get(relay.admin(), "/status").unwrap().json();
        finding = status["verdict"]["findings"][0].clone();
        finding["kind"] == "output_down"
    });
    assert_eq!(finding["runbook"], "/runbooks/KubeAuditForwarderOutputDown");
    opens(finding["runbook"].as_str().unwrap());
    let admin = format!("http://{}", relay.admin());
    let said = run_command(&["doctor", "--interval", "0s", "--relay", &admin], Path::new("/"));
    let said = String::from_utf8(said.stdout).unwrap();
    let link = format!("\nrunbook: {admin}/runbooks/KubeAuditForwarderOutputDown\n");
    assert!(said.contains(&link), "{said}");
}
