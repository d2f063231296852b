//! Names that resolve to several addresses, and later to others, like those of headless services in
//! Kubernetes.

use std::net::Ipv4Addr;

use crate::support::filesystem::Hosts;
use crate::support::prelude::*;
use crate::support::tally::{Arrival, check, check_unordered};

const NAME: &str = "consumers.test";

/// How long a test waits for a lookup. The relay looks names up every 30 s.
const LOOKED_UP: Duration = PATIENCE.saturating_mul(2);

/// Makes consumers that listen on the same port of 127.0.0.2, 127.0.0.3 and so on.
fn consumers<const COUNT: usize>(
    make: impl Fn(Options) -> Tallying,
) -> ([Ipv4Addr; COUNT], [Tallying; COUNT], u16) {
    let port = free_port();
    let number = |index: usize| u8::try_from(index + 2).unwrap();
    let addresses = std::array::from_fn(|index| Ipv4Addr::new(127, 0, 0, number(index)));
    let consumers =
        addresses.map(|ip| make(Options { ip: Some(ip), port: Some(port), ..Options::default() }));
    (addresses, consumers, port)
}

/// Method: a name has two addresses. The first consumer is killed under load, and later the name
/// changes to a third address. The stream must go to the second and then to the third address, the
/// change of the name must repeat nothing, and every event must arrive in order.
#[test]
#[ignore = "needs peers or root: ./test"]
fn a_stream_goes_to_another_address_when_one_dies_and_when_one_disappears() {
    let hosts = Hosts::new();
    let ([one, two, three], [mut first, second, third], port) = consumers(Tallying::tcp_with);
    hosts.set(&[(NAME, &[one, two])]);
    let config = format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"tcp\"\naddresses = [\"{NAME}:{port}\"]\n\
         replay_window = \"200ms\"\n{QUICK}"
    );
    let relay = Relay::start(&config);
    let senders = Senders::start(1, Bodies::Steady, &mut rng());
    senders.go_to(relay.address());
    first.tally.wait_for_count(100, PATIENCE);
    first.kill();
    second.tally.wait_for_count(100, PATIENCE);
    assert_eq!(third.tally.count(), 0);
    let status = http::get(relay.admin(), "/status").unwrap().json();
    let shown = |index: usize| status["outputs"][0]["addresses"][index]["address"].clone();
    assert_eq!(shown(0), format!("{NAME}:{port} ({one})"));
    assert_eq!(shown(1), format!("{NAME}:{port} ({two})"));

    // The name no longer has the address in use. A pod would end a little later.
    hosts.set(&[(NAME, &[three])]);
    third.tally.wait_for_count(100, LOOKED_UP);
    wait_until("the end of the old connection", PATIENCE, || second.open() == 0);
    let sent = senders.finish();
    relay.finish(Backlog::Empty);
    let (of_second, of_third) = (second.tally.ids(), third.tally.ids());
    assert!(of_second.is_disjoint(&of_third), "finished in order, and not sent again");
    let of = |consumer: &Tallying, offset: usize| {
        let arrivals = consumer.tally.arrivals().into_iter();
        arrivals.map(move |it| Arrival { run: it.run + offset, ..it }).collect::<Vec<_>>()
    };
    check("all", &sent, &[of(&first, 0), of(&second, 1000), of(&third, 2000)].concat());
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn requests_take_turns_over_all_addresses_that_a_name_has_now() {
    let hosts = Hosts::new();
    let ([one, two, three], sinks, port) = consumers(Tallying::http_with);
    hosts.set(&[(NAME, &[one, two])]);
    let config = format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"http\"\nurls = [\"http://{NAME}:{port}/\"]\n\
         strategy = \"round_robin\"\n{QUICK}"
    );
    let relay = Relay::start(&config);
    let senders = Senders::start(1, Bodies::Steady, &mut rng());
    senders.go_to(relay.address());
    sinks[0].tally.wait_for_count(100, PATIENCE);
    sinks[1].tally.wait_for_count(100, PATIENCE);
    assert_eq!(sinks[2].tally.count(), 0);
    // The name loses one address, keeps one, and gets a new one.
    hosts.set(&[(NAME, &[two, three])]);
    sinks[2].tally.wait_for_count(100, LOOKED_UP);
    wait_until("the end of connections to what is gone", PATIENCE, || sinks[0].open() == 0);
    let counts = || [0, 1, 2].map(|index: usize| sinks[index].tally.count());
    let before = counts();
    for index in [1, 2] {
        sinks[index].tally.wait_for_count(before[index] + 100, PATIENCE);
    }
    assert_eq!(counts()[0], before[0]);
    let sent = senders.finish();
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    relay.finish(Backlog::Empty);
    let arrivals: Vec<_> = sinks.iter().flat_map(|sink| sink.tally.arrivals()).collect();
    assert_eq!(check_unordered("all", &sent, &arrivals).len(), 0);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_name_that_does_not_exist_yet_is_waited_for() {
    let hosts = Hosts::new();
    let sink = TcpSink::start();
    let config = format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"tcp\"\naddresses = [\"{NAME}:{}\"]\n\
         replay_window = \"100ms\"\n{QUICK}",
        sink.address().port()
    );
    let relay = Relay::start(&config);
    let sent = post_batch(&relay, 1, 20, 900);
    let labels = [("output", "consumer"), ("reason", "resolve")];
    relay.wait_for_metrics("lookups that fail", PATIENCE, |metrics| {
        (metrics.value("output_errors_total", &labels) >= 2.0).then_some(())
    });
    hosts.set(&[(NAME, &[Ipv4Addr::LOCALHOST])]);
    relay.wait_until_delivered(PATIENCE);
    sink.wait_for_count(sent.len(), PATIENCE);
    assert_eq!(sink.lines(), sent);
    relay.finish(Backlog::Empty);
}
