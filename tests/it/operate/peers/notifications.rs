//! What an operator is told: one trouble is one notification. A real Alertmanager has the
//! repository's inhibit rules, and a real Prometheus its alert rules.

use crate::support::alertmanager::{Alertmanager, Notification};
use crate::support::prelude::*;
use crate::support::prometheus::{NAMESPACE, Prometheus, target};
use crate::support::{PATIENCE, wait_until};

/// A trouble: the alerts that fire in it at the same time, each with its labels beyond those of the
/// relay (`name=value`), and those of which an operator is told.
type Trouble = (&'static [&'static str], &'static [&'static str]);

const TROUBLES: &[Trouble] = &[
    // A consumer hangs.
    (
        &["OutputLags output=a", "OutputAddressDown output=a", "OutputDown output=a"],
        &["OutputDown"],
    ),
    (&["EventsSetAside output=a", "OutputLags output=a"], &["OutputLags"]),
    // Another output of the same relay, and the same one of another relay.
    (&["OutputLags output=b", "OutputDown output=a"], &["OutputDown", "OutputLags"]),
    (&["OutputLags output=a pod=relay-1", "OutputDown output=a"], &["OutputDown", "OutputLags"]),
    // Everything is refused. These alerts are about all replicas.
    (
        &[
            "RequestsRejected pod= instance= reason=unauthorized",
            "TlsHandshakesFail pod= instance= reason=other listener=l",
            "NothingReceived pod= instance=",
            "EverythingRefused pod= instance=",
        ],
        &["EverythingRefused"],
    ),
    // The disk is full, and so is that of the evidence.
    (
        &[
            "EvidenceNotWritten",
            "DiskSlow",
            "SendersWait reason=disk",
            "QueueNearlyFull",
            "DiskRefused",
            "NothingReceived pod= instance=",
        ],
        &["DiskRefused"],
    ),
    (&["EvidenceNotWritten"], &["EvidenceNotWritten"]),
    // Slow bodies.
    (&["SendersWait reason=timeout", "ConnectionsRefused listener=l"], &["ConnectionsRefused"]),
    (
        &["SendersWait reason=in_flight_full", "ConnectionsRefused listener=l"],
        &["ConnectionsRefused", "SendersWait"],
    ),
    (&["SendersWait reason=queue_full", "QueueNearlyFull"], &["QueueNearlyFull"]),
    // Memory.
    (&["Killed", "MemoryNearLimit"], &["MemoryNearLimit"]),
    (&["Killed", "MemoryNearLimit pod=relay-1"], &["Killed", "MemoryNearLimit"]),
    // A loss has its own notification, if its events were not changed by somebody.
    (&["EventsLost plugin=a", "OutputDown output=a"], &["EventsLost", "OutputDown"]),
    (&["EventsLost plugin=a", "EvidenceTampered"], &["EvidenceTampered"]),
];

/// Returns the labels of an alert of [`TROUBLES`]. Each trouble is in a namespace of its own.
fn labels(alert: &str, trouble: usize) -> Value {
    let mut words = alert.split(' ');
    let name = format!("KubeAuditForwarder{}", words.next().expect("a name"));
    let mut labels = json!({ "alertname": name, "job": "relay", "pod": "relay-0",
        "instance": "10.0.0.1:9090", "namespace": format!("trouble-{trouble:02}") });
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        labels[name] = value.into();
    }
    labels
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn alerts_that_fire_together_are_one_notification_the_cause() {
    let manager = Alertmanager::start();
    let mut wanted = Vec::new();
    let mut last = Vec::new();
    for (at, (fire, told)) in TROUBLES.iter().enumerate() {
        let alerts: Vec<Value> = fire.iter().map(|alert| labels(alert, at)).collect();
        manager.fire(&alerts);
        last = alerts;
        wanted.extend(told.iter().map(|alert| Notification {
            namespace: format!("trouble-{at:02}"),
            alert: (*alert).to_owned(),
            fires: true,
        }));
    }
    wait_until("each notification", PATIENCE, || manager.told().len() >= wanted.len());
    // Later alerts are told of after all of these.
    last[0]["namespace"] = "end".into();
    manager.fire(&last[..1]);
    wait_until("the end", PATIENCE, || manager.told().iter().any(|it| it.namespace == "end"));
    let mut told = manager.told();
    told.retain(|it| it.namespace != "end");
    told.sort();
    assert_eq!(told, wanted);
}

/// Method: for Prometheus, a second is ten seconds. A consumer goes down for a quarter of an
/// hour of that time. In that time, the relay is restarted, and then Prometheus.
#[test]
#[ignore = "needs peers or root: ./test"]
fn a_trouble_is_one_notification_through_restarts_of_the_relay_and_of_prometheus() {
    let (mut sink, spool, directory) =
        (HttpSink::accepting(), Spool::new(), TempDir::new().unwrap());
    let drain = "[shutdown]\ndrain_timeout = \"100ms\"\n";
    let config = to_sink(sink.address(), &format!("{}{drain}", spool.queue("")));
    let mut relay = Relay::start(&config);
    let targets = directory.path().join("targets.json");
    target(&targets, relay.admin());
    let manager = Alertmanager::start();
    let mut prometheus = Prometheus::faster(10, &targets, manager.address());
    let mut seed = 0;
    let mut pass = |relay: &Relay, seconds: u32| {
        for _ in 0..seconds {
            seed += 1;
            assert_accepted(&relay.post(&generated_batch(seed, 5, 900)), 5);
            std::thread::sleep(Duration::from_secs(1));
        }
    };
    let wanted = |fires: bool| Notification {
        namespace: NAMESPACE.to_owned(),
        alert: "OutputDown".to_owned(),
        fires,
    };
    pass(&relay, 4);
    sink.close();
    let begun = Instant::now();
    while manager.told().is_empty() {
        assert!(begun.elapsed() < PATIENCE * 4, "no notification");
        pass(&relay, 1);
    }
    relay.stop();
    relay = Relay::start(&config);
    target(&targets, relay.admin());
    pass(&relay, 4);
    prometheus.restart();
    // Longer than Alertmanager keeps an alert of which it hears no more.
    pass(&relay, 38);
    assert_eq!(manager.told(), [wanted(true)], "it fires once, and is not resolved");
    assert_eq!(prometheus.query("ALERTS{alertstate=\"firing\"}").len(), 1);
    sink.reopen();
    let begun = Instant::now();
    while manager.told().len() < 2 {
        assert!(begun.elapsed() < PATIENCE * 4, "it is never resolved");
        pass(&relay, 1);
    }
    pass(&relay, 4);
    assert_eq!(manager.told(), [wanted(true), wanted(false)]);
    relay.finish(Backlog::Empty);
}
