//! Looks up host names. A lookup runs on by itself, whoever asked for it: the C library asks a dead
//! name server for 5 s before it asks the next one, and a caller that began again after its own
//! 5 s would never get an answer. Whoever asks next for the same name gets the result.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use base::lock::lock;
use config::HostPort;

/// The longest time that the C library needs with usual settings: 5 s for each of three name
/// servers, twice (resolv.conf(5)).
pub const LONGEST: Duration = Duration::from_secs(30);

/// At this number of lookups, the results that nobody has fetched are forgotten.
const RESULTS_MAX: usize = 1024;

/// Asks the resolver for the addresses of a name.
type Resolver = dyn Fn(HostPort) -> Resolving + Send + Sync;
/// A question to the resolver.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// The result of a lookup: an error can't be cloned, so each who waits gets its kind and its text.
type Answer = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

/// `None` until the resolver has answered.
type Lookup = watch::Receiver<Option<Answer>>;

/// The lookups that run, at most one for each name, and those whose result nobody has fetched.
pub struct Names {
    resolver: Box<Resolver>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lookups: HashMap<HostPort, Lookup>,
    /// One task for each lookup that runs. If it panics, whoever waits gets an error.
    tasks: JoinSet<()>,
}

impl Names {
    /// Makes the lookups of this resolver.
    pub fn new(resolver: impl Fn(HostPort) -> Resolving + Send + Sync + 'static) -> Self {
        Self { resolver: Box::new(resolver), state: Mutex::default() }
    }

    /// Returns the lookups of this process. Its resolver is getaddrinfo(3).
    pub fn of_process() -> Arc<Self> {
        static NAMES: LazyLock<Arc<Names>> =
            LazyLock::new(|| Arc::new(Names::new(|name| Box::pin(resolve(name)))));
        Arc::clone(&NAMES)
    }

    /// Returns `true` if a lookup of the name runs.
    pub fn is_running(&self, name: &HostPort) -> bool {
        lock(&self.state).lookups.get(name).is_some_and(is_running)
    }

    /// Returns the addresses of a name, in the order of the resolver, or an IP address itself.
    /// `None` if there is no answer within `patience`. The lookup then runs on, and its answer is
    /// for the next who asks.
    ///
    /// # Errors
    ///
    /// The error of the resolver.
    ///
    /// # Cancel safety
    ///
    /// The lookup also runs on if the future is dropped.
    pub async fn look_up(
        &self,
        name: &HostPort,
        patience: Duration,
    ) -> io::Result<Option<Vec<SocketAddr>>> {
        if let Ok(literal) = name.host.parse::<IpAddr>() {
            return Ok(Some(vec![SocketAddr::new(literal, name.port)]));
        }
        let mut lookup = self.joined(name);
        let answer = match timeout(patience, lookup.wait_for(Option::is_some)).await {
            Err(_) => return Ok(None),
            Ok(answer) => answer.map(|answer| Option::clone(&answer)),
        };
        let mut state = lock(&self.state);
        if state.lookups.get(name).is_some_and(|current| current.same_channel(&lookup)) {
            state.lookups.remove(name);
        }
        drop(state);
        match answer {
            Ok(Some(Ok(addresses))) => Ok(Some(addresses)),
            Ok(Some(Err((kind, text)))) => Err(io::Error::new(kind, text)),
            Ok(None) | Err(_) => Err(io::Error::other("the lookup has panicked, or was stopped")),
        }
    }

    /// Returns the lookup of a name that runs, or whose addresses nobody has fetched. If there is
    /// none, begins one. An error that nobody has fetched is old, so it counts as none.
    fn joined(&self, name: &HostPort) -> Lookup {
        let mut state = lock(&self.state);
        let State { lookups, tasks } = &mut *state;
        while tasks.try_join_next().is_some() {}
        let is_useful = |it: &&Lookup| is_running(it) || matches!(*it.borrow(), Some(Ok(_)));
        if let Some(lookup) = lookups.get(name).filter(is_useful) {
            return lookup.clone();
        }
        if lookups.len() >= RESULTS_MAX {
            lookups.retain(|_, lookup| is_running(lookup));
        }
        let (sender, lookup) = watch::channel(None);
        let resolving = (self.resolver)(name.clone());
        tasks.spawn(async move {
            let answer = resolving.await.map_err(|error| (error.kind(), error.to_string()));
            sender.send_replace(Some(answer));
        });
        lookups.insert(name.clone(), lookup.clone());
        lookup
    }
}

fn is_running(lookup: &Lookup) -> bool {
    lookup.borrow().is_none() && lookup.has_changed().is_ok()
}

/// Asks getaddrinfo(3), in a thread of its own.
async fn resolve(name: HostPort) -> io::Result<Vec<SocketAddr>> {
    let looking_up = tokio::task::spawn_blocking(move || {
        (name.host, name.port).to_socket_addrs().map(Iterator::collect)
    });
    looking_up.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn name() -> HostPort {
        HostPort { host: "logs".to_owned(), port: 514 }
    }

    /// Returns a resolver that takes this time. Its answers are numbered, and each second one is an
    /// error.
    fn slow(takes: Duration) -> Names {
        let asked = Arc::new(AtomicU32::new(0));
        Names::new(move |name| {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                tokio::time::sleep(takes).await;
                match number % 2 {
                    0 => Ok(vec![SocketAddr::from((Ipv4Addr::from(number), name.port))]),
                    _ => Err(io::Error::other(format!("question {number}"))),
                }
            })
        })
    }

    async fn asked(names: &Names, patience: Duration) -> String {
        format!("{:?}", names.look_up(&name(), patience).await)
    }

    /// Method: a lookup takes 6 s, and each who asks waits for 5 s.
    #[tokio::test(start_paused = true)]
    async fn a_lookup_runs_on_and_its_answer_is_for_the_next_who_asks() {
        let names = slow(6 * SECOND);
        assert_eq!(asked(&names, 5 * SECOND).await, "Ok(None)");
        assert!(names.is_running(&name()));
        let both = (asked(&names, 5 * SECOND), asked(&names, 5 * SECOND));
        let both = tokio::join!(both.0, both.1);
        let first = "Ok(Some([0.0.0.0:514]))".to_owned();
        assert_eq!(both, (first.clone(), first));
        assert!(!names.is_running(&name()));
        // The next question is a new one. Nobody waits for its error, so it is asked again.
        assert_eq!(asked(&names, SECOND).await, "Ok(None)");
        tokio::time::sleep(60 * SECOND).await;
        assert!(!names.is_running(&name()));
        assert_eq!(asked(&names, SECOND).await, "Ok(None)");
        // Nobody waits for these addresses either, and they are kept.
        tokio::time::sleep(600 * SECOND).await;
        assert_eq!(asked(&names, Duration::ZERO).await, "Ok(Some([0.0.0.2:514]))");
        assert!(asked(&names, 7 * SECOND).await.contains("question 3"));
    }

    /// Method: the resolver panics, or its runtime ends.
    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_ends_without_an_answer_is_an_error_and_is_begun_again() {
        let calls = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&calls);
        let names = Names::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { panic!("this is the test") })
        });
        for number in 1..3 {
            assert!(asked(&names, SECOND).await.contains("panicked"));
            assert_eq!(calls.load(Ordering::Relaxed), number);
        }
    }
}
