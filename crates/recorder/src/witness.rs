//! The witnesses of a log (C2SP `tlog-witness`). A witness keeps the newest checkpoint that it has
//! seen, and cosigns another checkpoint only if both are consistent.
//!
//! Each request is a task of its own, so that a witness that hangs does not hold up the others.

use std::io;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::store::Store;
use client::ask::{Answer, Target};
use client::tls;
use config::ClientTls;
use evidence_log::AHEAD_MAX;
use evidence_log::entry::now;
use evidence_log::tlog::key::VerifierKey;
use evidence_log::tlog::merkle::Head;
use evidence_log::tlog::note::{Note, Signed};
use telemetry::{EvidenceError, EvidenceMetrics, WitnessMetrics};

/// The longest time for which the relay waits for a witness's response.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// The maximum number of requests in a row, each with the size from the response before. Then the
/// witness is asked again after the usual pause. Its first contradiction resets the number.
const ROUNDS_MAX: u8 = 4;

/// The media type of a response with status 409 whose body is the size of the witness's checkpoint.
/// Some witnesses give no media type. The error page of a gateway has another one.
const SIZE: &str = "text/x.tlog.size";

/// A signed checkpoint that witnesses are asked to cosign.
#[derive(Debug, Clone)]
struct Checkpoint {
    head: Head,
    note: Note,
}

impl Checkpoint {
    fn newest(store: &Store) -> Self {
        Self { head: store.signed(), note: store.note().clone() }
    }
}

pub(crate) enum Heard {
    /// The witness has cosigned the newest checkpoint. The value is the note with the cosignature.
    Cosigned(Note),
    /// The witness knows another log of this origin, or a longer one.
    Contradiction(String),
    /// The request brought no cosignature of the newest checkpoint. Another request may be on its
    /// way.
    Nothing,
}

pub(crate) struct Witnesses {
    all: Vec<Witness>,
    asked: JoinSet<Answered>,
}

/// A request with the response of the witness, or with the reason why there is none.
pub(crate) struct Answered {
    /// The index of the witness in `Witnesses::all`.
    witness: usize,
    question: Question,
    answer: Result<Answer, String>,
}

#[derive(Debug, Clone)]
struct Question {
    checkpoint: Checkpoint,
    /// The size that the request names as that of the witness's checkpoint.
    old: u64,
    round: u8,
    /// `true`: the witness has contradicted the log once. The next contradiction ends the log.
    is_doubted: bool,
}

impl Question {
    /// Returns the next question to a witness that has refused the checkpoint, if there is one.
    /// `has` is the size in a response with status 409, and `None` for status 422. Other responses
    /// never get here.
    ///
    /// # Errors
    ///
    /// The witness contradicts the log for the second time; the text says how.
    fn after(
        self,
        witness: &VerifierKey,
        has: Option<u64>,
        newest: Checkpoint,
    ) -> Result<Option<Self>, String> {
        let (old, size, own) = (self.old, self.checkpoint.head.size, newest.head.size);
        let name = witness.name();
        let contradiction = match has {
            Some(has) if has > own => Some(format!(
                "the witness {name} has a checkpoint over {has} entries, and the newest one here \
                 covers {own}"
            )),
            Some(has) if has != old => None,
            Some(_) | None if old == size && old > 0 => {
                Some(format!("the witness {name} has another root for {size} entries"))
            }
            None if old > 0 => Some(format!(
                "the witness {name} has a checkpoint over {old} entries, and the one here over \
                 {size} entries does not extend it"
            )),
            Some(_) | None => None,
        };
        let again = Self { checkpoint: newest, ..self };
        match (contradiction, has) {
            (Some(why), _) if self.is_doubted => Err(why),
            // The response may have come from a gateway. The relay asks as if it knew nothing of
            // the witness, so that the witness gives its size.
            (Some(_), _) => Ok(Some(Self { old: 0, round: 1, is_doubted: true, ..again })),
            (None, Some(has)) if has != old && self.round < ROUNDS_MAX => {
                Ok(Some(Self { old: has, round: self.round + 1, ..again }))
            }
            (None, _) => Ok(None),
        }
    }
}

struct Witness {
    target: Target,
    key: VerifierKey,
    metrics: WitnessMetrics,
    errors: EvidenceMetrics,
    /// The size of the newest checkpoint that the witness has, as far as the relay knows.
    has: u64,
    is_asked: bool,
    /// The task of the last request to the witness. `None` if there was no request yet.
    task: Option<Id>,
    /// `true`: the witness has responded, perhaps with a refusal. Status 429, 5xx, and 409 without
    /// a size do not count.
    has_answered: bool,
    /// The newest checkpoint that the witness has cosigned. `None` if it is to be asked again.
    cosigned: Option<Head>,
    /// The earliest time at which [`Witnesses::ask`] asks the witness again.
    again_at: Instant,
    /// `true`: the relay has logged that this witness gives no cosignatures.
    told: bool,
}

impl Witnesses {
    /// Makes the list of witnesses. `size` is that of the newest checkpoint at startup, which the
    /// witnesses should have.
    ///
    /// # Errors
    ///
    /// A URL is wrong. The text names the witness.
    pub(crate) fn new(
        settings: &[(config::Witness, WitnessMetrics)],
        errors: &EvidenceMetrics,
        size: u64,
    ) -> Result<Self, String> {
        let all = settings.iter().map(|(config::Witness { url, key }, metrics)| {
            let target = Target::new(url);
            let target = target.map_err(|what| format!("the URL of {} {what}", key.name()))?;
            // The system's CAs are read once, on this thread. If that fails, each request tries
            // again, and its error says so.
            let client =
                tls::Client::of_contents(&ClientTls::default(), &[b"http/1.1"], Vec::new());
            let client = client.ok().filter(|_| target.is_https());
            let with_tls = client
                .and_then(|client| target.clone().with_credentials(client, Vec::new(), None).ok());
            Ok(Witness {
                target: with_tls.unwrap_or(target),
                key: key.clone(),
                metrics: metrics.clone(),
                errors: errors.clone(),
                has: size,
                is_asked: false,
                task: None,
                has_answered: false,
                cosigned: None,
                again_at: Instant::now(),
                told: false,
            })
        });
        Ok(Self { all: all.collect::<Result<_, String>>()?, asked: JoinSet::new() })
    }

    pub(super) fn have_answered(&self) -> bool {
        self.all.iter().all(|witness| witness.has_answered)
    }

    pub(super) fn are_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Returns the earliest time at which a witness may be asked that has not cosigned this
    /// checkpoint and is not being asked now. `None` if there is no such witness.
    pub(crate) fn again_at(&self, head: Head) -> Option<Instant> {
        let open = self.all.iter().filter(|it| !it.is_asked && it.cosigned != Some(head));
        open.map(|it| it.again_at).min()
    }

    /// Ends the pauses between requests, so that all witnesses can be asked at the end of the
    /// relay.
    pub(crate) fn hurry(&mut self) {
        self.all.iter_mut().for_each(|witness| witness.again_at = Instant::now());
    }

    /// Forgets which witnesses have cosigned the newest checkpoint, because a cosignature could not
    /// be written.
    pub(super) fn ask_again(&mut self) {
        self.all.iter_mut().for_each(|witness| witness.cosigned = None);
    }

    /// Asks each witness that has not cosigned the newest checkpoint, at most once in `pause`.
    pub(crate) fn ask(&mut self, store: &Store, pause: Duration) {
        let now = Instant::now();
        for (at, witness) in self.all.iter_mut().enumerate() {
            let is_done = witness.cosigned == Some(store.signed());
            if is_done || witness.is_asked || now < witness.again_at {
                continue;
            }
            witness.again_at = now + pause;
            let checkpoint = Checkpoint::newest(store);
            let old = witness.has.min(checkpoint.head.size);
            let question = Question { checkpoint, old, round: 1, is_doubted: false };
            match witness.question(at, question, store) {
                Ok(asked) => witness.task = Some(self.asked.spawn(asked).id()),
                Err(error) => witness.has_not_cosigned(&error.to_string(), false),
            }
        }
    }

    /// Waits for the next response. Never returns if no request is in progress.
    pub(crate) async fn answered(&mut self) -> Answered {
        loop {
            match self.asked.join_next().await {
                Some(Ok(answered)) => return answered,
                // A request that has panicked is not repeated.
                Some(Err(error)) => {
                    let asked = self.all.iter().find(|it| it.task == Some(error.id()));
                    tracing::error!(
                        witness = asked.map(|it| it.key.name()),
                        %error,
                        "a bug ended the request to a witness: it is not asked again until you \
                         restart the relay; please report this bug"
                    );
                }
                None => std::future::pending().await,
            }
        }
    }

    /// Handles a response. The checkpoint of `store` may be newer than that of the request.
    pub(crate) fn hear(&mut self, answered: Answered, store: &Store) -> Heard {
        let Answered { witness: at, question, answer } = answered;
        let Some(witness) = self.all.get_mut(at) else {
            return Heard::Nothing;
        };
        witness.is_asked = false;
        let key = std::slice::from_ref(&witness.key);
        let (what, is_answer) = match answer {
            Ok(Answer { status: 200, body, .. }) => {
                let Checkpoint { head, mut note } = question.checkpoint;
                let taken = note.take(&body, key);
                match taken {
                    Ok(1..) if is_ahead(&note, &witness.key) => {
                        witness.has = head.size;
                        ("the time of its cosignature is in the future".to_owned(), true)
                    }
                    Ok(1..) => {
                        let mut whole = store.note().clone();
                        let is_newest = head == store.signed() && whole.take(&body, key).is_ok();
                        witness.has_cosigned(head, &note);
                        return if is_newest { Heard::Cosigned(whole) } else { Heard::Nothing };
                    }
                    Ok(0) => {
                        let name = witness.key.name();
                        (format!("its answer has no cosignature of {name}"), true)
                    }
                    Err(error) => (format!("its answer can't be used: {error}"), true),
                }
            }
            Ok(Answer { status: 409, media_type, body })
                if !["", SIZE].contains(&media_type.as_str()) || size_of(&body).is_none() =>
            {
                let what = format!(
                    "it answers with status 409 and without a size ({SIZE}): the answer may have \
                     come from a gateway"
                );
                (what, false)
            }
            Ok(Answer { status: status @ (409 | 422), body, .. }) => {
                let has = size_of(&body).filter(|_| status == 409);
                let next = match question.after(&witness.key, has, Checkpoint::newest(store)) {
                    Ok(next) => next,
                    Err(why) => return Heard::Contradiction(why),
                };
                if let (Some(next), Some(has)) = (&next, has)
                    && next.old == has
                {
                    witness.has = has;
                }
                match next.map(|question| witness.question(at, question, store)) {
                    Some(Ok(asked)) => {
                        witness.task = Some(self.asked.spawn(asked).id());
                        return Heard::Nothing;
                    }
                    Some(Err(error)) => (error.to_string(), true),
                    None => {
                        let size = has.map(|has| format!(", its own covers {has} entries"));
                        let size = size.unwrap_or_default();
                        (format!("it refuses the checkpoint with status {status}{size}"), true)
                    }
                }
            }
            Ok(Answer { status, .. }) => {
                let what = match status {
                    404 => "it does not know the origin (404)".to_owned(),
                    403 => "it does not know the log's key (403)".to_owned(),
                    _ => format!("it answers with status {status}"),
                };
                // With 429 and 5xx, the witness has not looked at the checkpoint.
                (what, status != 429 && status < 500)
            }
            Err(error) => (error, false),
        };
        witness.has_not_cosigned(&what, is_answer);
        Heard::Nothing
    }
}

impl Witness {
    /// Returns a future that sends the request and waits for the response.
    fn question(
        &mut self,
        at: usize,
        question: Question,
        store: &Store,
    ) -> io::Result<impl Future<Output = Answered> + Send + use<>> {
        let Question { checkpoint, old, .. } = &question;
        let proof = match *old == 0 || *old == checkpoint.head.size {
            true => Vec::new(),
            false => store.prove(*old)?,
        };
        let proof: String = proof.iter().map(|hash| format!("{hash}\n")).collect();
        let text = format!("old {old}\n{proof}\n{}", checkpoint.note);
        let target = self.target.clone();
        let path = format!("{}/add-checkpoint", target.base());
        self.is_asked = true;
        Ok(async move {
            let answer = target.exchange(&path, text, ANSWERS_WITHIN).await;
            Answered { witness: at, question, answer: answer.map_err(|error| error.to_string()) }
        })
    }

    fn has_cosigned(&mut self, head: Head, note: &Note) {
        (self.has, self.has_answered, self.cosigned) = (head.size, true, Some(head));
        if let Signed::Valid(Some(at)) = note.check(&self.key) {
            self.metrics.cosigned(at);
        }
        if std::mem::take(&mut self.told) {
            tracing::info!(
                witness = self.key.name(),
                "the witness cosigns evidence checkpoints again"
            );
        }
    }

    /// Notes that the newest checkpoint has no cosignature. `is_answer` is `true` if the witness
    /// itself has responded.
    fn has_not_cosigned(&mut self, what: &str, is_answer: bool) {
        self.has_answered |= is_answer;
        self.errors.failed(EvidenceError::Witness);
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                witness = self.key.name(),
                reason = what,
                "the witness has not cosigned the newest evidence checkpoint, retrying"
            );
        }
    }
}

/// Returns `true` if the witness's cosignature has a time more than [`AHEAD_MAX`] seconds in the
/// future. Until that time, the cosignature would look new.
fn is_ahead(note: &Note, witness: &VerifierKey) -> bool {
    let latest = now() / 1000 + AHEAD_MAX;
    matches!(note.check(witness), Signed::Valid(Some(at)) if at > latest)
}

/// Reads the size in the body of a response with status 409.
fn size_of(body: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(body).ok()?.strip_suffix('\n')?;
    let size: u64 = digits.parse().ok()?;
    (size.to_string() == digits).then_some(size)
}
