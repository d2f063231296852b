//! Headless Chromium, driven by chromedriver. The WebDriver protocol (W3C) is JSON over HTTP, which
//! the tests send with their own HTTP client.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::Client;
use super::needs::needs;
use super::{PATIENCE, text, wait_until};

/// A browser with one page. Dropping it ends the browser and chromedriver.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    /// The browser's profile, in a new directory.
    _profile: TempDir,
}

/// The colour scheme that the emulated system prefers (`prefers-color-scheme`).
#[derive(Clone, Copy)]
pub(crate) enum Scheme {
    Light,
    Dark,
}

impl Browser {
    /// Starts chromedriver and one browser session.
    pub(crate) fn start() -> Self {
        needs("chromedriver");
        let profile = TempDir::new().expect("a temporary directory");
        // chromedriver takes a port that is free on IPv4, and ends if the port is not free on IPv6.
        let (driver, port) = (0..5).find_map(|_| Self::driver()).expect("its port, in five tries");
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let mut browser = Self { driver, address, session: String::new(), _profile: profile };
        let data = format!("--user-data-dir={}", text(browser._profile.path()));
        // Chromium refuses to run its sandbox as root.
        let arguments = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage \
                         --disable-quic --no-first-run --disable-background-networking \
                         --disable-component-update --disable-sync";
        let arguments: Vec<_> = arguments.split(' ').chain([data.as_str()]).collect();
        let options = json!({ "binary": "/usr/bin/chromium", "args": arguments });
        let capabilities = json!({
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let started = browser.call(
            "POST",
            "/session",
            &json!({ "capabilities": { "alwaysMatch": capabilities } }),
        );
        browser.session = started["sessionId"].as_str().expect("an id").to_owned();
        browser
    }

    /// Starts chromedriver. Returns it with its port, or `None` if it ends immediately.
    fn driver() -> Option<(Child, u16)> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed, by ./test setup");
        let said = BufReader::new(driver.stdout.take().expect("piped"));
        let port = said.lines().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("started successfully on port ")?;
            rest.trim_end_matches('.').parse::<u16>().ok()
        });
        if port.is_none() {
            driver.kill().ok();
            driver.wait().expect("it is a child");
        }
        port.map(|port| (driver, port))
    }

    fn try_call(&self, method: &str, path: &str, body: &Value) -> std::io::Result<Value> {
        let mut client = Client::connect(self.address)?;
        // The slowest call is the start of the browser, which takes even longer on a busy machine.
        client.read_timeout(PATIENCE * 3);
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let headers = [("Content-Type", "application/json"), ("Connection", "close")];
        let response = client.request(method, path, &headers, body.as_bytes())?;
        let value = response.json()["value"].take();
        match response.status {
            200 => Ok(value),
            _ => Err(std::io::Error::other(format!("{method} {path}: {value}"))),
        }
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body).unwrap_or_else(|error| panic!("chromedriver: {error}"))
    }

    fn ask(&self, what: &str, body: &Value) -> Value {
        self.call("POST", &format!("/session/{}/{what}", self.session), body)
    }

    /// Runs a command of the DevTools protocol and returns its result.
    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.ask("goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Loads a page, and waits until the browser has drawn it. Before that, it drops keys.
    pub(crate) fn open(&self, url: &str) {
        self.ask("url", &json!({ "url": url }));
        let drawn = "return performance.getEntriesByType('paint').length";
        wait_until("the page is drawn", PATIENCE, || self.run(drawn).as_u64() > Some(0));
    }

    /// Runs JavaScript in the page and returns the value of its `return`.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.ask("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Returns the visible text of the first element that matches `selector`, with ordinary spaces
    /// in place of those that keep a number and its unit on one line. Returns an empty string if
    /// there is none or it is hidden.
    pub(crate) fn text(&self, selector: &str) -> String {
        let selector = json!(selector);
        let text = self.run(&format!(
            "const it = document.querySelector({selector}); return it?.checkVisibility() ? it.innerText.replaceAll('\\u00a0', ' ') : ''"
        ));
        text.as_str().expect("text").to_owned()
    }

    /// Sets the colour scheme that the page sees as the system's preference.
    pub(crate) fn prefer(&self, scheme: Scheme) {
        let value = match scheme {
            Scheme::Light => "light",
            Scheme::Dark => "dark",
        };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// Sets the size of the window, in CSS pixels. A width below 500 emulates a phone.
    pub(crate) fn resize(&self, width: u32, height: u32) {
        let mobile = width < 500;
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            &json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile }),
        );
    }

    /// Moves the mouse over an element. `part` is the distance from its left edge, as a share of
    /// its width.
    pub(crate) fn hover(&self, selector: &str, part: f64) {
        let selector = json!(selector);
        let place = self.run(&format!(
            "const it = document.querySelector({selector});
             it.scrollIntoView({{ block: 'center' }});
             const box = it.getBoundingClientRect();
             return [Math.round(box.x + box.width * {part}), Math.round(box.y + box.height / 2)]"
        ));
        let steps = json!([{
            "type": "pointerMove", "duration": 0, "origin": "viewport", "x": place[0], "y": place[1],
        }]);
        let mouse = json!({ "pointerType": "mouse" });
        let mouse =
            json!({ "type": "pointer", "id": "mouse", "parameters": mouse, "actions": steps });
        self.ask("actions", &json!({ "actions": [mouse] }));
    }

    /// Presses and releases a key in the focused element. `key` is a character, or the code point
    /// of a key that has none (WebDriver §17.4.2).
    pub(crate) fn press(&self, key: char) {
        let steps = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": steps });
        self.ask("actions", &json!({ "actions": [keyboard] }));
    }

    /// Returns a picture of the whole page, as PNG.
    pub(crate) fn screenshot(&self) -> Vec<u8> {
        let page = "const it = document.documentElement; return [innerWidth, it.scrollHeight]";
        let size = self.run(page);
        let clip = json!({ "x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1 });
        let parameters = json!({ "captureBeyondViewport": true, "clip": clip });
        let shot = self.devtools("Page.captureScreenshot", &parameters);
        BASE64_STANDARD.decode(shot["data"].as_str().expect("data")).expect("base64")
    }

    /// Returns the messages in the browser's console since the last call: violations of the content
    /// security policy, script errors and failed requests.
    pub(crate) fn console(&self) -> Vec<String> {
        let entries = self.ask("se/log", &json!({ "type": "browser" }));
        let message = |entry: &Value| entry["message"].as_str().expect("a message").to_owned();
        entries.as_array().expect("entries").iter().map(message).collect()
    }

    /// Returns the URLs of all requests since the last call, except those of the browser's own
    /// pages.
    pub(crate) fn requests(&self) -> Vec<String> {
        let entries = self.ask("se/log", &json!({ "type": "performance" }));
        let url = |entry: &Value| {
            let event: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let event = &event["message"];
            // The first page of a new browser is Chromium's own (`chrome://…`), and also makes
            // requests.
            let own = event["params"]["documentURL"].as_str()?.starts_with("chrome://");
            let sent = event["method"] == "Network.requestWillBeSent" && !own;
            sent.then(|| event["params"]["request"]["url"].as_str().expect("a URL").to_owned())
        };
        entries.as_array().expect("entries").iter().filter_map(url).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ending the session ends the browser's processes, and waits for them.
        let path = format!("/session/{}", self.session);
        drop(self.try_call("DELETE", &path, &Value::Null));
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}
