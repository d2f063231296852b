//! What is sent: EventLists as kube-apiserver writes them.

#![allow(dead_code, reason = "no bench needs everything")]

use std::fmt::Write as _;

/// Around the events of an EventList, as kube-apiserver and the relay's `event_list` write it.
const HEAD: &str = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;
const TAIL: &str = "]}\n";

/// One request, to be sent again and again.
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) body: Vec<u8>,
    pub(crate) events: u64,
}

impl Work {
    fn new(name: &'static str, body: Vec<u8>, events: u64) -> Self {
        assert!(body.starts_with(HEAD.as_bytes()) && body.ends_with(TAIL.as_bytes()), "{name}");
        Self { name, body, events }
    }

    /// Recorded.
    pub(crate) fn metadata() -> Self {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/01-batch400-metadata.json");
        let body = std::fs::read(corpus).expect("tests/corpus is part of the repository");
        Self::new("metadata, 400 events of 0.8 KB", body, 400)
    }

    pub(crate) fn generated() -> Self {
        Self::new("generated, 400 events of 1.5 KB", generated(400, 1500), 400)
    }

    pub(crate) fn single() -> Self {
        Self::new("single event of 2 KB", generated(1, 2000), 1)
    }

    /// How many requests have about so many bytes.
    pub(crate) fn requests_of(&self, bytes: f64) -> u64 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an argument")]
        let requests = (bytes / self.body.len() as f64).ceil() as u64;
        requests
    }

    /// Bytes of the events of one request, each with the byte that ends it or divides it from the next.
    pub(crate) fn lines(&self) -> u64 {
        lines_of_list(self.body.len() as u64)
    }
}

/// Bytes of the events of an EventList of so many bytes, each with the byte behind it. However a
/// relay cuts and joins batches, the sum over all lists stays.
pub(crate) fn lines_of_list(body: u64) -> u64 {
    (body + 1).saturating_sub((HEAD.len() + TAIL.len()) as u64)
}

/// Events of about so many bytes, a third of which is text with what JSON escapes and with what
/// UTF-8 needs two bytes for.
fn generated(events: usize, event_bytes: usize) -> Vec<u8> {
    const WORDS: [&str; 6] =
        [r"alpha\n", "bravo ", "größe ", r#"\"quoted\" "#, r"\u003ctag\u003e ", "delta "];
    let mut body = String::from(HEAD);
    for index in 0..events {
        let start = body.len();
        if index > 0 {
            body.push(',');
        }
        write!(
            body,
            r#"{{"level":"Request","auditID":"00000000-0000-4000-8000-{index:012x}","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/team/configmaps/generated-{index}","verb":"update","user":{{"username":"system:serviceaccount:team:default","uid":"7c0f6f1c-6b1d-4f0e-9a39-6d1f5f3f2b11","groups":["system:serviceaccounts","system:authenticated"]}},"sourceIPs":["10.0.0.1"],"userAgent":"generated/1.0","objectRef":{{"resource":"configmaps","namespace":"team","name":"generated-{index}","apiVersion":"v1"}},"responseStatus":{{"metadata":{{}},"code":200}},"requestObject":{{"kind":"ConfigMap","data":{{"text":""#
        )
        .expect("a String takes everything");
        let tail = r#""}},"requestReceivedTimestamp":"2026-01-02T03:04:05.678901Z","stageTimestamp":"2026-01-02T03:04:05.678901Z","annotations":{"authorization.k8s.io/decision":"allow"}}"#;
        let mut word = index;
        while body.len() - start + tail.len() < event_bytes {
            body.push_str(WORDS[word % WORDS.len()]);
            word += 1;
        }
        body.push_str(tail);
    }
    body.push_str(TAIL);
    body.into_bytes()
}

/// An EventList whose events are all different in length, names, numbers and in what the object holds, while their parts
/// follow each other as in kube-apiserver's: what was learned from one helps with the next as far as it does with real ones.
/// The same seed gives the same bytes.
pub(crate) fn varied(seed: u64, events: usize, event_bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut body = String::from(HEAD);
    for index in 0..events {
        if index > 0 {
            body.push(',');
        }
        let (start, tail) = (
            body.len(),
            r#"}},"requestReceivedTimestamp":"2026-01-02T03:04:05.678901Z","stageTimestamp":"2026-01-02T03:04:05.678901Z","annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":""}}"#,
        );
        fill(&mut random, BEGINNING, &mut body);
        while body.len() - start + tail.len() < event_bytes {
            let part = random.choice(PARTS).expect("there are some");
            fill(&mut random, part, &mut body);
        }
        body.push_str(tail);
    }
    body.push_str(TAIL);
    body.into_bytes()
}

/// `~` stands for a word, `^` for a number, `%` for one of eight digits.
const BEGINNING: &str = r#"{"level":"RequestResponse","auditID":"00000000-%%%%-4000-8000-%%%%%%%%%%%%","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/~/~/~-^","verb":"~","user":{"username":"system:serviceaccount:~:~","uid":"00000000-%%%%-4000-8000-%%%%%%%%%%%%","groups":["system:serviceaccounts","system:serviceaccounts:~","system:authenticated"]},"sourceIPs":["10.0.0.%"],"userAgent":"~/v1.36.2 (linux/amd64)","objectRef":{"resource":"~","namespace":"~","name":"~-^","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":20%},"requestObject":{"kind":"~","apiVersion":"v1","spec":{"replicas":%"#;

/// Of objects, each behind another member.
const PARTS: &[&str] = &[
    r#","labels":{"app":"~","app.kubernetes.io/name":"~","pod-template-hash":"^"}"#,
    r#","annotations":{"kubernetes.io/restartedAt":"2026-01-02T0%:0%:0%Z","example/revision":"%"}"#,
    r#","containers":[{"name":"~","image":"registry.example/~/~:1.%","ports":[{"containerPort":^,"protocol":"TCP"}]}]"#,
    r#","env":[{"name":"~","value":"~"},{"name":"~","value":"http://~.~.svc:^/~"}]"#,
    r#","tolerations":[{"key":"node.kubernetes.io/~","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}]"#,
    r#","status":"~","reason":"~","message":"~ has been set by ~-^","observedGeneration":^"#,
    r#","ownerReferences":[{"apiVersion":"apps/v1","kind":"~","name":"~-^","controller":true}]"#,
    r#","data":{"~":"~=\"~\"\n~=\u003c~\u003e\n","~":"^"}"#,
];

fn fill(random: &mut fastrand::Rng, pattern: &str, body: &mut String) {
    const WORDS: [&str; 8] =
        ["web", "kube-system", "a", "ingress-controller", "default", "pv", "coredns", "team-alpha"];
    for char in pattern.chars() {
        match char {
            '~' => body.push_str(random.choice(WORDS).expect("there are some")),
            '^' => write!(body, "{}", random.u16(1..)).expect("a String takes everything"),
            '%' => body.push(char::from(random.u8(b'0'..b'8'))),
            char => body.push(char),
        }
    }
}
