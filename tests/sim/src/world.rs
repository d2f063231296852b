//! One seed, from the empty directory to the verdict.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::consumers::Consumer;
use crate::evidence::Check;
use crate::kernel::net;
use crate::observer::Observer;
use crate::operator::Operator;
use crate::oracle::said::Moment;
use crate::oracle::{Calm, copies};
use crate::pki::Pki;
use crate::plan::{Action, Plan, SCENES, Setup, Why};
use crate::senders::{Profile, Senders, Target};
use crate::setup::{LISTENER, TOKEN, TOKEN_FILE};
use crate::support::{ibm, splunk};
use crate::truth::Book;
use crate::witness::Witness;
use crate::{kernel, senders};

/// Everything must be delivered within this time after the senders have finished.
const PROGRESS: Duration = Duration::from_secs(30 * 60);

/// How long nothing is wrong while the senders still send, and when the rules about that time begin
/// to apply. By then, everything that waited must be over: an output pauses for at most 20 s, after
/// waiting just as long for a response.
const CALM: Duration = Duration::from_secs(75);
const CALM_BEGINS: Duration = Duration::from_secs(45);

/// How long a refused event can take to be given up, if others come.
const REFUSED: Duration = Duration::from_secs(60);

/// How long the senders can try to deliver their bodies.
const FINISH: Duration = Duration::from_secs(8 * 60);

/// How long an `s3` output collects events, if the plan sets a long time.
const COLLECTS: Duration = Duration::from_secs(30);

/// The number of the sender that repeats accepted bodies.
const REPEATER: u32 = 900;

/// Parts of the secrets that the relay knows, and of responses by stores, which may contain one.
const SECRETS: [&str; 3] = ["s3cr3t", ibm::TOKEN, splunk::TOKEN];

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) faults: Vec<String>,
    pub(crate) simulated: Duration,
    pub(crate) events: usize,
}

/// Returns the names of the outputs that a reload removes at some time.
fn leaving(plan: &Plan, actions: &[Action]) -> Vec<String> {
    let (mut setup, mut names) = (plan.start.clone(), Vec::new());
    for action in actions {
        if let Action::Reload(change) = action {
            let before: Vec<_> = setup.outputs.iter().map(|output| output.name.clone()).collect();
            setup.change(change, plan.consumers.len() - 1);
            let is_there = |name: &String| setup.outputs.iter().any(|output| output.name == *name);
            names.extend(before.into_iter().filter(|name| !is_there(name)));
        }
    }
    names
}

fn consumers(plan: &Plan, seed: u64, pki: Option<&Pki>) -> Vec<Consumer> {
    let consumer = |(number, kind): (usize, &_)| {
        let tls = pki.filter(|_| plan.outer.secured.contains(&number)).map(Pki::authority);
        Consumer::start(*kind, &format!("c{number}"), seed, Path::new("secrets"), tls)
    };
    let mut consumers: Vec<_> = plan.consumers.iter().enumerate().map(consumer).collect();
    plan.outer.longest.iter().for_each(|(number, longest)| consumers[*number].limit(*longest));
    plan.outer.collects.iter().for_each(|number| consumers[*number].collect(COLLECTS));
    consumers
}

/// Returns the senders' target. Writes the listener's token, if it has one.
fn target(start: &Setup, pki: Option<&Pki>) -> Target {
    let token = start.front.has_token.then_some(TOKEN);
    token.iter().for_each(|it| std::fs::write(TOKEN_FILE, it).expect("a writable directory"));
    let security = pki.filter(|_| start.front.tls.is_some()).map(|it| Arc::clone(&it.security));
    Target::new(LISTENER.parse().expect("an address"), "/", token, start.body_max())
        .secured(security)
        .too_large(start.too_large())
}

fn profiles(plan: &Plan, seed: u64) -> Vec<Profile> {
    let mut profiles = Profile::draw(seed);
    profiles.iter_mut().for_each(|profile| profile.delay += plan.silent);
    profiles.extend(plan.wider.repeats.then(|| Profile::repeater(REPEATER)));
    profiles.extend(Profile::outer(&plan.start));
    profiles
}

/// Runs a seed in the current directory, without the actions with these numbers.
pub(crate) fn run(seed: u64, left_out: &BTreeSet<usize>, libraries: Vec<PathBuf>) -> Found {
    let plan = Plan::new(seed);
    let actions = plan.actions.iter().enumerate().filter(|(at, _)| !left_out.contains(at));
    let actions: Vec<_> = actions.map(|(_, timed)| timed.clone()).collect();
    let only: Vec<_> = actions.iter().map(|timed| timed.action.clone()).collect();
    std::fs::create_dir("secrets").expect("a writable directory");
    let has_tls = plan.start.front.tls.is_some() || !plan.outer.secured.is_empty();
    let pki = has_tls.then(Pki::new);
    let mut consumers = consumers(&plan, seed, pki.as_ref());
    let mut doors = plan.wider.doors.clone();
    doors.retain(|(consumer, strategy)| consumers[*consumer].open_door(strategy));
    let shut = plan.wider.shut.filter(|(it, ..)| doors.iter().any(|(consumer, _)| consumer == it));
    let book = Book::default();
    let leaving = leaving(&plan, &only);
    let mut operator = Operator::new(&book, &consumers, plan.start.clone(), leaving, libraries);
    let key = plan.start.has_evidence.then(|| make_key(&mut operator));
    operator.witness =
        key.as_ref().filter(|_| plan.start.has_witness).map(|key| Witness::start(seed, key));
    let evidence = key.map(|key| Check::new(seed, key, plan.start.has_witness));
    let target = target(&plan.start, pki.as_ref());
    pki.iter().for_each(|pki| book.certificate(pki.newest()));
    operator.pki = pki;
    operator.start();
    let senders = Senders::start(seed, &profiles(&plan, seed), &target, &book);
    let looks = plan.outer.looks.clone();
    let observer = (!looks.is_empty()).then(|| Observer::start(looks, operator.started.clone()));
    for timed in &actions {
        operator.wait_until(timed.at);
        operator.act(&timed.action);
    }
    operator.wait_until(plan.length);
    operator.said.extend(observer.map(Observer::finish).unwrap_or_default());
    operator.said.sort_by_key(|said| said.asked);
    if let Some(evidence) = &evidence {
        evidence.may_copy();
    }
    operator.heal();
    if let Some((consumer, is_second, fault)) = shut {
        consumers[consumer].dies();
        let address = consumers[consumer].address(is_second);
        net::fault(address, fault);
        // A connection that still works would not count as down.
        net::reset(address);
    }
    let unsettled = consumers.iter().map(Consumer::unsettled).max();
    operator.wait_until(unsettled.unwrap_or_default());
    let healed = kernel::now();
    kernel::trace(format_args!("nothing is wrong"));
    operator.wait_until(healed + CALM_BEGINS);
    operator.rotate_calmly();
    operator.wait_until(healed + CALM);
    let is_first = |(consumer, is_second, _): &(usize, bool, _)| {
        !is_second && doors.contains(&(*consumer, "failover"))
    };
    let away = shut.filter(is_first).map(|(it, ..)| (it, consumers[it].address(false)));
    let calm = Calm { healed, begins: healed + CALM_BEGINS, ends: healed + CALM, away };
    operator.ask(Moment::Calm);
    if let Some((consumer, is_second, _)) = shut {
        net::fault(consumers[consumer].address(is_second), net::Fault::None);
        consumers[consumer].recovers();
    }
    let mut away = senders::rng(seed, "away");
    // The output of an `s3` that collects for long is late only after that (see status-page.md).
    if away.bool() && plan.outer.collects.is_none() {
        operator.take_away(&mut away);
    }
    kernel::trace(format_args!("the senders finish"));
    senders.finish(FINISH);
    let mut others = 0;
    let mut another = || {
        // More events are sent: a refused event is given up only if its consumer accepts another
        // one (see refused-events.md).
        others += 1;
        let senders = Senders::start(seed, &[Profile::shipper(1000 + others)], &target, &book);
        std::thread::sleep(Duration::from_secs(20));
        senders.finish(FINISH);
    };
    let mut is_empty = wait_until_empty(&mut operator, &mut another);
    if is_empty && seed >= SCENES {
        operator.probe(plan.start.body_max());
        is_empty = wait_until_empty(&mut operator, &mut another);
    }
    if is_empty {
        operator.rest(seed >= SCENES && plan.start.on_disk);
    }
    operator.stop(Why::Signal);
    if let Some(evidence) = evidence {
        evidence.run(&mut operator, &book, &consumers, calm);
    }
    print_log(&operator);
    let faults = faults(&mut operator, &plan, calm);
    let events = book.read(|truth| truth.events.len());
    Found { faults, simulated: kernel::now(), events }
}

/// Returns the faults that the operator has noticed, and those that the oracle finds.
fn faults(operator: &mut Operator<'_>, plan: &Plan, calm: Calm) -> Vec<String> {
    let mut faults = std::mem::take(&mut operator.faults);
    faults.extend(crate::judging::judge(
        &operator.book,
        operator.consumers,
        &operator.losses,
        calm,
        &operator.said,
        (&operator.memory, plan.start.memory(&plan.consumers)),
    ));
    faults.extend(told_secret(&operator.log));
    faults
}

/// Prints the log of all lives, if the trace was requested.
fn print_log(operator: &Operator<'_>) {
    if std::env::var_os("SIM_TRACE").is_some() {
        kernel::print(2, &format!("the relay's log:\n{}", String::from_utf8_lossy(&operator.log)));
    }
}

/// Returns a fault if a log contains a part of a secret.
fn told_secret(log: &[u8]) -> Option<String> {
    let told = SECRETS.iter().find_map(|secret| memchr::memmem::find(log, secret.as_bytes()))?;
    let begin = log[..told].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let line = log[begin..].split(|byte| *byte == b'\n').next().unwrap_or_default();
    Some(format!("secrets: the log has a secret: {}", String::from_utf8_lossy(line)))
}

fn make_key(operator: &mut Operator<'_>) -> String {
    let keygen = ["evidence", "keygen", "--origin", "relay", "--out", "evidence.key"];
    let (status, said) = operator.command(&keygen);
    assert_eq!(status, Some(0), "{said}");
    said.lines().next().unwrap_or_default().to_owned()
}

/// Waits until everything is delivered. If that takes longer than [`PROGRESS`], it is a fault, and
/// the result is `false`. Once only refused events can be left, `another` sends other events.
fn wait_until_empty(operator: &mut Operator<'_>, mut another: impl FnMut()) -> bool {
    let deadline = kernel::now() + PROGRESS;
    let mut next = kernel::now() + REFUSED;
    let is_refused = |event: &[u8]| operator.consumers.iter().any(|it| it.refuses(event));
    // A request that got 503 may be in the queue, and so may each copy that was sent after it.
    let refused: usize = operator.book.read(|truth| {
        let refused = truth.events.values().filter(|known| is_refused(&known.event.bytes));
        refused.map(|known| copies(truth, known)).sum()
    });
    loop {
        let metrics = operator.metrics();
        let waiting = metrics.as_ref().map(|metrics| {
            let name = |name: &str| format!("kube_audit_forwarder_{name}");
            metrics.sum(&name("output_backlog_events")) + metrics.sum(&name("output_aside_events"))
        });
        if waiting == Some(0.0) {
            return true;
        }
        if kernel::now() > next && waiting.is_some_and(|waiting| waiting <= refused as f64) {
            another();
            next = kernel::now() + REFUSED;
        }
        if kernel::now() > deadline {
            let what = format!("progress: {waiting:?} events wait {PROGRESS:?} after the end");
            operator.faults.push(what);
            return false;
        }
        std::thread::sleep(Duration::from_secs(2));
    }
}
