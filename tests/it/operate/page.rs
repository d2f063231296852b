//! The status page in a browser, on the real relay: what an operator sees in each state.
//!
//! `KUBE_AUDIT_FORWARDER_SCREENSHOTS=DIR` writes pictures of the page, which are those in `docs/`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::support::PATIENCE;
use crate::support::answers::assert_accepted;
use crate::support::browser::Browser;
use crate::support::browser::Scheme;
use crate::support::certificates::Certificates;
use crate::support::chance::rng;
use crate::support::corpus::generated_batch;
use crate::support::free_port;
use crate::support::http;
use crate::support::http_sink::HttpSink;
use crate::support::relay::Backlog;
use crate::support::relay::Relay;
use crate::support::relp_sink;
use crate::support::relp_sink::RelpSink;
use crate::support::senders::Bodies;
use crate::support::senders::Senders;
use crate::support::tcp_sink::TcpSink;
use crate::support::text;
use crate::support::wait_until;

/// How long a test waits for the page to show something. The page asks the relay every two seconds,
/// and needs two answers for a rate; a busy machine takes longer.
const SEEN: Duration = PATIENCE.saturating_mul(2);

fn open(relay: &Relay) -> Browser {
    let browser = Browser::start();
    browser.prefer(Scheme::Light);
    browser.resize(1100, 800);
    browser.open(&format!("http://{}/", relay.admin()));
    browser
}

/// Waits until an element shows these words.
fn wait_for_text(browser: &Browser, selector: &str, words: &str) {
    let mut last = String::new();
    let found = crate::support::try_wait_for(SEEN, || {
        last = browser.text(selector);
        last.contains(words).then_some(())
    });
    assert!(found.is_some(), "{selector} does not say \"{words}\" but \"{last}\"");
}

/// Returns the number at the beginning of the text, or `None` if its first word is no number.
fn number(text: &str) -> Option<f64> {
    text.split(' ').next()?.replace(',', "").parse().ok()
}

/// Writes a picture of the page, if the environment asks for pictures.
fn picture(browser: &Browser, name: &str) {
    if let Ok(directory) = std::env::var("KUBE_AUDIT_FORWARDER_SCREENSHOTS") {
        // The pause gives the page time to draw a trend.
        std::thread::sleep(Duration::from_secs(25));
        let file = PathBuf::from(directory).join(format!("status-page-{name}.png"));
        std::fs::write(file, browser.screenshot()).unwrap();
    }
}

/// Checks that nothing is wider than the window, at the widths of a desk and of a phone. The window
/// has the width of a phone afterwards.
fn assert_fits(browser: &Browser) {
    for width in [1100, 800, 360] {
        browser.resize(width, 740);
        let wide = browser.run(
            "const wide = [...document.body.querySelectorAll('*')].filter((it) => it.getBoundingClientRect().right > innerWidth + 0.5);
             return [document.documentElement.scrollWidth, innerWidth, wide.map((it) => it.outerHTML).join('\\n')]",
        );
        // A scroll bar takes a part of the window's width.
        assert!(wide[0].as_u64() <= Some(width.into()), "{wide}");
        assert_eq!((&wide[1], &wide[2]), (&Value::from(width), &Value::from("")), "{wide}");
    }
}

/// A script that measures the contrast of each element's text against its background (WCAG 2.2,
/// 1.4.3).
const CONTRAST: &str = "
    const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
    const behind = (it) => {
        for (; it; it = it.parentElement) {
            const back = rgb(getComputedStyle(it).backgroundColor);
            if (back.length === 3 || back[3] === 1) return back;
        }
        return [255, 255, 255];
    };
    const part = (value) => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    const poor = [];
    for (const it of document.body.querySelectorAll('*')) {
        const own = [...it.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!own || !it.checkVisibility() || it.closest('script, template')) continue;
        const [a, b] = [light(rgb(getComputedStyle(it).color)), light(behind(it))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(`${(a + 0.05) / (b + 0.05)}: ${it.textContent}`);
    }
    return poor.join('\\n');
";

fn assert_readable(browser: &Browser) {
    for scheme in [Scheme::Dark, Scheme::Light] {
        browser.prefer(scheme);
        assert_eq!(browser.run(CONTRAST), "");
    }
}

/// Checks that the page asked only this relay, and violated no rule of its content security policy.
fn assert_quiet(browser: &Browser, admin: SocketAddr) {
    assert_eq!(browser.console(), [""; 0]);
    let asked: BTreeSet<String> = browser.requests().into_iter().collect();
    let allowed = |url: &String| {
        *url == format!("http://{admin}/")
            || *url == format!("http://{admin}/status")
            || url.starts_with("data:image/")
    };
    assert!(asked.iter().all(allowed), "{asked:?}");
    assert!(asked.contains(&format!("http://{admin}/status")), "{asked:?}");
}

#[test]
fn a_healthy_relay_loses_nothing_and_shows_what_flows() {
    let certificates = Certificates::new();
    let certificate = certificates.server_for(61);
    let (sink, archive) = (TcpSink::start(), HttpSink::accepting());
    let config = format!(
        "log = {{ format = \"json\" }}\nadmin = {{ address = \"127.0.0.1:0\" }}\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[listener]]\naddress = \"127.0.0.2:0\"\n[listener.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n\
         [[output]]\nname = \"logstash\"\ntype = \"tcp\"\naddresses = [\"{}\"]\nreplay_window = \"100ms\"\n\
         [[output]]\nname = \"archive\"\ntype = \"http\"\nrequired = false\nurls = [\"http://{}/\"]\n",
        text(&certificate.certificate),
        text(&certificate.key),
        sink.address(),
        archive.address(),
    );
    let relay = Relay::start(&config);
    let senders = Senders::start(1, Bodies::Steady, &mut rng());
    senders.go_to(relay.listeners()[0].1);

    let browser = open(&relay);
    wait_for_text(&browser, "#lost", "lost: 0");
    wait_for_text(&browser, "#findings", "Every output works, and nothing is lost.");
    for selector in
        ["#in-rate", "#outputs li:nth-child(1) .rate b", "#outputs li:nth-child(2) .rate b"]
    {
        wait_until("a rate", SEEN, || {
            number(&browser.text(selector)).is_some_and(|rate| rate > 0.0)
        });
    }
    wait_for_text(&browser, "#in-unit", "events/s · ");
    for (selector, words) in [
        ("#facts", concat!("version ", env!("CARGO_PKG_VERSION"))),
        ("#facts", "up "),
        ("#inputs", "127.0.0.1:0"),
        ("#inputs", "HTTPS listener"),
        ("#queue-limit", "256 MiB"),
        ("#queue-where", "used, in memory"),
        ("#outputs li:nth-child(1)", "logstash"),
        ("#outputs li:nth-child(1) .pill", "up"),
        ("#outputs li:nth-child(2)", "http, not required"),
        ("#certificates", "listener 127.0.0.2:0, server"),
        ("#certificates", "60 days"),
        ("#rejected-none", "None since the start."),
    ] {
        wait_for_text(&browser, selector, words);
    }
    wait_until("the title", SEEN, || {
        browser.run("return document.title").as_str().unwrap().starts_with("lost: 0")
    });
    // The part that is read aloud holds no number that changes each time.
    assert_eq!(
        browser.run("return document.querySelector('#findings').getAttribute('role')"),
        "status"
    );
    picture(&browser, "healthy");
    assert_readable(&browser);
    assert_fits(&browser);
    assert_quiet(&browser, relay.admin());
    senders.finish();
    relay.finish(Backlog::Empty);
}

#[test]
fn an_output_that_is_down_says_why_and_when_it_is_tried_again_and_recovers() {
    let mut sink = TcpSink::start();
    sink.close();
    let archive = HttpSink::accepting();
    let config = format!(
        "log = {{ format = \"json\" }}\nadmin = {{ address = \"127.0.0.1:0\" }}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[output]]\nname = \"logstash\"\ntype = \"tcp\"\naddresses = [\"{}\"]\nreplay_window = \"100ms\"\n\
         retry = {{ initial_interval = \"20s\", max_interval = \"20s\", randomization_factor = 0.0 }}\n\
         [[output]]\nname = \"archive\"\ntype = \"http\"\nurls = [\"http://{}/\"]\n",
        sink.address(),
        archive.address(),
    );
    let relay = Relay::start(&config);
    for seed in 0..50 {
        assert_accepted(&relay.post(&generated_batch(seed, 400, 1600)), 400);
    }
    let senders = Senders::start(1, Bodies::Steady, &mut rng());
    senders.go_to(relay.address());
    let browser = open(&relay);
    let down = "#outputs li:nth-child(1)";
    wait_for_text(&browser, "#findings", "Output logstash is down; its events are kept.");
    wait_for_text(&browser, &format!("{down} .pill"), "down for ");
    wait_for_text(&browser, &format!("{down} .error"), &sink.address().to_string());
    assert!(browser.text(&format!("{down} .error")).to_lowercase().contains("refused"));
    wait_for_text(&browser, &format!("{down} [data-is=backlog]"), " events, ");
    let backlog = number(&browser.text(&format!("{down} [data-is=backlog]")));
    assert!(backlog >= Some(20_000.0), "{backlog:?}");
    wait_for_text(&browser, "#outputs li:nth-child(2) .pill", "up");
    // The time until the next retry counts down, also between two answers of the relay.
    let wait = || {
        let text = browser.text(&format!("{down} [data-is=retry]"));
        number(text.strip_prefix("in ")?).filter(|seconds| *seconds <= 20.0)
    };
    wait_until("a retry that is near", SEEN, || wait().is_some_and(|seconds| seconds > 2.0));
    let first = wait();
    wait_until("the countdown", SEEN, || wait().is_some_and(|seconds| Some(seconds) < first));
    assert!(browser.run("return document.title").as_str().unwrap().starts_with('✕'));
    assert_eq!(browser.text("#lost"), "lost: 0");
    browser.prefer(Scheme::Dark);
    picture(&browser, "down");
    assert_readable(&browser);
    assert_fits(&browser);
    assert_quiet(&browser, relay.admin());

    senders.finish();
    sink.reopen();
    wait_for_text(&browser, "#findings", "Every output works, and nothing is lost.");
    wait_for_text(&browser, &format!("{down} .pill"), "up");
    wait_for_text(&browser, &format!("{down} .error"), "before it worked again");
    relay.finish(Backlog::Empty);
}

#[test]
fn the_verdict_is_no_good_news_while_one_of_two_addresses_is_down() {
    let mut first = TcpSink::start();
    first.close();
    let second = TcpSink::start();
    let config = format!(
        "log = {{ format = \"json\" }}\nadmin = {{ address = \"127.0.0.1:0\" }}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[output]]\nname = \"logstash\"\ntype = \"tcp\"\naddresses = [\"{}\", \"{}\"]\nreplay_window = \"100ms\"\n",
        first.address(),
        second.address(),
    );
    let relay = Relay::start(&config);
    assert_accepted(&relay.post(&generated_batch(1, 400, 1600)), 400);
    let browser = open(&relay);
    let words = format!(
        "Output logstash: the address {} is down; its other addresses take the events.",
        first.address()
    );
    wait_for_text(&browser, "#findings", &words);
    let verdict = || browser.run("return document.querySelector('#verdict').dataset.state");
    assert_eq!(verdict(), "warn");
    assert!(!browser.text("#findings").contains("Every output works"));
    wait_for_text(&browser, "#outputs .pill", "up, 1 of 2 addresses down");
    assert!(browser.run("return document.title").as_str().unwrap().starts_with("! lost: 0"));
    picture(&browser, "degraded");
    assert_readable(&browser);
    assert_fits(&browser);
    assert_quiet(&browser, relay.admin());

    // The address is on trial at first, which counts as good.
    first.reopen();
    wait_for_text(&browser, "#findings", "Every output works, and nothing is lost.");
    assert_eq!(verdict(), "good");
    relay.finish(Backlog::Empty);
}

#[test]
fn two_urls_of_one_host_and_port_are_two_rows_and_stay_two() {
    let sink = HttpSink::accepting();
    let config = format!(
        "log = {{ format = \"json\" }}\nadmin = {{ address = \"127.0.0.1:0\" }}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[output]]\nname = \"archive\"\ntype = \"http\"\nstrategy = \"round_robin\"\n\
         urls = [\"http://{0}/first\", \"http://{0}/second\"]\n",
        sink.address(),
    );
    let relay = Relay::start(&config);
    assert_accepted(&relay.post(&generated_batch(1, 40, 1600)), 40);
    relay.wait_until_delivered(PATIENCE);
    let browser = open(&relay);
    wait_for_text(&browser, "#findings", "Every output works, and nothing is lost.");
    // A page that comes back to the front asks at once, so that 15 refreshes take no 30 seconds.
    // Each count is made after the answer to its question was drawn.
    let counts = browser.run(
        "const draws = async (question) => {
             document.dispatchEvent(new Event('visibilitychange'));
             await new Promise((done) => {
                 const wait = () => performance.getEntriesByType('resource').length > question
                     ? setTimeout(done, 100) : setTimeout(wait, 20);
                 wait();
             });
             return [document.querySelectorAll('*').length,
                     document.querySelectorAll('.addresses li').length];
         };
         const counts = [];
         for (let refresh = 0; refresh < 16; refresh += 1) {
             counts.push(await draws(performance.getEntriesByType('resource').length));
         }
         return counts",
    );
    let counts = counts.as_array().unwrap();
    assert_eq!(counts.len(), 16);
    assert_eq!(counts[0][1], 2, "two rows");
    assert!(counts.iter().all(|count| count == &counts[0]), "{counts:?}");
    relay.finish(Backlog::Empty);
}

/// Makes the page show what `/status` would say after this change to it.
fn pretend(browser: &Browser, change: &str) {
    let script = format!(
        "window.asked = window.asked || window.fetch;
         window.fetch = async (...question) => {{
             const status = await (await window.asked(...question)).json();
             {change}
             return {{ ok: true, json: () => status }};
         }}"
    );
    browser.run(&script);
}

#[test]
fn the_verdict_knows_events_that_are_late_and_addresses_that_are_not_good() {
    let (sink, idle) = (TcpSink::start(), TcpSink::start());
    let config = format!(
        "log = {{ format = \"json\" }}\nadmin = {{ address = \"127.0.0.1:0\" }}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[output]]\nname = \"logstash\"\ntype = \"tcp\"\naddresses = [\"{}\"]\nreplay_window = \"2s\"\n\
         [[output]]\nname = \"idle\"\ntype = \"http\"\nrequired = false\nurls = [\"http://{}/\"]\n\
         filter.match = {{ users = [\"nobody-at-all\"] }}\n",
        sink.address(),
        idle.address(),
    );
    let relay = Relay::start(&config);
    assert_accepted(&relay.post(&generated_batch(1, 40, 1600)), 40);
    relay.wait_until_delivered(PATIENCE);
    let status = http::get(relay.admin(), "/status").unwrap().json();
    // The limit of the lag is longer by the time that the protocol itself waits.
    assert_eq!(status["outputs"][0]["lag_max_seconds"], 32.0);
    assert_eq!(status["outputs"][1]["lag_max_seconds"], 30.0);
    let browser = open(&relay);
    // An output that had nothing to send is no trouble.
    let good = "Every output works, and nothing is lost.";
    wait_for_text(&browser, "#findings", good);
    let verdict = || browser.run("return document.querySelector('#verdict').dataset.state");
    let late = "Output logstash is late: events have waited for it for more than 32 s.";
    for (change, state, words) in [
        ("status.outputs[0].backlog_events = 9; status.outputs[0].lag_seconds = 61;", "warn", late),
        ("status.outputs[0].backlog_events = 9; status.outputs[0].lag_seconds = 31;", "good", good),
        // No event waits, so the age means nothing.
        ("status.outputs[0].lag_seconds = 61;", "good", good),
        (
            "Object.assign(status.outputs[1], { backlog_events: 9, lag_seconds: 61 });",
            "warn",
            "Output idle is late: events have waited for it for more than 30 s.",
        ),
        (
            "status.outputs[0].addresses[0].state = 'suspect';",
            "warn",
            "is suspect; it has no other address.",
        ),
        ("status.outputs[0].addresses[0].state = 'back, on trial';", "good", "is on trial."),
        (
            "status.memory_limit_bytes = status.memory_bytes + 1;",
            "warn",
            "The memory is nearly used up",
        ),
        ("status.memory_limit_bytes = null;", "good", good),
    ] {
        pretend(&browser, change);
        wait_for_text(&browser, "#findings", words);
        assert_eq!(verdict(), state, "{change}");
        assert_eq!(browser.text("#findings").contains(good), state == "good", "{change}");
        assert_eq!(browser.text("#lost"), "lost: 0");
    }
    relay.finish(Backlog::Empty);
}

const HOSTILE: &str = "<script>document.title=1</script>";

#[test]
fn a_full_queue_and_what_clients_and_peers_say_are_text() {
    // The consumer answers with markup, as far as its protocol allows.
    let sink =
        RelpSink::with(|command| Some(relp_sink::answer(command, &format!("500 {HOSTILE}"))));
    let config = format!(
        "log = {{ format = \"json\" }}\nadmin = {{ address = \"127.0.0.1:0\" }}\n\
         [queue]\nmax_bytes = \"1MiB\"\n[shutdown]\ndrain_timeout = \"500ms\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\npath_prefix = \"/audit\"\n\
         [[output]]\nname = \"rsyslog\"\ntype = \"relp\"\naddresses = [\"{}\"]\n",
        sink.address(),
    );
    let relay = Relay::start(&config);
    let browser = open(&relay);
    wait_for_text(&browser, "#rejected-none", "None since the start.");
    let event = "{\"kind\":\"<img src=x onerror=alert(1)>\",\"apiVersion\":\"audit.k8s.io/v1\"}";
    assert_eq!(relay.post(event.as_bytes()).status, 400);
    wait_for_text(&browser, "#rejected-what", "400 not audit events");
    wait_for_text(&browser, "#rejected-message", "<img src=x onerror=alert(1)>");
    wait_for_text(&browser, "#outputs .error", HOSTILE);

    let refused =
        || (0..200).any(|seed| relay.post(&generated_batch(seed, 20, 1600)).status == 429);
    assert!(refused());
    wait_for_text(&browser, "#rejected-what", "429 queue full");
    wait_for_text(&browser, "#rejected-when", "at 127.0.0.1:0");
    wait_for_text(&browser, "#rejected-message", "the queue is full");
    wait_for_text(&browser, "#rejected-counts", "1 request");
    wait_for_text(&browser, "#findings", "The queue is full");
    wait_for_text(&browser, "#findings", "Output rsyslog is down");
    let bar = "const bar = document.querySelector('#queue-bar');
               return [Number(bar.getAttribute('aria-valuenow')), Number(bar.firstElementChild.getAttribute('width')),
                       bar.getAttribute('data-state')]";
    wait_until("a full bar", SEEN, || {
        let bar = browser.run(bar);
        bar[0].as_f64() > Some(90.0) && bar[1].as_f64() > Some(90.0) && bar[2] == "bad"
    });
    // None of the markup became an element, or ran.
    let made = "return [document.querySelectorAll('script').length, document.querySelectorAll('img').length, document.title]";
    let made = browser.run(made);
    assert_eq!((&made[0], &made[1]), (&Value::from(1), &Value::from(0)));
    assert!(made[2].as_str().unwrap().ends_with("kube-audit-forwarder"), "{made}");
    assert_readable(&browser);
    assert_fits(&browser);
    picture(&browser, "full");
    assert_quiet(&browser, relay.admin());
    relay.finish(Backlog::Stable);
}

#[test]
fn a_relay_that_is_gone_is_missed_and_one_that_is_back_is_noticed() {
    let sink = TcpSink::start();
    let config = format!(
        "log = {{ format = \"json\" }}\nadmin = {{ address = \"127.0.0.1:{}\" }}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[output]]\nname = \"logstash\"\ntype = \"tcp\"\naddresses = [\"{}\"]\nreplay_window = \"100ms\"\n",
        free_port(),
        sink.address(),
    );
    let relay = Relay::start(&config);
    assert_accepted(&relay.post(&generated_batch(1, 400, 1600)), 400);
    let browser = open(&relay);
    wait_for_text(&browser, "#in-accepted", "400 events");
    wait_for_text(&browser, "#outputs [data-is=delivered]", "400 events");
    assert_eq!(browser.text("#gone"), "");
    // The script records everything that the page ever shows as a rate.
    browser.run(
        "window.rates = []; const see = () => rates.push(...[...document.querySelectorAll('.rate b')].map((it) => it.textContent));
         new MutationObserver(see).observe(document.body, { subtree: true, childList: true, characterData: true })",
    );

    relay.finish(Backlog::Empty);
    wait_for_text(&browser, "#gone", "The relay does not answer.");
    wait_for_text(&browser, "#gone", " s ago");
    assert_eq!(browser.run("return document.querySelector('#gone').getAttribute('role')"), "alert");
    assert!(browser.run("return document.title").as_str().unwrap().contains("no answer"));
    // The last totals stay on the page, and rates disappear.
    assert_eq!(browser.text("#in-accepted"), "400 events");
    assert_eq!(browser.text("#in-rate"), "–");
    wait_for_text(&browser, "#findings", "does not know what has happened");
    picture(&browser, "gone");
    assert_readable(&browser);
    assert_fits(&browser);

    let relay = Relay::start(&config);
    wait_until("the other run", SEEN, || browser.text("#in-accepted") == "0 events");
    wait_for_text(&browser, "#findings", "The relay was restarted");
    wait_until("the end of the warning", SEEN, || browser.text("#gone").is_empty());
    assert_accepted(&relay.post(&generated_batch(2, 100, 1600)), 100);
    wait_for_text(&browser, "#in-accepted", "100 events");
    wait_until("a rate", SEEN, || number(&browser.text("#in-rate")).is_some());
    let rates = browser.run("return rates");
    for rate in rates.as_array().unwrap() {
        let rate = rate.as_str().unwrap();
        assert!(rate == "–" || number(rate).is_some_and(|rate| rate >= 0.0), "{rate}");
    }
    // The failed requests are all that the console reports.
    for message in browser.console() {
        assert!(
            message.contains("/status - Failed to load resource: net::ERR_CONNECTION_"),
            "{message}"
        );
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn the_page_is_sent_with_a_policy_that_allows_nothing_else() {
    let sink = TcpSink::start();
    let relay = Relay::start(&crate::support::setup::config(&sink, "", ""));
    let page = http::get(relay.admin(), "/").unwrap();
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    let policy = page.header("content-security-policy").unwrap();
    let directives: Vec<&str> = policy.split("; ").collect();
    for directive in [
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ] {
        assert!(directives.contains(&directive), "{directive}: {policy}");
    }
    for directive in ["script-src 'sha256-", "style-src 'sha256-"] {
        assert!(directives.iter().any(|it| it.starts_with(directive)), "{directive}: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    let text = page.text();
    let (_, noscript) = text.split_once("<noscript>").unwrap();
    let (noscript, _) = noscript.split_once("</noscript>").unwrap();
    assert!(noscript.contains("/status") && noscript.contains("/metrics"), "{noscript}");
    // No answer may be cached, and its type may not be guessed from its content.
    for path in ["/status", "/metrics", "/readyz", "/nowhere"] {
        let answer = http::get(relay.admin(), path).unwrap();
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
    }
    relay.finish(Backlog::Empty);
}
