use super::super::tests::{check, said};
use super::*;
use crate::oracle::said::Moment;
use crate::oracle::tests::{Small, seconds};

/// Shows the config of a small world, with a change.
fn says(change: impl Fn(&mut Said)) -> impl Fn(&World<'_>) -> Vec<Fault> {
    move |world| {
        let mut said = said(Moment::Any, "queue_capacity_bytes 67108864\n");
        let address = Address {
            address: "127.0.0.1:1000".into(),
            state: "up".into(),
            requests: 1,
            sent_bytes: 1,
        };
        let shown = Shown { name: "out".into(), required: true, addresses: vec![address] };
        said.status.as_mut().expect("a status").outputs = vec![shown];
        change(&mut said);
        as_configured(world, &said)
    }
}

fn output(said: &mut Said) -> &mut Shown {
    &mut said.status.as_mut().expect("a status").outputs[0]
}

#[test]
fn the_status_has_what_the_config_says() {
    let small = Small::new();
    check(&small, says(|_| {}), None);
    let named = |said: &mut Said| {
        output(said).addresses[0].address = "localhost:1000 (127.0.0.1)".into();
    };
    check(&small, says(named), None);
    // Only the name of an address that nothing has gone to yet may stand alone.
    let only_named = |said: &mut Said, state: &str, requests: u64, port: u16| {
        let shown = &mut output(said).addresses[0];
        shown.address = format!("localhost:{port}");
        (shown.state, shown.requests, shown.sent_bytes) = (state.into(), requests, 0);
    };
    check(&small, says(|said| only_named(said, "unknown", 0, 1000)), None);
    for (state, requests, port) in [("up", 0, 1000), ("unknown", 1, 1000), ("unknown", 0, 1001)] {
        let wrong = says(|said| only_named(said, state, requests, port));
        check(&small, wrong, Some("is shown as required = true with "));
    }
    let optional = |said: &mut Said| output(said).required = false;
    check(
        &small,
        says(optional),
        Some("output out is shown as required = false with 127.0.0.1:1000"),
    );
    let nowhere = |said: &mut Said| output(said).addresses.clear();
    check(&small, says(nowhere), Some("the config has required = true with 127.0.0.1:1000"));
    let another = |said: &mut Said| output(said).name = "spare".into();
    let faults = small.rule(|world, _| says(another)(world));
    assert!(faults[0].contains("output out is shown as nothing"), "{faults:?}");
    assert!(faults[1].contains("output spare is shown, and there is none"), "{faults:?}");
    let smaller = |said: &mut Said| {
        said.status.as_mut().expect("a status").queue.capacity_bytes = 1;
    };
    check(
        &small,
        says(smaller),
        Some("queue.max_bytes is shown as 1, and the config has 67108864"),
    );
    let delivered = |said: &mut Said| {
        said.status.as_mut().expect("a status").acknowledge = "delivered".into();
    };
    check(&small, says(delivered), Some("queue.acknowledge is shown as delivered"));
}

#[test]
fn what_a_reload_is_about_to_change_may_be_shown_either_way() {
    let mut small = Small::new();
    small.config(99, |config| config.outputs[0].required = false);
    check(&small, says(|_| {}), Some("the config has required = false"));
    let asked_before = |said: &mut Said| said.asked = seconds(98);
    check(&small, says(asked_before), None);
    // An output that was removed a moment ago may still be shown.
    let mut small = Small::new();
    small.config(90, |config| config.outputs[0].name = "another".into());
    let renamed = |said: &mut Said| {
        let mut another = output(said).clone();
        another.name = "another".into();
        said.status.as_mut().expect("a status").outputs.push(another);
    };
    check(&small, says(renamed), None);
}
