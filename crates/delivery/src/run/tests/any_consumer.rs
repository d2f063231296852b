//! Consumers with random behaviour: every event is delivered or counted as lost. If the output is
//! ordered, events are delivered in order.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::given_up::Clerk;
use super::judged::{judge, refuse_number, stop_at_bad};
use super::*;

/// The behaviour of a random consumer during some time.
#[derive(Debug, Clone)]
enum Mood {
    Healthy,
    RefusesAll,
    FailsAll,
    /// Every n-th response is a failure or a broken connection.
    Flaky(u32),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Good,
    /// The consumer refuses the event.
    Bad,
    /// The filter drops the event.
    Hidden,
    /// The filter changes the event.
    Lowered,
    /// The event has the name of a good event whose number is smaller by this difference.
    Repeated(u64),
}

impl Kind {
    fn event(self, number: u64) -> String {
        match self {
            Self::Good => format!("good{number}"),
            Self::Bad => format!("bad{number}"),
            Self::Hidden => hidden(number),
            Self::Lowered => lowered(number),
            Self::Repeated(before) => format!("good{}", number.saturating_sub(before)),
        }
    }
}

/// The subject of a consumer's responses.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answers {
    /// The whole request.
    Whole,
    /// Each event. At every fourth verdict, the consumer does not take a good event.
    Each,
    /// The number of refused events.
    Number,
    /// The events up to the first bad one.
    UpTo,
}

#[derive(Debug, Clone)]
struct Case {
    /// The batches: for each, the milliseconds since the previous batch, and its events.
    batches: Vec<(u64, Vec<Kind>)>,
    answers: Answers,
    moods: Vec<(Mood, u64)>,
    /// The seed of the [`Clerk`] for the dead letters; `None` if they are not kept.
    desk: Option<u64>,
    /// The times, since the start, at which the consumer moves to a new address.
    moves: Vec<Duration>,
    setting: Setting,
}

fn mood() -> impl Strategy<Value = Mood> {
    prop_oneof![
        Just(Mood::Healthy),
        Just(Mood::RefusesAll),
        Just(Mood::FailsAll),
        (2_u32..6).prop_map(Mood::Flaky),
    ]
}

fn kind(sifts: bool) -> BoxedStrategy<Kind> {
    if !sifts {
        return prop_oneof![9 => Just(Kind::Good), 1 => Just(Kind::Bad)].boxed();
    }
    prop_oneof![
        5 => Just(Kind::Good),
        1 => Just(Kind::Bad),
        4 => Just(Kind::Hidden),
        2 => Just(Kind::Lowered),
        2 => (1_u64..30).prop_map(Kind::Repeated),
    ]
    .boxed()
}

prop_compose! {
    fn case(sifts: bool, answers: Answers)(
        batches in prop::collection::vec(
            (0_u64..20_000, prop::collection::vec(kind(sifts), 1..12)), 1..40),
        moods in prop::collection::vec((mood(), 1_u64..300_000), 0..6),
        window in 1_usize..5,
        ordered in any::<bool>(),
        latency_ms in 0_u64..2_000,
        shuffle in any::<u64>(),
        drop_oldest in prop::bool::weighted(0.2),
        desk in prop::option::of(any::<u64>()),
        replaced in prop::collection::vec(0_u64..900_000, 0..8),
        moves in prop::collection::vec(0_u64..900_000, 0..8),
        checkpoints in any::<bool>(),
        is_roomy in prop::bool::weighted(0.8),
    ) -> Case {
        let mut replaced: Vec<_> = replaced.into_iter().map(Duration::from_millis).collect();
        replaced.sort_unstable();
        let setting = Setting {
            drop_oldest: drop_oldest.then_some(4 * 1024),
            rejected: if desk.is_some() { Rejected::DeadLetter } else { Rejected::Drop },
            latency: Duration::from_millis(latency_ms),
            window: if ordered { 1 } else { window },
            ordered,
            shuffle,
            replaced,
            sifts,
            checkpoints,
            aside_max: if is_roomy { 10_000 } else { EVENTS_MAX },
            ..Setting::default()
        };
        let moves = moves.into_iter().map(Duration::from_millis).collect();
        Case { batches, answers, moods, desk, moves, setting }
    }
}

/// Returns the script of a consumer that has these moods, one after the other, each for its number
/// of milliseconds, and is healthy after them. Events that are turned down alone in a request are
/// added to `failed`.
fn moody<const EAGER: bool>(
    moods: Vec<(Mood, u64)>,
    answers: Answers,
    started: Instant,
    failed: Arc<Mutex<BTreeSet<String>>>,
) -> impl FnMut(&[String]) -> Answer + Send {
    let mut count = 0_u32;
    let mut judged = 0_u32;
    let mut has = BTreeSet::new();
    let mut letter = move |(_, event): (usize, &String)| {
        judged += 1;
        match event {
            bad if bad.starts_with("bad") => 'r',
            _ if judged.is_multiple_of(4) => 'a',
            new if has.insert(new.clone()) => 'd',
            _ => 'e',
        }
    };
    move |events| {
        let mut elapsed = started.elapsed();
        let mut left = moods.iter().skip_while(|(_, length)| {
            let length = Duration::from_millis(*length);
            let over = elapsed >= length;
            elapsed = elapsed.saturating_sub(length);
            over
        });
        let mood = left.next().map_or(Mood::Healthy, |(mood, _)| mood.clone());
        count += 1;
        let stumble = match (EAGER, count % 3) {
            (true, read) => Answer::Break(read as usize),
            (false, 0) => Answer::Gone(true),
            (false, _) => Answer::Fail,
        };
        // A consumer can't refuse events on a stream.
        let mut healthy = |events: &[String]| match answers {
            _ if EAGER => Answer::Accept,
            Answers::Whole => refuse_bad(events),
            Answers::Each => judge(events, &mut letter),
            Answers::Number => refuse_number(events),
            Answers::UpTo => stop_at_bad(events),
        };
        let answer = match mood {
            Mood::Healthy => healthy(events),
            Mood::RefusesAll if EAGER => stumble,
            Mood::RefusesAll => Answer::Refuse,
            Mood::FailsAll => stumble,
            Mood::Flaky(every) if count.is_multiple_of(every) => stumble,
            Mood::Flaky(every) if !EAGER && count % every == 1 && count.is_multiple_of(4) => {
                Answer::Gone(false)
            }
            Mood::Flaky(every) if count % every == 1 && count % 4 == 1 => Answer::Trouble,
            Mood::Flaky(_) => healthy(events),
        };
        if let (Answer::Fail | Answer::Refuse | Answer::Break(_), [event]) = (&answer, events) {
            failed.lock().unwrap().insert(event.clone());
        }
        answer
    }
}

/// Appends good events until nothing is left to deliver. A refused event is given up only after the
/// consumer has accepted an event that was sent after the refusal.
async fn witnessed(bench: &mut Bench) {
    for number in 0..100 {
        if tokio::time::timeout(DAY, bench.queue.drained(false)).await.is_ok() {
            return;
        }
        bench.try_append(&[format!("good-more{number}")]).ok();
    }
    bench.drained().await;
}

/// Runs a case. Asserts that every event is delivered or counted as lost, that good events are
/// delivered, and that an ordered output delivers them in order.
#[allow(clippy::too_many_lines, reason = "the script and the checks of one case")]
async fn holds<const EAGER: bool>(case: &Case) -> TestCaseResult {
    let mut setting = case.setting.clone();
    if EAGER {
        (setting.window, setting.ordered) = (4, true);
    }
    let started = Instant::now();
    let lengths = case.moods.iter().map(|(_, length)| Duration::from_millis(*length));
    let mood_ends = started + lengths.sum::<Duration>();
    let failed = Arc::<Mutex<BTreeSet<String>>>::default();
    let mut script = moody::<EAGER>(case.moods.clone(), case.answers, started, Arc::clone(&failed));
    let moves = case.moves.clone();
    let script = move |events: &[String]| {
        let moved = moves.iter().filter(|at| **at <= started.elapsed()).count();
        Answer::Of(moved, Box::new(script(events)))
    };
    let mut bench = Bench::start::<EAGER>(&setting, script);
    let clerk = case.desk.map(|seed| Clerk::start(&mut bench, seed));
    let mut number = 0;
    for (wait, events) in &case.batches {
        tokio::time::sleep(Duration::from_millis(*wait)).await;
        let names: Vec<String> = events
            .iter()
            .map(|kind| {
                number += 1;
                kind.event(number)
            })
            .collect();
        // If all events of a full queue are on the wire, none can be dropped. The queue then
        // refuses the batch, and the sender keeps it.
        bench.try_append(&names).ok();
    }
    // A refused event is given up only if the consumer accepts a good event later. The last
    // delivery needs a good event, too, because it does not know what was accepted earlier.
    let last = setting.replaced.last().map(|at| started + *at + Duration::from_millis(1));
    tokio::time::sleep_until(mood_ends.max(last.unwrap_or(started))).await;
    while bench.try_append(&["good-last"]).is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    witnessed(&mut bench).await;
    if case.answers != Answers::Each && !setting.checkpoints {
        // A delivery that has recovered pauses for nothing. A judge never takes all events.
        tokio::time::sleep(HOUR).await;
        let recovered = Instant::now();
        bench.try_append(&["good-after"]).expect("the queue is empty");
        bench.drained().await;
        let waited = recovered.elapsed();
        prop_assert!(waited <= setting.latency + Duration::from_millis(1), "{:?}", waited);
    }
    let (seen, lost) = (bench.seen(), bench.lost());
    let distinct: BTreeSet<_> = seen.iter().cloned().collect();
    let leaving: Vec<String> = bench.appended.iter().filter_map(|event| sifted(event)).collect();
    let mut once = BTreeSet::new();
    let appended: Vec<_> = leaving.iter().filter(|event| once.insert(*event)).cloned().collect();
    let missing: Vec<_> =
        appended.iter().filter(|event| !distinct.contains(*event)).cloned().collect();
    let (dropped, duplicate) = (bench.filtered("dropped"), bench.filtered("duplicate"));
    let turned_down = !failed.lock().unwrap().is_empty();
    prop_assert_eq!(bench.delivered() + lost + dropped + duplicate, bench.appended.len() as u64);
    prop_assert!(distinct.iter().all(|event| once.contains(event)), "{:?}", distinct);
    if lost == 0 {
        prop_assert_eq!(dropped, (bench.appended.len() - leaving.len()) as u64);
        // A copy of an event that is set aside is not a duplicate: nobody knows which of the two
        // leaves.
        let (copies, is_exact) = ((leaving.len() - appended.len()) as u64, !turned_down);
        prop_assert!(duplicate == copies || duplicate < copies && !is_exact, "{}", duplicate);
        let changed = appended.iter().filter(|event| event.contains("lower")).count();
        prop_assert_eq!(bench.filtered("lowered"), changed as u64);
    }
    // If `drop_oldest` is set, an event that a stream has read may be dropped after the break.
    prop_assert!(missing.len() as u64 <= lost, "{:?} are missing, {} counted", missing, lost);
    let (given, written) = match clerk {
        Some(clerk) => clerk.end().await,
        None => (Vec::new(), 0),
    };
    // Dead letters hold events as they were received, so the filter is applied to compare them.
    let letters: BTreeSet<_> = given.iter().filter_map(|event| sifted(event)).collect();
    // A copy of an event that was given up may be given up too.
    prop_assert!(setting.sifts || letters.len() == given.len(), "one letter for each event");
    prop_assert_eq!(bench.in_letters(), written);
    if setting.drop_oldest.is_none() {
        // A good event is given up only if it is turned down, another event is then accepted, and
        // the good event is refused again. It may be turned down for a bad event in its batch, or
        // in any bad time; it is refused only in a later time when everything is. If no more events
        // can be set aside, one is given up that was often turned down by chance.
        let bad = case.batches.iter().any(|(_, events)| events.contains(&Kind::Bad));
        let moods = case.moods.iter().map(|(mood, _)| mood);
        let bad_times = moods.skip_while(|mood| matches!(mood, Mood::Healthy));
        let mut later = bad_times.skip(usize::from(!bad));
        let is_never_refused = EAGER || !later.any(|mood| matches!(mood, Mood::RefusesAll));
        if is_never_refused && setting.aside_max > EVENTS_MAX {
            prop_assert!(missing.iter().all(|event| event.starts_with("bad")), "{missing:?}");
            // In other cases, an event that was accepted and is sent again may be given up.
            prop_assert_eq!(missing.len() as u64, lost);
        }
        // An event that was accepted before earlier events is sent again after them, and may then
        // be given up. An event that is given up may have a later copy. So the order is checked
        // only if it is known which events were given up: from their letters, or because only bad
        // events were lost.
        let bad = |event: &&String| !EAGER && event.starts_with("bad");
        let only_bad = lost == appended.iter().filter(bad).count() as u64;
        let is_ordered = setting.ordered && case.answers == Answers::Whole;
        if is_ordered && (case.desk.is_some() || only_bad) {
            // An event that is set aside leaves the order.
            let failed = failed.lock().unwrap();
            let stays = |event: &&String| {
                distinct.contains(*event) && !letters.contains(*event) && !failed.contains(*event)
            };
            let arrived: Vec<_> = appended.iter().filter(stays).cloned().collect();
            prop_assert!(
                in_order(&seen, &arrived),
                "out of order: {:?}, failed: {:?}",
                seen,
                failed
            );
        }
        if case.desk.is_some() {
            // If only a number is refused, the letters also have events that the consumer has.
            let (given, exact) = (given.len() as u64, case.answers != Answers::Number);
            prop_assert!(given == lost || given > lost && !exact, "{} of {}", given, lost);
            prop_assert!(missing.iter().all(|event| letters.contains(event)));
        }
    }
    bench.finish().await;
    Ok(())
}

pub(super) fn run_paused(test: impl Future<Output = TestCaseResult>) -> TestCaseResult {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(test)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: testing::cases(150), ..ProptestConfig::default() })]

    #[test]
    fn requests_to_any_consumer_are_delivered_or_counted(case in case(false, Answers::Whole)) {
        run_paused(holds::<false>(&case))?;
    }

    #[test]
    fn requests_to_any_consumer_that_judges_are_delivered_or_counted(case in case(false, Answers::Each)) {
        run_paused(holds::<false>(&case))?;
    }

    #[test]
    fn requests_through_a_filter_to_a_judge_are_delivered_or_counted(case in case(true, Answers::Each)) {
        run_paused(holds::<false>(&case))?;
    }

    #[test]
    fn requests_to_any_consumer_that_counts_are_delivered_or_counted(case in case(false, Answers::Number)) {
        run_paused(holds::<false>(&case))?;
    }

    #[test]
    fn requests_through_a_filter_to_one_that_counts_are_delivered_or_counted(case in case(true, Answers::Number)) {
        run_paused(holds::<false>(&case))?;
    }

    #[test]
    fn requests_to_any_consumer_that_stops_are_delivered_or_counted(case in case(false, Answers::UpTo)) {
        run_paused(holds::<false>(&case))?;
    }

    #[test]
    fn requests_through_a_filter_to_one_that_stops_are_delivered_or_counted(case in case(true, Answers::UpTo)) {
        run_paused(holds::<false>(&case))?;
    }

    #[test]
    fn a_stream_to_any_consumer_is_delivered_in_order(case in case(false, Answers::Whole)) {
        run_paused(holds::<true>(&case))?;
    }

    #[test]
    fn requests_through_a_filter_are_delivered_or_counted(case in case(true, Answers::Whole)) {
        run_paused(holds::<false>(&case))?;
    }

    #[test]
    fn a_stream_through_a_filter_is_delivered_in_order(case in case(true, Answers::Whole)) {
        run_paused(holds::<true>(&case))?;
    }
}
