//! The times in which a consumer works well or is in trouble: spells of seconds to minutes.

use std::time::Duration;

use fastrand::Rng;

/// The state of a consumer.
#[derive(Debug, Clone)]
pub(super) enum Sky<Trouble> {
    /// It behaves like a healthy store.
    Fair,
    /// Every request meets the same trouble.
    Outage(Trouble),
    /// This percentage of the requests meets some trouble.
    Flaky(u32),
}

/// The spells of a consumer. They depend on its generator and the time, not on the relay.
pub(super) struct Weather<Trouble> {
    /// Draws the spells.
    rng: Rng,
    /// Draws the troubles of the current spell.
    within: Rng,
    /// The current spell, and when it ends.
    sky: Sky<Trouble>,
    until: Duration,
    /// The longest spell without trouble, in seconds.
    fair_max: u64,
    draw: Box<dyn FnMut(&mut Rng) -> Trouble + Send>,
}

/// The longest trouble, in seconds.
const TROUBLE_MAX: u64 = 40;

impl<Trouble: Clone> Weather<Trouble> {
    /// Each call of `draw` draws a trouble.
    pub(super) fn new(
        mut rng: Rng,
        draw: impl FnMut(&mut Rng) -> Trouble + Send + 'static,
    ) -> Self {
        let fair_max = [20, 60, 180][rng.usize(..3)];
        let until = seconds(&mut rng, fair_max);
        let within = Rng::with_seed(0);
        Self { rng, within, sky: Sky::Fair, until, fair_max, draw: Box::new(draw) }
    }

    /// Returns the trouble that a request meets at `now`, if any.
    pub(super) fn meets(&mut self, now: Duration) -> Option<Trouble> {
        match self.sky(now).clone() {
            Sky::Fair => None,
            Sky::Outage(trouble) => Some(trouble),
            Sky::Flaky(percent) => {
                (self.within.u32(..100) < percent).then(|| (self.draw)(&mut self.within))
            }
        }
    }

    fn sky(&mut self, now: Duration) -> &Sky<Trouble> {
        while self.until <= now {
            self.within = Rng::with_seed(self.rng.u64(..));
            let rng = &mut self.within;
            let (sky, longest) = match &self.sky {
                Sky::Outage(_) | Sky::Flaky(_) => (Sky::Fair, self.fair_max),
                Sky::Fair if rng.u32(..3) == 0 => (Sky::Outage((self.draw)(rng)), TROUBLE_MAX),
                Sky::Fair => (Sky::Flaky([10, 30, 70][rng.usize(..3)]), TROUBLE_MAX),
            };
            self.until += seconds(rng, longest);
            self.sky = sky;
        }
        &self.sky
    }
}

/// Draws a time from about a second to `longest` seconds, with short times as likely as long ones.
fn seconds(rng: &mut Rng, longest: u64) -> Duration {
    let most = (longest * 1000).ilog2();
    let millis = 1u64 << rng.u32(10..=most);
    Duration::from_millis(millis + rng.u64(..millis)).min(Duration::from_secs(longest))
}
