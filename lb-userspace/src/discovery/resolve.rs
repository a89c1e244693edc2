//! Names to addresses by the system's resolver, which takes a thread for as long as it pleases: half a
//! minute where name servers are dead, whoever gave up meanwhile. The threads are all the daemon's, so
//! sources have few of them at a time, and none to ask for a name that is being asked for.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::{Instant, timeout},
};

/// Names asked for at a time.
const AT_ONCE: usize = 32;

static SYSTEM: LazyLock<Resolver> = LazyLock::new(|| Resolver::new(system));

/// The addresses of a host, which may be one.
///
/// # Errors
/// If it has none, or nobody knows.
pub(super) async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(host).parse::<IpAddr>() {
        return Ok(vec![(ip, port).into()]);
    }
    let found = SYSTEM.ask(host).await?;
    Ok(found.into_iter().map(|ip| (ip, port).into()).collect())
}

/// Connects to the first of the addresses that answers before `end`. Each but the last gets its share of the time
/// that is left: one that is silent must not hide the others.
///
/// # Errors
/// The last address's, or that there is none.
pub(super) async fn connect(
    addresses: &[SocketAddr],
    end: Instant,
) -> Result<TcpStream, Option<(SocketAddr, io::Error)>> {
    let mut failed = None;
    for (tried, address) in addresses.iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        let share = left / (addresses.len() - tried) as u32;
        let connect = TcpStream::connect(address);
        let connected = match tried + 1 == addresses.len() {
            true => connect.await,
            false => match timeout(share, connect).await {
                Ok(connected) => connected,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = Some((*address, error)),
        }
    }
    Err(failed)
}

fn system(host: &str) -> io::Result<Vec<IpAddr>> {
    let found = (host, 0).to_socket_addrs()?;
    Ok(found.map(|address| address.ip()).collect())
}

type Look = fn(&str) -> io::Result<Vec<IpAddr>>;
/// An error is kept in words, as several may wait for it.
type Found = Result<Vec<IpAddr>, (io::ErrorKind, String)>;
type Running = HashMap<String, watch::Receiver<Option<Found>>>;

struct Resolver {
    look: Look,
    room: Arc<Semaphore>,
    running: Arc<Mutex<Running>>,
}

impl Resolver {
    fn new(look: Look) -> Self {
        Self {
            look,
            room: Arc::new(Semaphore::new(AT_ONCE)),
            running: Arc::default(),
        }
    }

    async fn ask(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let mut answer = self.begin(host);
        let found = answer.wait_for(Option::is_some).await;
        // Without an answer its runtime ended.
        let found = found.map_err(|_| io::ErrorKind::Interrupted)?;
        match &*found {
            Some(Ok(found)) => Ok(found.clone()),
            Some(Err((kind, words))) => Err(io::Error::new(*kind, words.clone())),
            None => Err(io::ErrorKind::Interrupted.into()),
        }
    }

    /// The question under way, begun now if there is none. It goes on when nobody waits any more.
    fn begin(&self, host: &str) -> watch::Receiver<Option<Found>> {
        let mut running = lock(&self.running);
        if let Some(answer) = running.get(host)
            && answer.has_changed().is_ok()
        {
            return answer.clone();
        }
        let (told, answer) = watch::channel(None);
        running.insert(host.to_owned(), answer.clone());
        drop(running);
        let (look, room, running) = (self.look, self.room.clone(), self.running.clone());
        let host = host.to_owned();
        tokio::spawn(async move {
            let Ok(_room) = room.acquire_owned().await else {
                return;
            };
            let asked = host.clone();
            let found = spawn_blocking(move || look(&asked)).await;
            let found = found.unwrap_or_else(|_| Err(io::Error::other("the resolver panicked")));
            lock(&running).remove(&host);
            let found = found.map_err(|error| (error.kind(), error.to_string()));
            let _ = told.send(Some(found));
        });
        answer
    }
}

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
        thread,
        time::Duration,
    };

    use tokio::{net::TcpListener, runtime, task::JoinSet, time::timeout};

    use super::*;
    use crate::datapath::testing::{ip_commands, isolated};

    #[test]
    fn a_silent_address_hides_no_other() {
        isolated(|_| {
            ip_commands(
                "link set lo up
                 link add one type veth peer name far
                 address add 192.0.2.1/24 dev one
                 link set one up
                 link set far up
                 neighbour add 192.0.2.2 dev one lladdr 02:00:00:00:00:02",
            );
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let answers = listener.local_addr().unwrap();
                let silent = "192.0.2.2:80".parse().unwrap();
                let end = Instant::now() + Duration::from_secs(2);
                let stream = connect(&[silent, answers], end).await.unwrap();
                assert_eq!(stream.peer_addr().unwrap(), answers);
                let end = Instant::now() + Duration::from_millis(200);
                let lone = timeout(Duration::from_secs(1), connect(&[silent], end)).await;
                assert!(
                    lone.is_err(),
                    "who calls decides when a lone one is given up"
                );
                assert!(connect(&[], end).await.unwrap_err().is_none());
            });
        });
    }

    static ASKED: AtomicUsize = AtomicUsize::new(0);
    static AT_WORK: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    static MAY_ANSWER: AtomicBool = AtomicBool::new(false);

    fn slow(host: &str) -> io::Result<Vec<IpAddr>> {
        ASKED.fetch_add(1, Ordering::Relaxed);
        let at_work = AT_WORK.fetch_add(1, Ordering::Relaxed) + 1;
        MOST.fetch_max(at_work, Ordering::Relaxed);
        // The first name waits until all have given up.
        while host == "web" && !MAY_ANSWER.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(300));
        AT_WORK.fetch_sub(1, Ordering::Relaxed);
        match host {
            "none" => Err(io::Error::other("no such host")),
            _ => Ok(vec![[10, 0, 0, 1].into()]),
        }
    }

    #[tokio::test]
    async fn a_name_is_asked_for_once_and_few_at_a_time() {
        let resolver = Arc::new(Resolver::new(slow));
        // Whoever gives up leaves it to the next.
        for _ in 0..5 {
            let soon = Duration::from_millis(10);
            assert!(timeout(soon, resolver.ask("web")).await.is_err());
        }
        MAY_ANSWER.store(true, Ordering::Relaxed);
        assert_eq!(resolver.ask("web").await.unwrap().len(), 1);
        assert_eq!(ASKED.load(Ordering::Relaxed), 1);
        let error = resolver.ask("none").await.unwrap_err();
        assert_eq!(error.to_string(), "no such host");
        assert!(lock(&resolver.running).is_empty());

        let mut all = JoinSet::new();
        for n in 0..100 {
            let resolver = resolver.clone();
            all.spawn(async move { resolver.ask(&format!("web-{n}")).await });
        }
        assert!(all.join_all().await.iter().all(Result::is_ok));
        assert_eq!(ASKED.load(Ordering::Relaxed), 102);
        assert_eq!(MOST.load(Ordering::Relaxed), AT_ONCE);
    }

    #[tokio::test]
    async fn an_address_is_no_question() {
        for (host, shown) in [("10.0.0.1", "10.0.0.1:80"), ("[fd00::1]", "[fd00::1]:80")] {
            let found = addresses(host, 80).await.unwrap();
            assert_eq!(found[0].to_string(), shown);
        }
        assert!(!addresses("localhost", 80).await.unwrap().is_empty());
    }
}
