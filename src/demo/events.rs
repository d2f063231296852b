//! Makes events with the sizes of a real cluster's events. Each event has a number that can be read
//! back.

use std::ops::Range;

use bytes::Bytes;

use audit::LIST_HEAD;

/// The greatest number of events in a batch: kube-apiserver's default for
/// `--audit-webhook-batch-max-size`.
const BATCH_EVENTS: u64 = 400;

/// The number of hexadecimal digits at the end of an auditID. These digits are the event's number.
const DIGITS: usize = 12;

/// The text with which every event of the demo begins. The event's number follows.
const HEAD: &str = r#"{"level":"RequestResponse","auditID":"00000000-0000-4000-8000-"#;

/// The size in bytes of the largest object in an event. The largest object that was measured in a
/// real cluster had this size.
const OBJECT_BYTES_MAX: usize = 427_000;

/// The text that is repeated to fill an object, with escapes as in a JSON string.
const LINE: &str = r"server:\n  port: 8443\n  labels: [a, b, \u003cc\u003e]\n";

/// The distribution of the sizes of objects in events, as measured at a real kube-apiserver. Each
/// pair is a number of events out of 1,000, and a size in bytes: `(900, 700)` means that 900 of
/// 1,000 events have an object of less than 700 bytes. An event as a whole is larger than its
/// object. Half of all events have about 700 bytes, one of ten has more than 1.3 KB, and one of a
/// hundred has more than 66 KB.
const SIZES: [(u32, usize); 4] = [(500, 60), (900, 700), (990, 65_000), (1000, OBJECT_BYTES_MAX)];

pub(super) struct Generator {
    next: u64,
    random: fastrand::Rng,
    filler: String,
}

impl Generator {
    pub(super) fn new() -> Self {
        let filler = LINE.repeat(OBJECT_BYTES_MAX / LINE.len());
        // The seed is fixed, so that every demo sends the same events.
        Self { next: 0, random: fastrand::Rng::with_seed(1), filler }
    }

    /// Makes a request body with a batch of events, as kube-apiserver sends it. Returns the body
    /// and the numbers of its events. Three batches of four have the greatest number of events, as
    /// at a busy kube-apiserver.
    pub(super) fn batch(&mut self) -> (Bytes, Range<u64>) {
        let is_full = self.random.u32(0..4) > 0;
        let events = if is_full { BATCH_EVENTS } else { self.random.u64(40..BATCH_EVENTS) };
        let numbers = self.next..self.next + events;
        self.next = numbers.end;
        let mut body = LIST_HEAD.to_vec();
        for number in numbers.clone() {
            if number > numbers.start {
                body.push(b',');
            }
            self.event(&mut body, number);
        }
        body.extend_from_slice(b"]}\n");
        (Bytes::from(body), numbers)
    }

    fn event(&mut self, body: &mut Vec<u8>, number: u64) {
        let length = self.object_bytes();
        let verb = ["update", "patch", "create"][self.random.usize(0..3)];
        let object = self.random.u32(0..500);
        // The object consists of whole repetitions of the text, so that no escape is cut.
        let text = self.filler.get(..length / LINE.len() * LINE.len()).unwrap_or_default();
        let event = format!(
            r#"{HEAD}{number:0DIGITS$x}","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/shop/configmaps/settings-{object}","verb":"{verb}","user":{{"username":"system:serviceaccount:shop:controller","groups":["system:serviceaccounts","system:authenticated"]}},"sourceIPs":["10.0.0.7"],"userAgent":"controller/v1.2.3 (linux/amd64)","objectRef":{{"resource":"configmaps","namespace":"shop","name":"settings-{object}","apiVersion":"v1"}},"responseStatus":{{"metadata":{{}},"code":200}},"requestObject":{{"kind":"ConfigMap","data":{{"text":"{text}"}}}},"requestReceivedTimestamp":"2026-01-02T03:04:05.678901Z","stageTimestamp":"2026-01-02T03:04:05.682345Z","annotations":{{"authorization.k8s.io/decision":"allow"}}}}"#
        );
        body.extend_from_slice(event.as_bytes());
    }

    /// Returns a random size for an object, in bytes. Within each range of [`SIZES`], small sizes
    /// are more frequent than large sizes.
    fn object_bytes(&mut self) -> usize {
        let drawn = self.random.u32(0..1000);
        let mut least = 0;
        for (below, most) in SIZES {
            if drawn < below {
                let draws = [(); 3].map(|()| self.random.usize(least..most));
                return draws.into_iter().min().unwrap_or(least);
            }
            least = most;
        }
        least
    }
}

/// Returns the number that the demo has written into an event; `None` if the demo did not make the
/// event.
pub(super) fn number(event: &[u8]) -> Option<u64> {
    let digits = event.strip_prefix(HEAD.as_bytes())?.get(..DIGITS)?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_what_a_relay_takes_and_every_number_can_be_read_back() {
        let mut generator = Generator::new();
        let mut sizes = Vec::new();
        let mut next = 0;
        for _ in 0..25 {
            let (body, numbers) = generator.batch();
            assert_eq!(numbers.start, next);
            next = numbers.end;
            let batch = audit::decode(body.to_vec()).unwrap();
            let events = batch.lines.split(|byte| *byte == b'\n').filter(|it| !it.is_empty());
            let events: Vec<_> = events.collect();
            let read: Vec<_> = events.iter().map(|event| number(event).unwrap()).collect();
            assert_eq!(read, numbers.collect::<Vec<_>>());
            sizes.extend(events.iter().map(|event| event.len()));
        }
        sizes.sort_unstable();
        let at = |part: usize| sizes[sizes.len() * part / 1000];
        // The sizes at a real kube-apiserver: 726 B, 1.3 KB, 66 KB, 427 KB.
        assert!((600..900).contains(&at(500)) && (900..1600).contains(&at(900)), "{sizes:?}");
        assert!((20_000..90_000).contains(&at(990)), "{}", at(990));
        assert!(sizes[sizes.len() - 1] < 450_000);
    }
}
