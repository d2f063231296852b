//! The status page in a browser, on the real relay: what an operator sees in each state.
//!
//! `docs/pictures.sh` makes the tests write the pictures of the page in `docs/`: they do so if
//! `KUBE_AUDIT_FORWARDER_SCREENSHOTS` names a directory. Each picture takes a minute and a half, so
//! that its charts have something to show.

mod rest;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::support::browser::{Browser, Scheme};
use crate::support::chance::rng;
use crate::support::prelude::*;
use crate::support::relp_sink::RelpSink;
use crate::support::senders::{Bodies, Senders};
use crate::support::{png, relp_sink, witness};

/// How long a test waits for the page to show something. The page asks the relay every two seconds;
/// a busy machine takes longer.
const SEEN: Duration = PATIENCE.saturating_mul(2);

fn open(relay: &Relay) -> Browser {
    let browser = Browser::start();
    browser.prefer(Scheme::Light);
    browser.resize(1280, 800);
    browser.open(&format!("http://{}/", relay.admin()));
    browser
}

fn wait_for_text(browser: &Browser, selector: &str, words: &str) {
    let mut last = String::new();
    let found = crate::support::try_wait_for(SEEN, || {
        last = browser.text(selector);
        last.contains(words).then_some(())
    });
    assert!(found.is_some(), "{selector} does not say \"{words}\" but \"{last}\"");
}

/// Returns the number at the beginning of the text, or `None` if its first word is not a number.
fn number(text: &str) -> Option<f64> {
    text.split(' ').next()?.replace(',', "").parse().ok()
}

/// Writes a picture of the page, if the environment asks for pictures.
fn picture(browser: &Browser, name: &str) {
    if std::env::var_os("KUBE_AUDIT_FORWARDER_SCREENSHOTS").is_some() {
        std::thread::sleep(Duration::from_secs(90));
        write_picture(browser, name);
    }
}

/// Writes a picture without waiting for more points in the charts. It is as high as the page.
fn write_picture(browser: &Browser, name: &str) {
    if let Ok(directory) = std::env::var("KUBE_AUDIT_FORWARDER_SCREENSHOTS") {
        let width = browser.run("return innerWidth").as_u64().unwrap();
        let width = u32::try_from(width).unwrap();
        browser.resize(width, 200);
        browser.run(
            "document.querySelector('#spans input').click();
             document.activeElement.blur(); scrollTo(0, 0)",
        );
        let file = PathBuf::from(directory).join(format!("status-page-{name}.png"));
        let picture = png::with_palette(&browser.screenshot());
        assert!(picture.len() < 130_000, "{name}: {} bytes", picture.len());
        std::fs::write(file, picture).unwrap();
        browser.resize(width, 800);
    }
}

/// Opens the part of the page that is folded at first, with the keyboard.
fn unfold(browser: &Browser) {
    browser.run("document.querySelector('summary').focus()");
    browser.press(ENTER);
    let is_open = || browser.run("return document.querySelector('#details').open") == true;
    wait_until("the details are open", PATIENCE, is_open);
}

/// Returns the selector of a part of an output's row, or of its details.
fn output(name: &str, part: &str) -> String {
    format!("tbody[data-key='[\"{name}\",0]'] {part}")
}

fn status(relay: &Relay) -> Value {
    http::get(relay.admin(), "/status").unwrap().json()
}

/// Waits until the page shows the relay's verdict, and the verdict has this state, or one of
/// several, such as `warn|bad`.
fn wait_for_verdict(browser: &Browser, relay: &Relay, state: &str) {
    let mut last = Value::Null;
    let found = crate::support::try_wait_for(SEEN, || {
        let verdict = status(relay)["verdict"].take();
        let shown = browser.run(
            "return [document.querySelector('#verdict').dataset.state,
                     document.querySelector('#headline').textContent.replaceAll('\\u00a0', ' ')]",
        );
        let is_shown = shown[0] == verdict["state"] && shown[1] == verdict["text"];
        let found = is_shown && state.split('|').any(|state| verdict["state"] == state);
        last = json!([verdict, shown]);
        found.then_some(())
    });
    assert!(found.is_some(), "no {state} verdict: {last}");
}

/// Opens the details of an output with the keyboard.
fn open_details(browser: &Browser, name: &str) {
    let button = json!(output(name, "button"));
    browser.run(&format!("document.querySelector({button}).focus()"));
    browser.press(ENTER);
    let open = format!("return document.querySelector({button}).getAttribute('aria-expanded')");
    wait_until("the output's details are open", PATIENCE, || browser.run(&open) == "true");
}

/// The keys of WebDriver (§17.4.2).
const ENTER: char = '\u{E007}';

/// Returns the lines of a config before its outputs.
fn beginning(more: &str) -> String {
    format!(
        "log = {{ format = \"json\" }}\nadmin = {{ address = \"127.0.0.1:0\" }}\n{more}\
         [shutdown]\ndrain_timeout = \"500ms\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n"
    )
}

fn tcp(name: &str, addresses: &[SocketAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
    format!(
        "[[output]]\nname = \"{name}\"\ntype = \"tcp\"\naddresses = {addresses:?}\n\
         replay_window = \"100ms\"\n"
    )
}

/// A script that finds texts that are cut and cannot be read in a tooltip. Parts for readers of
/// screens are cut on purpose.
const CUT: &str = "
    const isCut = (it) => getComputedStyle(it).overflow === 'hidden' && !it.matches('.unseen, svg')
        && (it.scrollWidth > it.clientWidth + 1 || it.scrollHeight > it.clientHeight + 1)
        && it.checkVisibility() && !it.closest('[title]');
    return [...document.body.querySelectorAll('*')].filter(isCut).map((it) => it.outerHTML).join();
";

/// A script that finds texts that lie on one another, numbers apart from their units, and
/// backticks. A text is as large as what is seen of it, without the room above and below its
/// letters.
const COLLISIONS: &str = r"
    const found = [];
    const seen = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode;
        const parent = node.parentElement;
        const isShown = parent.checkVisibility({ visibilityProperty: true })
            && !parent.closest('.unseen, option, script, style');
        if (!node.data.trim() || !isShown) continue;
        if (node.data.includes('`')) found.push(`a backtick: ${node.data}`);
        const range = document.createRange();
        for (const unit of node.data.matchAll(/[0-9]\u00a0\S{1,12}/g)) {
            range.setStart(node, unit.index);
            range.setEnd(node, unit.index + unit[0].length);
            const tops = new Set([...range.getClientRects()].map((it) => Math.round(it.top)));
            if (tops.size > 1) found.push(`two lines: ${unit[0]}`);
        }
        range.selectNodeContents(node);
        for (const { left, right, top, bottom } of range.getClientRects()) {
            const box = { node, left, right, top: top + 3, bottom: bottom - 3 };
            for (let it = parent; it; it = it.parentElement) {
                if (getComputedStyle(it).overflow !== 'hidden') continue;
                const clip = it.getBoundingClientRect();
                box.right = Math.min(box.right, clip.right);
                box.bottom = Math.min(box.bottom, clip.bottom);
            }
            if (box.left < box.right && box.top < box.bottom) seen.push(box);
        }
    }
    seen.forEach((one, index) => {
        for (const other of seen.slice(index + 1)) {
            const isApart = one.right <= other.left + 0.5 || other.right <= one.left + 0.5
                || one.bottom <= other.top || other.bottom <= one.top;
            if (!isApart && one.node !== other.node) {
                found.push(`${one.node.data} | ${other.node.data}`);
            }
        }
    });
    const ticks = [...document.querySelectorAll('[title]')].filter((it) => it.title.includes('`'));
    return found.concat(ticks.map((it) => `a backtick: ${it.title}`)).join('\n');
";

/// Checks that nothing is wider than the window, that no text is cut, and that none runs into
/// another, on desktops, a tablet and a phone. Afterwards, the window is as wide as a phone.
fn assert_fits(browser: &Browser) {
    for width in [1280, 1024, 768, 360] {
        browser.resize(width, 740);
        // The charts take their new sizes in the next frame.
        browser.run(
            "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))",
        );
        let wide = browser.run(
            "const wide = [...document.body.querySelectorAll('*')].filter((it) => it.checkVisibility() && it.getBoundingClientRect().right > innerWidth + 0.5);
             return [document.documentElement.scrollWidth, innerWidth, wide.map((it) => it.outerHTML).join('\\n')]",
        );
        // A scroll bar takes a part of the window's width.
        assert!(wide[0].as_u64() <= Some(width.into()), "{wide}");
        assert_eq!((&wide[1], &wide[2]), (&Value::from(width), &Value::from("")), "{wide}");
        assert_eq!(browser.run(CUT), "", "at {width}");
        assert_eq!(browser.run(COLLISIONS), "", "at {width}");
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

/// Checks that the page asked only this relay, and did not violate its content security policy.
fn assert_quiet(browser: &Browser, admin: SocketAddr) {
    assert_eq!(browser.console(), [""; 0]);
    let asked: BTreeSet<String> = browser.requests().into_iter().collect();
    let allowed = |url: &String| {
        *url == format!("http://{admin}/")
            || *url == format!("http://{admin}/status")
            || *url == format!("http://{admin}/status/history")
            || *url == format!("http://{admin}/status/volume")
            || url.starts_with("data:image/")
    };
    assert!(asked.iter().all(allowed), "{asked:?}");
    for path in ["status", "status/history"] {
        assert!(asked.contains(&format!("http://{admin}/{path}")), "{asked:?}");
    }
}

/// Checks that the healthy page is one screen, with the signs of life, and the rest folded.
fn assert_one_screen(browser: &Browser) {
    browser.resize(1280, 400);
    let height = browser.run("return document.documentElement.scrollHeight");
    assert!(height.as_u64() <= Some(900), "{height}");
    browser.resize(1280, 800);
    let signs = browser.text("#signs");
    for (name, words) in [
        ("Evidence", "off"),
        ("Certificates", "60 days"),
        ("Listeners", "2 of 2 open"),
        ("Config", "as at the start"),
        ("Memory", ""),
    ] {
        assert!(signs.contains(&format!("{name}\n{words}")), "{name}: {signs}");
    }
    assert_eq!(browser.text("#listeners"), "");
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_healthy_relay_loses_nothing_and_shows_what_flows() {
    let certificates = Certificates::new();
    let certificate = certificates.server_for(61);
    let (mut first, second, archive) = (TcpSink::start(), TcpSink::start(), HttpSink::accepting());
    let config = format!(
        "{}[[listener]]\naddress = \"127.0.0.2:0\"\n{}{}\
         {}",
        beginning(""),
        certificate.tls(),
        tcp("logstash", &[first.address(), second.address()]),
        archive.output("archive", "required = false\n"),
    );
    let relay = Relay::start(&config);
    let senders = Senders::start(1, Bodies::Steady, &mut rng());
    senders.go_to(relay.listeners()[0].1);

    let browser = open(&relay);
    wait_for_verdict(&browser, &relay, "good");
    wait_for_text(&browser, "#lost", "lost: 0");
    // There are rates, although the page has asked the relay only once or twice so far.
    for selector in [
        "#in-rate",
        "#sent-rate",
        &output("logstash", "[data-is=rate]"),
        &output("archive", "[data-is=rate]"),
    ] {
        wait_until("a rate", SEEN, || {
            number(&browser.text(selector)).is_some_and(|rate| rate > 0.0)
        });
    }
    assert_one_screen(&browser);
    picture(&browser, "healthy");
    assert_fits(&browser);
    browser.resize(1280, 800);
    unfold(&browser);
    let bound = relay.listeners()[0].1.to_string();
    for (selector, words) in [
        ("#facts", concat!("version ", env!("CARGO_PKG_VERSION"))),
        ("#facts", "up "),
        ("#in-unit", "events/s · "),
        ("#flow-title + p", "All rates are those of the last minute"),
        ("#queue-where", "of 256 MiB in memory"),
        ("#gone-unit", "lost/s · 0/s get 429"),
        ("#out-words", "2 outputs, no trouble"),
        (&output("logstash", ".pill"), "up"),
        (&output("logstash", "[data-is=latency]"), " ms"),
        (&output("archive", "[data-is=kind]"), "http, not required"),
        ("#listeners div:nth-child(1) dt", &bound),
        ("#listeners div:nth-child(1) dd", "HTTP, configured as 127.0.0.1:0 · 1 connection"),
        ("#listeners div:nth-child(1) dd", " × 200"),
        ("#listeners div:nth-child(2) dd", "HTTPS, configured as 127.0.0.2:0"),
        ("#queue-facts", "reject: senders get 429 and are asked to come back after 3 to 8 s"),
        ("#queue-facts", "queued: 200 once the events are in the queue"),
        ("#certificates", "listener 127.0.0.2:0, server: the relay's own"),
        ("#certificates", "60 days"),
        ("#rejected-none", "None since the start."),
        ("#evidence-none", "Off"),
        ("#process", "Memory"),
    ] {
        wait_for_text(&browser, selector, words);
    }
    wait_until("the title", SEEN, || {
        browser.run("return document.title").as_str().unwrap().starts_with("lost: 0")
    });
    // The part for screen readers is only rewritten when the findings change.
    assert_eq!(
        browser.run("return document.querySelector('#spoken').getAttribute('role')"),
        "status"
    );
    assert_readable(&browser);
    assert_fits(&browser);

    // One of two addresses goes down, so the verdict is amber.
    first.close();
    wait_for_verdict(&browser, &relay, "warn");
    wait_for_text(&browser, "#headline", &first.address().to_string());
    wait_for_text(&browser, &output("logstash", ".pill"), "up, 1 of 2 down");
    let state = format!(
        "return document.querySelector({}).dataset.state",
        json!("tbody[data-key='[\"logstash\",0]']")
    );
    assert_eq!(browser.run(&state), "warn");
    assert!(browser.run("return document.title").as_str().unwrap().starts_with("! lost: 0"));
    open_details(&browser, "logstash");
    for (row, state) in [(1, "down"), (2, "up")] {
        let row = output("logstash", &format!(".endpoints tbody tr:nth-child({row})"));
        wait_for_text(&browser, &format!("{row} [data-is=state]"), state);
    }
    assert_eq!(browser.run("return document.querySelector('#details').open"), true);
    assert_readable(&browser);
    assert_fits(&browser);
    assert_quiet(&browser, relay.admin());
    // At first, the address is on trial. That is a warning until it has accepted an event.
    first.reopen();
    wait_for_verdict(&browser, &relay, "good");
    senders.finish();
    relay.finish(Backlog::Empty);
}

/// Returns how many points the chart of incoming events shows.
fn points(browser: &Browser) -> u64 {
    let most = "const chart = document.querySelector('#in-chart svg');
                return 1 + Number(chart.getAttribute('aria-valuemax') ?? -1)";
    browser.run(most).as_u64().unwrap()
}

/// Checks that the element has room for all of its text.
fn assert_not_cut(browser: &Browser, selector: &str) {
    let is_cut = format!(
        "const it = document.querySelector(`{selector}`);
         return it.scrollWidth > it.clientWidth || it.scrollHeight > it.clientHeight"
    );
    assert_eq!(browser.run(&is_cut), false, "{selector}");
}

/// Checks that the finding about an output that is down links to its runbook, and that a desktop
/// window has room for the error.
fn assert_leads_on(browser: &Browser) {
    let link = browser.run("return document.querySelector('#findings a').href");
    assert!(link.as_str().unwrap().ends_with("/runbooks/KubeAuditForwarderOutputDown"), "{link}");
    wait_for_text(browser, "#findings li", "Look at the consumer and its log");
    let width = "return document.querySelector('#outputs th.why').getBoundingClientRect().width";
    assert!(browser.run(width).as_f64() > Some(300.0));
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn an_output_that_is_down_says_why_and_when_it_is_tried_again_and_recovers() {
    let mut sink = TcpSink::start();
    sink.close();
    let archive = HttpSink::accepting();
    let config = format!(
        "{}{}{}\
         retry = {{ initial_interval = \"20s\", max_interval = \"20s\", randomization_factor = 0.0 }}\n",
        beginning(""),
        archive.output("archive", ""),
        tcp("logstash", &[sink.address()]),
    );
    let relay = Relay::start(&config);
    for seed in 0..50 {
        assert_accepted(&relay.post(&generated_batch(seed, 400, 1600)), 400);
    }
    let senders = Senders::start(1, Bodies::Steady, &mut rng());
    senders.go_to(relay.address());
    let browser = open(&relay);
    wait_for_verdict(&browser, &relay, "bad");
    // The error is the first sentence.
    wait_for_text(&browser, "#headline", ". Output logstash is down; its events are kept.");
    assert!(browser.text("#headline").starts_with("Cannot connect to "));
    assert_leads_on(&browser);
    // The output is first in the table, although its name is not the first in the alphabet.
    wait_for_text(&browser, "#outputs tbody:nth-of-type(1) .pill", "down ");
    assert_eq!(browser.text("#outputs tbody:nth-of-type(1) [data-is=name]"), "logstash");
    wait_for_text(&browser, &output("archive", ".pill"), "up");
    let why = output("logstash", "td.why");
    wait_for_text(&browser, &why, &sink.address().to_string());
    assert!(browser.text(&why).to_lowercase().contains("refused"));
    assert_not_cut(&browser, &format!("{why} p"));
    // The time until the next retry counts down.
    let wait = || {
        let text = browser.text(&why);
        number(text.rsplit_once("next try in ")?.1).filter(|seconds| *seconds <= 20.0)
    };
    wait_until("a retry that is near", SEEN, || wait().is_some_and(|seconds| seconds > 2.0));
    let first = wait();
    wait_until("the countdown", SEEN, || wait().is_some_and(|seconds| Some(seconds) < first));
    assert!(browser.run("return document.title").as_str().unwrap().starts_with('✕'));
    assert_eq!(browser.text("#lost"), "lost: 0");

    // The details open with the keyboard, and show the same as HAProxy's page shows about a server.
    open_details(&browser, "logstash");
    let backlog = || {
        let facts = browser.text(&output("logstash", "[data-is=facts]"));
        number(facts.split_once("Backlog\n")?.1)
    };
    wait_until("the backlog", SEEN, || backlog() >= Some(20_000.0));
    let endpoint = output("logstash", ".endpoints tbody tr");
    for (part, words) in [
        ("th", sink.address().to_string()),
        ("[data-is=state]", "down".to_owned()),
        ("[data-is=since]", "for ".to_owned()),
        ("[data-is=errors]", "not connected".to_owned()),
        ("[data-is=error]", "refused".to_owned()),
        ("[data-is=error]", " ago".to_owned()),
    ] {
        wait_for_text(&browser, &format!("{endpoint} {part}"), &words);
    }
    assert!(
        browser.run(&format!(
            "return document.querySelectorAll('{}').length",
            output("logstash", ".charts svg").replace('\'', "\\'")
        )) == 3
    );
    // Refreshes keep the open details, the selection, the focus and the scroll position.
    browser.resize(1280, 400);
    browser.run(&format!(
        "getSelection().selectAllChildren(document.querySelector({}));
         scrollTo(0, 300); window.draws = 0;
         new MutationObserver(() => {{ draws += 1; }})
             .observe(document.querySelector('#updated'), {{ childList: true }})",
        json!(output("logstash", ".endpoints tbody th")),
    ));
    wait_until("three refreshes", SEEN, || browser.run("return draws").as_u64() >= Some(3));
    let kept = browser.run(
        "return [getSelection().toString().trim(), scrollY, document.activeElement.tagName,
                 document.activeElement.getAttribute('aria-expanded')]",
    );
    assert!(kept[0].as_str().unwrap().contains(&sink.address().to_string()), "{kept}");
    assert_eq!((&kept[1], &kept[2], &kept[3]), (&300.into(), &"BUTTON".into(), &"true".into()));
    browser.run("getSelection().empty()");
    browser.resize(1280, 800);

    browser.prefer(Scheme::Dark);
    picture(&browser, "down");
    assert_readable(&browser);
    assert_fits(&browser);
    assert_quiet(&browser, relay.admin());
    browser.resize(1280, 800);

    senders.finish();
    sink.reopen();
    wait_for_verdict(&browser, &relay, "good");
    wait_for_text(&browser, &output("logstash", ".pill"), "up");
    wait_for_text(&browser, &output("logstash", ".more .error"), "before it worked again");
    assert_eq!(browser.text("#outputs tbody:nth-of-type(1) [data-is=name]"), "archive");
    relay.finish(Backlog::Empty);
}

/// Changes the answers of `/status` before the page reads them.
fn pretend(browser: &Browser, change: &str) {
    let script = format!(
        "window.asked = window.asked || window.fetch;
         window.fetch = async (...question) => {{
             const answer = await window.asked(...question);
             if (question[0] !== 'status') return answer;
             const status = await answer.json();
             {change}
             return {{ ok: true, json: () => status }};
         }}"
    );
    browser.run(&script);
}

/// Returns the state that gives the number of lost events its colour.
const LOST_STATE: &str = "return document.querySelector('#lost').dataset.state";
