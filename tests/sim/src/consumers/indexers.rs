//! Several Splunk indexers behind one address.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::support::http_sink::{Answer, Request};

/// A balancer in front of several indexers, which are one store here. It sends a request without
/// its cookie to an indexer of its choice, and names that indexer in the cookie. The cookie's value
/// differs in each response. Only the indexer that took the last request of a channel knows which
/// requests of the channel are indexed. Any other indexer says that none are.
pub(super) fn several_indexers()
-> impl Fn(&Request, &dyn Fn(&Request) -> Answer) -> Answer + Send + Sync + 'static {
    // The number of requests so far, and the indexer of each channel.
    let state = Mutex::new((0, BTreeMap::<String, u64>::new()));
    move |request, store| {
        let channel = request.header("x-splunk-request-channel").expect("a channel").to_owned();
        let told = route(request);
        let (number, indexer) = {
            let (number, indexers) = &mut *state.lock().expect("not poisoned");
            if request.target.ends_with("/ack") {
                let knows = told.is_some() && told == indexers.get(&channel).copied();
                return if knows { store(request) } else { no_acks(request) };
            }
            *number += 1;
            let indexer = told.unwrap_or(*number);
            indexers.insert(channel, indexer);
            (*number, indexer)
        };
        store(request)
            .header("Set-Cookie", &format!("ROUTE={indexer}.{number}; Path=/; HttpOnly"))
            .header("Set-Cookie", "seen=\"yes\"; Max-Age=3600; Path=/; SameSite=None")
    }
}

/// Returns the indexer in a request's cookies, or `None` if there are no cookies. Panics if the
/// cookies are not those of the balancer, or if they include their attributes.
fn route(request: &Request) -> Option<u64> {
    let cookies: Vec<_> = request.header("cookie")?.split("; ").collect();
    let [mut route, mut seen] = cookies[..] else { panic!("the cookies {cookies:?}") };
    if seen.starts_with("ROUTE=") {
        (route, seen) = (seen, route);
    }
    assert_eq!(seen, "seen=\"yes\"");
    let route = route.strip_prefix("ROUTE=").and_then(|route| route.split_once('.'));
    let (indexer, number) = route.unwrap_or_else(|| panic!("the cookies {cookies:?}"));
    number.parse::<u64>().expect("a number");
    Some(indexer.parse().expect("a number"))
}

/// Returns the response of an indexer that knows none of the requests.
fn no_acks(request: &Request) -> Answer {
    let asked: BTreeMap<String, Vec<u64>> =
        serde_json::from_slice(&request.decoded()).expect("a question");
    let no = asked["acks"].iter().map(|number| (number.to_string(), false));
    let acks: BTreeMap<_, _> = no.collect();
    Answer::status(200).body(serde_json::json!({"acks": acks}).to_string())
}
