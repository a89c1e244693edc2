//! Hears of changes to the node's network that make cached next hops or SNAT sources stale.

use std::{collections::HashMap, io, time::Duration};

use anyhow::{Context, Result};
use tokio::{io::unix::AsyncFd, time::sleep};
use tracing::{debug, warn};

use super::netlink::{Message, Socket, attribute, number};

const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

/// Calls `on_change` after every change of a link, an address, a route or rule, or a neighbour's link-layer
/// address, once for all that came together. Runs until dropped.
pub async fn watch(mut on_change: impl Fn() + Send + 'static) {
    loop {
        if let Err(error) = listen(&mut on_change).await {
            if is_overrun(&error) {
                debug!("the kernel sent more network changes than were read");
            } else {
                warn!("hearing of network changes failed, trying again: {error:#}");
                sleep(Duration::from_secs(1)).await;
            }
        }
        // Something was missed.
        on_change();
    }
}

async fn listen(on_change: &mut (impl Fn() + Send)) -> Result<()> {
    let socket = Socket::subscribe(&GROUPS).context("opening a netlink socket")?;
    // SAFETY: the socket keeps its descriptor open, and the same, as long as it lives.
    let socket = unsafe { AsyncFd::register(socket) }?;
    let mut neighbours = Neighbours::default();
    loop {
        let mut ready = socket.readable().await?;
        let mut changed = false;
        loop {
            match socket.get_ref().receive() {
                Ok(messages) => {
                    changed = messages
                        .iter()
                        .fold(changed, |c, m| neighbours.matters(m) || c);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("reading from a netlink socket"),
            }
        }
        ready.clear_ready();
        if changed {
            on_change();
        }
    }
}

fn is_overrun(error: &anyhow::Error) -> bool {
    let os = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error);
    os == Some(libc::ENOBUFS)
}

/// The last link-layer address of each neighbour. The kernel tells of every step of its state
/// machine (reachable, stale, delay, probe…), of which packets feel only a new address.
#[derive(Default)]
struct Neighbours {
    known: HashMap<(u32, Vec<u8>), Vec<u8>>,
}

impl Neighbours {
    /// Whether a message is news to the packet path.
    fn matters(&mut self, message: &Message) -> bool {
        match message.kind {
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
                neighbour(message).is_some_and(|(key, address)| self.learn(key, address))
            }
            _ => true,
        }
    }

    fn learn(&mut self, key: (u32, Vec<u8>), address: Option<Vec<u8>>) -> bool {
        match address {
            Some(address) => {
                let before = self.known.insert(key, address.clone());
                before.as_ref() != Some(&address)
            }
            None => self.known.remove(&key).is_some(),
        }
    }
}

/// Device and address.
type Neighbour = (u32, Vec<u8>);

/// A neighbour, and its link-layer address while that may be used.
fn neighbour(message: &Message) -> Option<(Neighbour, Option<Vec<u8>>)> {
    const USABLE: u16 = libc::NUD_PERMANENT
        | libc::NUD_NOARP
        | libc::NUD_REACHABLE
        | libc::NUD_PROBE
        | libc::NUD_STALE
        | libc::NUD_DELAY;
    let body = &message.body;
    // Bridges tell of their forwarding entries in the same group.
    if body.first().map(|f| i32::from(*f)) == Some(libc::AF_BRIDGE) {
        return None;
    }
    // struct ndmsg
    let (index, state) = (number::<u32>(body, 4)?, number::<u16>(body, 8)?);
    let tail = body.get(12..)?;
    let key = (index, attribute(tail, libc::NDA_DST)?.to_vec());
    let usable = message.kind == libc::RTM_NEWNEIGH && state & USABLE != 0;
    let address = attribute(tail, libc::NDA_LLADDR).filter(|_| usable);
    Some((key, address.map(<[u8]>::to_vec)))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::datapath::{
        netlink::put_attribute,
        testing::{ip_commands, isolated},
    };

    fn event(kind: u16, state: u16, mac: Option<u8>) -> Message {
        let mut body = vec![libc::AF_INET as u8, 0, 0, 0, 7, 0, 0, 0];
        body.extend(state.to_ne_bytes());
        body.extend([0, 0]);
        put_attribute(&mut body, libc::NDA_DST, &[10, 0, 0, 1]);
        if let Some(mac) = mac {
            put_attribute(&mut body, libc::NDA_LLADDR, &[2, 0, 0, 0, 0, mac]);
        }
        Message { kind, body }
    }

    #[test]
    fn only_a_new_address_is_news() {
        let mut neighbours = Neighbours::default();
        let mut heard = |kind, state, mac| neighbours.matters(&event(kind, state, mac));
        let new = libc::RTM_NEWNEIGH;
        assert!(!heard(new, libc::NUD_INCOMPLETE, None));
        assert!(heard(new, libc::NUD_REACHABLE, Some(1)));
        assert!(!heard(new, libc::NUD_STALE, Some(1)));
        assert!(!heard(new, libc::NUD_REACHABLE, Some(1)));
        assert!(heard(new, libc::NUD_REACHABLE, Some(2)));
        assert!(heard(new, libc::NUD_FAILED, Some(2)));
        assert!(!heard(new, libc::NUD_FAILED, None));
        assert!(heard(new, libc::NUD_REACHABLE, Some(2)));
        assert!(heard(libc::RTM_DELNEIGH, libc::NUD_STALE, Some(2)));
        assert!(neighbours.matters(&Message {
            kind: libc::RTM_NEWROUTE,
            body: Vec::new()
        }));
    }

    fn spawnable<T: Send + 'static>(future: T) -> T {
        future
    }

    #[test]
    fn the_kernel_is_heard() {
        isolated(|_| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let heard = Arc::new(AtomicUsize::new(0));
            let counter = heard.clone();
            let listener = spawnable(watch(move || {
                counter.fetch_add(1, Ordering::Relaxed);
            }));
            let script = async {
                let count = || heard.load(Ordering::Relaxed);
                let settle = || sleep(Duration::from_millis(50));
                settle().await;
                let heard_since = async |before| {
                    for _ in 0..200 {
                        settle().await;
                        if count() > before {
                            return true;
                        }
                    }
                    false
                };
                for change in [
                    "link add one type veth peer name far",
                    "link set one up",
                    "addr add 10.0.0.1/24 dev one",
                    "route add 10.2.0.0/16 via 10.0.0.9 dev one onlink",
                    "neigh add 10.0.0.2 lladdr 02:00:00:00:00:01 dev one",
                    "neigh change 10.0.0.2 lladdr 02:00:00:00:00:02 dev one",
                ] {
                    let before = count();
                    ip_commands(change);
                    assert!(heard_since(before).await, "{change}");
                }
                // The kernel tells of a new device's carrier when it finds the time, a second at most.
                let mut is_silent = false;
                for state in ["stale", "reachable", "stale", "reachable"] {
                    let before = count();
                    ip_commands(&format!(
                        "neigh change 10.0.0.2 lladdr 02:00:00:00:00:02 dev one nud {state}"
                    ));
                    settle().await;
                    is_silent = count() == before;
                    if is_silent {
                        break;
                    }
                    sleep(Duration::from_secs(1)).await;
                }
                assert!(is_silent);
            };
            runtime.block_on(async {
                tokio::select! {
                    () = listener => unreachable!(),
                    () = script => {}
                }
            });
        });
    }
}
